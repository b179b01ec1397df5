"""`baton chaos`: breaks everything that Baton runs on, at random, and sees whether anybody notices.

What runs
    Several pods and workers are real processes (`cluster`), started again when they end. Each reaches Postgres through
    two proxies of its own (`proxy`), one for queries and one for LISTEN, so that both fail apart and for one process
    alone. Postgres is an embedded one, or the one that is named: then nothing is done to the server, to other people's
    connections or to their streams. An asynchronous standby may take the place of an embedded one (`servers`), with the
    loss of what it had not received; the proxies lead to it from then on.

What is watched
    The audience (`workload`) keeps a number of streams going, made by a generator of its own (`generator`), of both
    policies for a lost worker, short and long, some with large events, some cancelled in mid-stream. Several viewers
    follow each (`viewers`), over any pod, some slow, some moving about; each comes back by itself after the last event
    that it has, or is refused for good since a promotion lost it. Each keeps an account of what came (`account`), and
    at a stream's end all accounts are compared with the log, which is read around the proxies.

What breaks
    `faults` holds the kinds. They come from a shuffled deck that the seed decides, one every two or three seconds on
    average, several at once, with calm moments between them. One pod and one worker are spared from being killed, and
    from nothing else, so that their memory can be watched (`memory`). The same seed plays the same faults in the same
    order; when exactly each meets the processes is left to the machine.

How it ends
    Faults stop and are healed, streams are no longer replaced, and those that last are cancelled. All must end, for all
    viewers, within a bounded time. The exit status is 0 only when no account and no process gave reason to complain.

Everything of this side runs on one event loop in one process.
"""
