"""Runs generators without a worker and without Postgres, for tests and for the terminal.

`run` runs a generator for a stream that is simulated in memory: what it yields is checked, numbered and written as a
worker does, by the worker's own code. The stream can be killed at any event and continued, wait for inputs, and be seen
in each dialect. `survives` kills a generator at every event in turn, and compares its answers. `run_sync` and
`survives_sync` are the same for code without an event loop.

`memory` is what the database holds of the one stream, `outbox` writes into it, `watching` stands between the run and
its generator, and `simulation` plays the workers. `view` is what tests look at.
"""

from .dialects import DialectName, Seen
from .memory import StepRun
from .stream import SimulatedStream, SyncStream, run, run_sync
from .survival import DoesNotSurvive, Survival, survives, survives_sync
from .view import StreamView

__all__ = [
    "DialectName",
    "DoesNotSurvive",
    "Seen",
    "SimulatedStream",
    "StepRun",
    "StreamView",
    "Survival",
    "SyncStream",
    "run",
    "run_sync",
    "survives",
    "survives_sync",
]
