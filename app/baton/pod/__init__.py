"""The side of the reader: what a pod does from a request to the last event that it sends.

`pod.Pod` owns one of each. `relay` hears of batches and hands them to the clients that follow their streams;
`event_stream` is one such client. Nothing here knows of workers: pods and workers meet only in Postgres.
"""
