"""The protocol's TypeScript and Python clients write streams of every kind and read them, while pods are killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, Literal

import httpx
from tests.clients import durable_streams_python as python
from tests.clients.durable_streams_kinds import KINDS, Kind
from tests.clients.node import Node, Script
from tests.support.logbook import DEADLINE_SECONDS

LIVE: tuple[Literal["long-poll", "sse"], ...] = ("long-poll", "sse")
ATTEMPTS_OF_A_ZOMBIE = 5


async def write_and_read(
    node: Node, url: str, messages: int, seconds: float, *, by_both_ways: bool = False
) -> dict[str, Any]:
    """Have each client write a stream of each kind, and each read all, live: by long-poll or by SSE, or by both ways.

    The writers make their messages in this many seconds, and take longer on a slow machine.

    Returns:
        How often clients repeated a request or continued after a cut.

    Raises:
        AssertionError: a reader got anything but what was written, once, in order; or a zombie was not fenced.
    """
    written = {kind: kind.messages(messages) for kind in KINDS}
    by = {f"{url}/v1/stream/{writer}/{kind.name}": kind for kind in KINDS for writer in ("ts", "py")}
    ways = {
        (client, address): LIVE if by_both_ways else (LIVE[(number + (client == "ts")) % 2],)
        for client in ("ts", "py")
        for number, address in enumerate(by)
    }
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30, trust_env=False))
        for address, kind in by.items():
            if "/py/" in address:
                await python.create(address, kind.content_type, http)
        plan = [
            [address, kind.content_type, [b64encode(kind.encoded(message)).decode() for message in written[kind]]]
            for address, kind in by.items()
            if "/ts/" in address
        ]
        writer = await stack.enter_async_context(
            node.running("writer.mjs", _plan(node, "write.json", plan), f"{seconds}")
        )
        await writer.says("created")
        readers = [[address, live, kind.is_json] for address, kind in by.items() for live in ways["ts", address]]
        reader = await stack.enter_async_context(node.running("reader.mjs", _plan(node, "read.json", readers)))
        async with asyncio.TaskGroup() as group:
            reading = {
                (address, live): group.create_task(python.read(address, live, kind.name))
                for address, kind in by.items()
                for live in ways["py", address]
                # This client reads no bytes by SSE.
                if (kind.name, live) != ("bytes", "sse")
            }
            writing = [
                group.create_task(python.write(address, kind.content_type, written[kind], seconds, http))
                for address, kind in by.items()
                if "/py/" in address
            ]
            said = group.create_task(_result(writer, seconds))
            read = group.create_task(_result(reader, seconds))
    for (address, live), task in reading.items():
        _check(f"Python, {live}, {address}", by[address], written[by[address]], task.result())
    for found in read.result()["readers"]:
        kind = by[found["url"]]
        taken = found["taken"] if kind.is_json else [b64decode(found["taken"])]
        _check(f"TypeScript, {found['live']}, {found['url']}", kind, written[kind], taken)
    assert [task.result() for task in writing] == [ATTEMPTS_OF_A_ZOMBIE] * len(KINDS)
    assert [found["fenced"] for found in said.result()["streams"]] == [ATTEMPTS_OF_A_ZOMBIE] * len(KINDS), said.result()
    return {"repeated": said.result()["repeated"], "cuts": sum(found["cuts"] for found in read.result()["readers"])}


def _plan(node: Node, name: str, plan: Sequence[Any]) -> str:
    (node.folder / name).write_text(json.dumps(plan))
    return str(node.folder / name)


async def _result(script: Script, seconds: float) -> Any:
    """Return what a script says at its end."""
    assert script.process.stdout is not None
    async with asyncio.timeout(2 * seconds + 2 * DEADLINE_SECONDS):
        line = await script.process.stdout.readline()
    assert line, "The script has failed."
    return json.loads(line)


def _check(reader: str, kind: Kind, written: Sequence[Any], taken: Sequence[Any]) -> None:
    expected, got = kind.joined(written), kind.joined(taken)
    if expected == got:
        return
    same = next((at for at, (one, other) in enumerate(zip(expected, got, strict=False)) if one != other), None)
    at = min(len(expected), len(got)) if same is None else same
    raise AssertionError(
        f"{reader}: got {len(got)} of {len(expected)}, different from {at}: "
        f"{got[at : at + 3]!r:.300} instead of {expected[at : at + 3]!r:.300}"
    )
