"""The reading side: everything a pod does from a request to the last event that it sends.

`pod.Pod` owns one of each part. An event's way, by module: `relay_registry` hears the notification, `relay` adds the
batch to its window, `subscriber` is a client's place behind it, `event_stream` encodes it, and `sinks` write it to the
client. `stream_timeouts` decides that a client is too slow and closes its stream, and `mounted_shutdown` runs on
SIGTERM under a server that Baton does not start. Nothing here knows of workers: pods and workers meet only in Postgres.
"""
