"""Several processes for one command: `baton serve --processes 4`, so that one command uses all cores of a machine.

`supervisor` runs in the parent, which serves no client and claims no stream. It starts the children (`slot`,
`spawned`), replaces those that die, and lets all leave at a signal. `child` runs in each child: a pod or a worker like
any other, with a `parent_link`. Each child is a fresh interpreter, since a fork would copy locks that threads hold.

A parent and its child share one socket (`channel`). The end of either closes it. So a child leaves if its parent is
killed, whatever the platform (`lifeline`).
"""
