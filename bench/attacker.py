"""Runs a separate process that loads a pod during a measurement, so that its work is not measured."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson

from .cluster import ROOT


@contextlib.asynccontextmanager
async def attacking(module: str, *arguments: str, on_end: Callable[[Any], None]) -> AsyncIterator[None]:
    """Run `python -m module --attack …` and wait for "ready"; `on_end` gets the JSON of its last line."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, "--attack", *arguments), stdin=PIPE, stdout=PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield
    finally:
        # It ends with its standard input.
        printed, _ = await process.communicate(b"")
    on_end(orjson.loads(printed))
