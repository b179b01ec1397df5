"""Postgres: connections, NOTIFY, and the statements of each table, in the module that owns the table.

- Connections: `postgres` (connect, pool, translate errors), `read_committed`, `fair_pool` and `fair_semaphore` (tenants
  share a pool), `reconnecting`, `schema_revision`, `sqlstates`.
- Notifications: `notifications` (channels, payloads, NOTIFY), `signing_keys`, `notification_delivery`. See `hints`.
- Streams: `stream_creation`, `streams` (their rows), `stream_lists`, `live_counts`, `stream_ending` with `end_columns`,
  `retention`.
- The queue: `stream_queue` (claims), `queue_lines` (the order), `queue_watermark`, `stream_admission` (held streams).
- The log: `event_log` (append, read), `partitions`, `history` (whether the database went back in time).
- Rows of processes and callers: `worker_rows`, `pod_rows`, `rate_buckets`.
- The server: `vacuum_horizon`, `disk_space`.
"""
