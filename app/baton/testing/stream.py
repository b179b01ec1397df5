"""The streams that tests run: one for code with an event loop, and one for code without."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Self
from uuid import UUID, uuid4

from ..generators import Approval, Generator
from ..generators.preset import Preset
from ..generators.provider import Provider
from ..generators.registry import as_generator
from ..generators.threaded import PlainGenerator
from .outbox import Kill
from .simulation import Creation, Limits, Simulation
from .view import StreamView


def generator_of(generate: Generator | PlainGenerator) -> Generator:
    """Return what a worker makes of a generator.

    Raises:
        TypeError: it is not a generator function.
    """
    if isinstance(generate, Preset | Provider):
        return generate
    found = as_generator(generate)
    if found is None:
        raise TypeError(
            f"{generate!r:.80} is not a generator function: define it with `async def` or `def`, and `yield` what it "
            "generates. Pass the function itself, and not what it returns."
        )
    return found


class SimulatedStream(StreamView):
    """A stream whose workers are simulated in memory. `run` makes one.

    Use it on one event loop. It stands still between calls, unless it is `receiving`: then its generator is held.
    """

    async def continue_(self, *, kill_after: int | None = None) -> Self:
        """Let another worker continue after a kill; return the same stream.

        Raises:
            ValueError: its worker was not killed.
        """
        if not self.killed:
            raise ValueError(f"The stream is {self.status}, and was not killed. Give kill_after=n before.")
        await self._simulation.take_over(Kill(kill_after))
        return self

    async def send(self, data: Any, *, kill_after: int | None = None) -> Self:
        """Send an input: it wakes a stream that waits, and `receive` returns it.

        Raises:
            ValueError: the stream has ended. If its worker was killed, the input is kept for the next run.
        """
        await self._simulation.send(data, kill=Kill(kill_after))
        return self

    async def expire(self, *, kill_after: int | None = None) -> Self:
        """Reach the deadline of a wait or of a `receive`, without waiting for it.

        Raises:
            ValueError: there is no deadline.
        """
        await self._simulation.expire(Kill(kill_after))
        return self

    async def close(self) -> None:
        """Stop a generator that is held in `receive`. Another stream needs no close."""
        await self._simulation.close()


class SyncStream(StreamView):
    """A `SimulatedStream` for code without an event loop: its methods return when the stream stands still."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self._stream = SimulatedStream(simulation)
        self._runner: asyncio.Runner | None = None

    def continue_(self, *, kill_after: int | None = None) -> Self:
        """Let another worker continue after a kill; return the same stream."""
        self.play(self._stream.continue_(kill_after=kill_after))
        return self

    def send(self, data: Any, *, kill_after: int | None = None) -> Self:
        """Send an input: it wakes a stream that waits, and `receive` returns it."""
        self.play(self._stream.send(data, kill_after=kill_after))
        return self

    def expire(self, *, kill_after: int | None = None) -> Self:
        """Reach the deadline of a wait or of a `receive`, without waiting for it."""
        self.play(self._stream.expire(kill_after=kill_after))
        return self

    def close(self) -> None:
        """Stop a generator that is held in `receive`. Another stream needs no close."""
        self.play(self._stream.close())

    def play(self, work: Coroutine[Any, Any, object]) -> None:
        """Run some work. The event loop lives on only while it holds a generator."""
        runner = self._runner = self._runner or asyncio.Runner()
        try:
            runner.run(work)
        finally:
            if self._simulation.at_rest:
                runner.close()
                self._runner = None


async def run(
    generate: Generator | PlainGenerator,
    input: Any = None,  # noqa: A002
    *,
    metadata: Mapping[str, Any] | None = None,
    tenant: str = "",
    inputs: Sequence[Any] = (),
    inputs_after: Mapping[int, Any] | None = None,
    approvals: Sequence[Approval] = (),
    kill_after: int | None = None,
    flush_every: int = 1,
    stream_id: UUID | None = None,
    timeout_seconds: float | None = 60,
) -> SimulatedStream:
    """Run a generator for a stream in memory until it ends, waits for an input that nobody sends, or is killed.

    Args:
        generate: A generator function, async or not, or an object that is called like one.
        input: What the client sent, any JSON.
        metadata: The labels of the stream.
        tenant: Whose stream it is.
        inputs: Inputs that are sent in turn, each when the stream waits for one.
        inputs_after: Inputs that arrive when the log has the event with that number, also if nothing waits for them.
        approvals: The tool calls that the user allowed.
        kill_after: Kill the worker, as SIGKILL does, when it has yielded the event with this number. Only what was
            flushed remains, and steps that were kept. 0: at its first event, before that is flushed. In the process
            of the test, `finally` blocks of the generator still run.
        flush_every: How many events a flush has. After a kill up to `flush_every - 1` yielded events are lost.
        stream_id: The id of the stream. Default: a random one.
        timeout_seconds: How long one run may take.

    Raises:
        TypeError: `generate` is not a generator function.
        TimeoutError: a run took too long, and was stopped.
    """
    creation = Creation(
        input,
        metadata or {},
        tenant,
        tuple(approvals),
        stream_id=stream_id or uuid4(),
        inputs_after=inputs_after or {},
    )
    limits = Limits.by_default(timeout_seconds)
    stream = SimulatedStream(
        Simulation(generator_of(generate), creation, limits, replies=inputs, flush_every=flush_every)
    )
    await stream._simulation.start(Kill(kill_after))
    return stream


def run_sync(
    generate: Generator | PlainGenerator,
    input: Any = None,  # noqa: A002
    *,
    metadata: Mapping[str, Any] | None = None,
    tenant: str = "",
    inputs: Sequence[Any] = (),
    inputs_after: Mapping[int, Any] | None = None,
    approvals: Sequence[Approval] = (),
    kill_after: int | None = None,
    flush_every: int = 1,
    stream_id: UUID | None = None,
    timeout_seconds: float | None = 60,
) -> SyncStream:
    """Do what `run` does, for code without an event loop."""
    creation = Creation(
        input,
        metadata or {},
        tenant,
        tuple(approvals),
        stream_id=stream_id or uuid4(),
        inputs_after=inputs_after or {},
    )
    limits = Limits.by_default(timeout_seconds)
    simulation = Simulation(generator_of(generate), creation, limits, replies=inputs, flush_every=flush_every)
    stream = SyncStream(simulation)
    stream.play(simulation.start(Kill(kill_after)))
    return stream
