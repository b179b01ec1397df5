"""Makes Baton count and log nothing about streams and connections, in a process with this folder on its path.

`bench.observing` compares this with the default.
"""

import logging

from baton.observability.metrics import numbers


def _nothing(*_: object) -> None:
    pass


numbers.Histogram.observe = _nothing  # type: ignore[method-assign, assignment]
numbers.LabeledCounter.add = _nothing  # type: ignore[method-assign, assignment]
for _name in ("baton.api.actions", "baton.pod.event_stream", "baton.observability.stream_end"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
