"""`baton chaos`: breaks everything that Baton runs on, at random, and checks that no viewer misses anything.

What runs
    Several pods and workers are real processes (`demo.cluster`), restarted when they end. Each reaches Postgres through
    two proxies of its own (`proxy`), one for queries and one for LISTEN, so that each can fail alone. Postgres is an
    embedded one, or the one that `--database-url` names: then the server, other clients' connections and other streams
    are left alone. An asynchronous standby may replace an embedded server (`postgres_pair`) and lose what it had not
    received; the proxies then lead to the standby. There may be several databases (`databases`), each with a server and
    proxies of its own. With `--nats`, a NATS server of chaos' own (`nats_server`) carries the hints: nothing listens or
    notifies in Postgres then. That server is killed, frozen, and used by a forger.

What is watched
    The workload (`workload`) keeps a number of streams running, made by generators of its own (`generators`): they
    continue, repeat themselves or restart after their worker was lost, under each policy for a lost worker. There are
    short and long streams, some with large events, some with steps, some cancelled in the middle. Several viewers
    follow each (`viewers`) through any pod; some are slow, some change pods. Each viewer reconnects after its last
    event, or is refused for good because a promotion lost the event. Each viewer has an account of what it received
    (`account`). At a stream's end its accounts are compared with the log, which is read around the proxies, and with
    the calls of the steps' tool, which are counted outside Postgres (`tool_calls`). Some streams wait for inputs, which
    users send through any pod (`inputs`). On a server of chaos' own, an end hook saves each answer (`end_hook`), and
    half of the streams have a webhook (`webhooks`): both are compared with the streams that have ended.

What breaks
    `faults` holds the kinds of faults. They are drawn from a deck that the seed shuffles: one every two or three
    seconds on average, several at once, with calm moments between them. `trouble` records which workers a fault struck
    and what a promotion may have lost, of each database: only that excuses an end. `reach` records which pods could
    reach which databases: only that excuses a create without a key (`unkeyed`) that fails. One pod and one
    worker are never killed, though every other fault strikes them, so that their memory can be watched (`memory`). The
    same seed injects the same faults in the same order; the exact moment depends on the machine.

How it ends
    Faults stop and are undone, finished streams are not replaced, and running ones are cancelled. All streams must end,
    for all viewers, within a bounded time. The exit status is 0 only if no account and no process has a complaint.

Chaos itself runs on one event loop in one process.
"""
