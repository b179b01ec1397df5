"""The side of the writer: what a worker does from a queued stream to its last event.

`worker` claims streams, `run` runs one generator, `outbox` batches its events, and `writer` appends
them under the claim's epoch.
"""
