"""The example in `examples/nextjs`, built and served by Next.js itself, and the model that its route handler asks."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bench.packages import node, npm
from tests.clients.node import HERE
from tests.support.access import guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod
from tests.support.pacing import Pace
from tests.support.processes import Running, environment, running
from tests.support.provider_server import CLOSING, LAST_FRAME, ProviderServer, Received, Reply, data_frames
from tools.js_client import build

EXAMPLE: Final = HERE.parent.parent / "examples" / "nextjs"
PACKAGES: Final = HERE / "nextjs"
BUILD_SECONDS: Final = 240
NEXT: Final = Path("node_modules") / "next" / "dist" / "bin" / "next"
QUIET: Final = {"NEXT_TELEMETRY_DISABLED": "1"}

# On this signal the server throws what nothing catches. Next.js would log it and continue.
THROWS: Final = signal.SIGUSR2
_THROWING: Final = (
    "process.on('SIGUSR2',()=>{process.removeAllListeners('uncaughtException');setImmediate(()=>{throw(1)})})"
)

WEBHOOK_SECRET: Final = b"the secret of this test's webhook"
QUESTION: Final = "What time is it in Oslo?"
REASONING: Final = "The clock knows."
CALL: Final = {"name": "clock", "arguments": '{"timeZone": "Europe/Oslo"}'}


@contextlib.contextmanager
def built_example() -> Iterator[Path]:
    """Build the example, with the package of this checkout, beside its packages from npm; yield its folder."""
    packages = npm(PACKAGES, "nextjs")
    with tempfile.TemporaryDirectory(dir=packages) as made:
        folder = Path(made)
        shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
        _install_package(folder / "node_modules" / "baton-stream")
        _next(packages, "build", cwd=folder)
        yield folder


def _install_package(into: Path) -> None:
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        build(folder)
        shutil.copytree(folder / "dist", into / "dist")
        shutil.copy(folder / "package.json", into)


def _next(packages: Path, *arguments: str, cwd: Path) -> None:
    done = subprocess.run(
        [node(), packages / NEXT, *arguments],
        cwd=cwd,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


class Model(ProviderServer):
    """A model that thinks, asks for the time, and then says `words` at the pace of the test.

    `refuses` is the answer to the next request. After `breaks_after` words the connection breaks. `left` is set when
    the client leaves before the end of the answer.
    """

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__()
        self.words = words
        self.pace = Pace(allowed=0)
        self.refuses: Reply | None = None
        self.breaks_after: int | None = None
        self.left = asyncio.Event()

    @property
    def prompts(self) -> list[list[dict[str, Any]]]:
        """The messages of each request."""
        return [request.body["messages"] for request in self.requests]

    async def respond(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a question with a call of the clock, and its result with the words."""
        if self.refuses is not None:
            return await self.send(self.refuses, reader, writer)
        asked = request.body["messages"][-1]["role"] == "user"
        gone = asyncio.create_task(reader.read(1))
        try:
            await self.begin(CLOSING, writer)
            await (self._call(writer) if asked else self._say(gone, writer))
        finally:
            gone.cancel()
        return False

    async def _call(self, writer: asyncio.StreamWriter) -> None:
        await self._send(writer, {"reasoning_content": REASONING})
        call = {"index": 0, "id": f"call_{len(self.requests)}", "type": "function", "function": CALL}
        await self._send(writer, {"tool_calls": [call]})
        await self._finish(writer, "tool_calls")

    async def _say(self, gone: asyncio.Task[bytes], writer: asyncio.StreamWriter) -> None:
        for number, word in enumerate(self.words):
            if number == self.breaks_after:
                writer.transport.abort()
                return
            waiting = asyncio.create_task(self.pace.wait())
            await asyncio.wait({waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                waiting.cancel()
                self.left.set()
                return
            await self._send(writer, {"content": word})
        await self._finish(writer, "stop")

    async def _finish(self, writer: asyncio.StreamWriter, reason: str) -> None:
        await self._send(writer, {}, reason)
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%b\r\n%b" % (len(done), done, LAST_FRAME))

    async def _send(self, writer: asyncio.StreamWriter, delta: dict[str, Any], reason: str | None = None) -> None:
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        await self.send_frame(data_frames({**chunk, "choices": [choice]})[0], writer)


@dataclass(frozen=True, slots=True)
class App:
    """The example as it runs, a pod, and a key that may read."""

    url: str
    process: Running
    model: Model
    pod: RunningPod
    key: str


@contextlib.asynccontextmanager
async def serving_app(
    cluster: Cluster, folder: Path, words: Sequence[str], *, idle_timeout_seconds: float = 60
) -> AsyncIterator[App]:
    """Start a pod, a model, and the example as `next start` does."""
    _, key = await make_key(cluster, "create", "produce", "read", "cancel")
    _, reading = await make_key(cluster, "read")
    pod = await guarded_pod(cluster, allowed_origins=frozenset("*"), idle_timeout_seconds=idle_timeout_seconds)
    async with Model(words) as model:
        given = {"BATON_URL": pod.url, "BATON_KEY": key, "MODEL_URL": f"{model.url}/v1"}
        given["BATON_WEBHOOK_SECRET"] = f"whsec_{base64.b64encode(WEBHOOK_SECRET).decode()}"
        # `exec` keeps the process: it is the server itself that a test kills.
        start = ["-c", 'exec "$0" "$@" 1>&2', str(node()), str(folder.parent / NEXT), "start"]
        start += ["-H", "127.0.0.1", "-p", "0"]
        env = environment(**given, **QUIET, NODE_OPTIONS=f"--import=data:text/javascript,{_THROWING}")
        async with running(*start, env=env, command=Path("/bin/sh"), cwd=folder) as process:
            url = (await process.said(r"Local:\s+(http://\S+)"))[1]
            yield App(url, process, model, pod, reading)
