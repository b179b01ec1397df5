"""Workers as processes of their own, with the generators of `answers`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

from tests.support.processes import Running, environment, running

# A worker that dies is replaced soon.
QUICK: Final[dict[str, Any]] = {"worker_heartbeat_seconds": 0.1, "lease_seconds": 0.8, "queue_poll_seconds": 0.1}


@contextlib.asynccontextmanager
async def worker_process(dsn: str, *answers: str, **settings: Any) -> AsyncIterator[Running]:
    """Run a worker, once it claims. `answers` are functions of that module, and the names of the generators."""
    given = {f"BATON_{name.upper()}": str(value) for name, value in settings.items()}
    if answers:
        given["BATON_GENERATORS"] = ",".join(f"{name}=answers:{name}" for name in answers)
    env = environment(BATON_DATABASE_URL=dsn, **given)
    async with running("worker", env=env, cwd=Path(__file__).parent) as worker:
        await worker.said("is ready for")
        yield worker
