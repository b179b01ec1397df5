"""Describes the machine of a run."""

from __future__ import annotations

import asyncio
import datetime
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, Final

import psutil

from baton.demo.embedded import embedded_postgres
from baton.settings import Settings

from .cluster import ROOT
from .peers.baton import SETTINGS
from .postgres import postgres_settings

ADDITIONS: Final = 5_000_000


def described() -> dict[str, Any]:
    """Return the machine, the checkout, and the relevant settings of Postgres and Baton."""
    with embedded_postgres() as dsn:
        postgres = asyncio.run(postgres_settings(dsn))
    defaults = Settings.load()
    return {
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gigabytes": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
        "python_additions_per_second": _additions_per_second(),
        "commit": _commit(),
        "postgres": postgres,
        "baton": {"flush_interval_milliseconds": defaults.flush_interval_milliseconds, **SETTINGS},
    }


def _additions_per_second() -> float:
    """Measure the speed of this Python: without profile-guided optimization it is a third slower."""
    total, begun = 0, time.process_time()
    for number in range(ADDITIONS):
        total += number
    return ADDITIONS / (time.process_time() - begun)


def _processor() -> str:
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _lines(path: str) -> list[str]:
    found = Path(path)
    return found.read_text().splitlines() if found.exists() else []


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
