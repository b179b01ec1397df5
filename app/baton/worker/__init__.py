"""Workers: everything from a queued stream to its last event in the log.

- `workers` is the process: a worker for each database, each after its `database_check`. On SIGTERM its `leave` runs.
  They share a `host`, with the `capacity` of the process. `watchdog` notices that a generator blocks their loop.
- `worker` works with one database: one loop over one connection, and the services beside it.
- `side_thread` is a thread beside that loop. In it `heartbeat` raises the worker's counter.
- `admission` puts held streams into line, `claiming` takes queued streams, and `slots` holds the ones that run here.
- `run` runs one generator, and `feed` puts what it yields into the outbox. `past` reads what earlier runs left, and
  `repetition` compares with it what a generator repeats. `surrogate_pairs` and `tool_calls` check what it yields, and
  `turns` lets the loop turn.
- `outbox` buffers, batches and numbers one stream's events. The protocol between it and the writer is described there.
- `writer` appends the batches of all outboxes under their claims' epochs, as `flush_schedule` times it, in the
  statements of `appending`.
  `hints` announce what was written. `log_comparison` checks the log after the database may have gone back in time,
  and `appending_again` restores what was lost from `recent_batches`.
- `steps` keeps the results of a generator's steps, over the connection of `records`. `inbox` reads a stream's inputs
  there, and `waiting` lets a stream wait for one without a worker.
- `end_hook` is the application's function that runs in the transaction of an end, and `hooked_ends` makes such ends.
- `durable_calls` are made for streams that have ended, at least once: `stopping` ends at a provider what a stream that
  ended early had begun there, and `webhooks` notifies applications.
- `lease` is the worker's row, `upkeep` does what comes with each heartbeat, and `reaper` finds dead workers.
  `lease_history` decides whether the lease lasted until a failover.
- `telemetry` reports runs in metrics, traces and the log.
"""
