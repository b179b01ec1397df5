"""Hints: what wakes pods and workers, so that they need not poll often. Any of them may be lost.

A *hint* says where something may have changed: in the log of a stream, in the queue, in a stream's inputs. The hints
about events also carry them, signed by a worker or pod of the database, so that pods need not read the log. Everything
that a hint says is also in the database, where its receiver finds it by polling. So a hint may travel by any messenger
that delivers at most once:

- `transport`: the seam, which each of them implements: send, listen, state.
- `postgres`: LISTEN and NOTIFY. The default, with nothing else to run.
- `nats`, with `nats_client`: a NATS server, for installations whose pods outgrow one Postgres' notifications.
- `poll`: no messenger at all, for databases behind poolers and proxies that lose LISTEN.

Pods and workers have a `Hints` for each database (`hints`), which `opening` makes from the settings. `sender` packs and
signs what is sent, and `hint` has the hints that carry no events.
"""
