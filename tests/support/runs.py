"""A run without a worker: nobody writes what it yields."""

from __future__ import annotations

from uuid import uuid4

from baton.db.stream_queue import Claim
from baton.generators import Generator
from baton.generators.steps import Steps
from baton.observability.metrics import Labels, TokenMetrics
from baton.worker.feed import Bounds
from baton.worker.outbox import Outbox
from baton.worker.past_records import PastRecords
from baton.worker.records import Records
from baton.worker.run import Run


def run_of(generator: Generator, name: str = "test") -> Run:
    claim = Claim(uuid4(), 1, 1, "retry", name, None, {}, cancelled=False)
    outbox = Outbox(claim.stream_id, 1, 0, on_ready=lambda _: None, on_lost=lambda _: None, max_events=1000)
    return Run(
        claim,
        generator,
        outbox,
        Bounds(1 << 20, 1000, 1 << 20, 1 << 20),
        metrics=TokenMetrics(),
        earlier=PastRecords(Records(""), claim.stream_id),
        steps=Steps(),
        labels=Labels(name),
    )
