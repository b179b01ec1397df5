"""Kills a generator's worker at every place in turn, and compares each continued answer with the undisturbed one.

The places are the writes of a stream: each event is one, and so is each state that is saved after it. Place 0 is before
the first write. All runs have the same stream id, so what a generator derives from it is equal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import orjson

from ..generators import Approval, Generator, can_continue
from ..generators.threaded import PlainGenerator
from ..observability.metrics import TokenMetrics
from ..worker import past
from .outbox import Kill
from .simulation import NEVER, Creation, Limits, Simulation
from .stream import SimulatedStream, generator_of

_SHOWN_PLACES: Final = 3
_MOST_DEADLINES: Final = 100
_CONTINUE: Final = (
    'Yield {"type": "continue", "after": request.so_far.seq} first and then only what is new, or save states, and '
    'yield {"type": "continue", "after": request.state_seq} first and what follows after the state.'
)
_ADVICE: Final = {
    "differs": f"The answer has something twice, or lacks something. {_CONTINUE}",
    "output_differs": "The generator does not repeat itself exactly. Make ids, times and random values in a step, "
    "derive them from request.stream_id, or keep them in the state.",
    "reset": f"Viewers lose what they have read, and the answer starts over. {_CONTINUE} If that is meant, give "
    "may_reset=True.",
    "twice": "Call what has side effects by `await request.step(name, function, …)`: its result is kept for the next "
    "run.",
    "status": "Look at the error: run the generator with kill_after at this event, and look at `exception`.",
}


class DoesNotSurvive(AssertionError):
    """A generator's answer does not survive the death of its worker. The message says where, and what to do."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with one continued answer: a kind, which has an advice, and a sentence."""

    kind: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Trial:
    """One kill: the number of the last event in the log, and whether a state was saved after it."""

    event: int
    after_state: bool
    resets: tuple[str, ...]  # the reasons
    repeated_tools: tuple[str, ...]
    troubles: tuple[Trouble, ...]

    @property
    def place(self) -> str:
        """Where the worker was killed."""
        if not self.event and not self.after_state:
            return "Before the first event"
        return f"After event {self.event}" + (" and the state saved there" if self.after_state else "")


@dataclass(frozen=True, slots=True)
class Survival:
    """What became of an answer whose worker was killed at every place.

    `undisturbed` is the answer without a kill. `resets` and `repeated_tools` count the kills after which viewers had to
    discard what they had, and after which a tool ran again.
    """

    undisturbed: SimulatedStream
    trials: Sequence[Trial] = field(default_factory=tuple)

    @property
    def kills(self) -> int:
        """How often a worker was killed."""
        return len(self.trials)

    @property
    def resets(self) -> int:
        """After how many kills the answer started over."""
        return sum(bool(trial.resets) for trial in self.trials)

    @property
    def repeated_tools(self) -> int:
        """After how many kills a tool ran twice."""
        return sum(bool(trial.repeated_tools) for trial in self.trials)


async def survives(
    generate: Generator | PlainGenerator,
    input: Any = None,  # noqa: A002
    *,
    metadata: Mapping[str, Any] | None = None,
    tenant: str = "",
    inputs: Sequence[Any] = (),
    approvals: Sequence[Approval] = (),
    may_reset: bool | None = None,
    may_repeat_tools: bool = False,
    timeout_seconds: float | None = 60,
) -> Survival:
    """Kill a generator's worker at every event and state in turn, and compare the answers. For a test.

    The generator must answer the same each time, so give it a model with fixed answers. What it keeps in the memory of
    the process is not lost here, as it would be with a worker.

    Args:
        generate: A generator function, async or not, or an object that is called like one.
        input: What the client sent.
        metadata: The labels of the stream.
        tenant: Whose stream it is.
        inputs: Inputs that are sent in turn, each when the stream waits for one. After the last one, deadlines pass.
        approvals: The tool calls that the user allowed.
        may_reset: Whether the answer may start over. Default: only that of a generator without `@baton.continues`.
        may_repeat_tools: Whether a tool may run twice outside of a step.
        timeout_seconds: How long one run may take.

    Raises:
        DoesNotSurvive: an answer differs, starts over, or runs a tool twice; or the undisturbed one is not completed.
    """
    generator = generator_of(generate)
    creation = Creation(input, metadata or {}, tenant, tuple(approvals), stream_id=uuid4())
    judge = _Judge(generator, creation, Limits.by_default(timeout_seconds), inputs)
    undisturbed = await judge.undisturbed()
    allowed = not can_continue(generator) if may_reset is None else may_reset
    trials = [
        await judge.try_kill(undisturbed, write, may_reset=allowed, may_repeat_tools=may_repeat_tools)
        for write in range(undisturbed.memory.writes)
    ]
    if any(trial.troubles for trial in trials):
        raise DoesNotSurvive(_message(trials))
    return Survival(SimulatedStream(undisturbed), trials)


def survives_sync(
    generate: Generator | PlainGenerator,
    input: Any = None,  # noqa: A002
    *,
    metadata: Mapping[str, Any] | None = None,
    tenant: str = "",
    inputs: Sequence[Any] = (),
    approvals: Sequence[Approval] = (),
    may_reset: bool | None = None,
    may_repeat_tools: bool = False,
    timeout_seconds: float | None = 60,
) -> Survival:
    """Do what `survives` does, for code without an event loop."""
    return asyncio.run(
        survives(
            generate,
            input,
            metadata=metadata,
            tenant=tenant,
            inputs=inputs,
            approvals=approvals,
            may_reset=may_reset,
            may_repeat_tools=may_repeat_tools,
            timeout_seconds=timeout_seconds,
        )
    )


class _Judge:
    """Runs one stream again and again."""

    def __init__(self, generator: Generator, creation: Creation, limits: Limits, replies: Sequence[Any]) -> None:
        self._generator = generator
        self._creation = creation
        self._limits = limits
        self._replies = replies
        self._metrics = TokenMetrics()

    async def undisturbed(self) -> Simulation:
        """Run the stream without a kill, twice, and return it.

        Raises:
            DoesNotSurvive: it is not completed, or the two differ.
        """
        first, second = await self._play(NEVER), await self._play(NEVER)
        end = _answer(first)["end"]
        if end[0] != "completed":
            raise DoesNotSurvive(
                f"Without any kill the stream ends as {' '.join(end)}: {first.error!r}."
            ) from first.error
        if _answer(first) != _answer(second):
            raise DoesNotSurvive(
                "Two answers without any kill differ, so kills cannot be judged. Use a model with fixed answers here."
            )
        return first

    async def try_kill(self, undisturbed: Simulation, write: int, *, may_reset: bool, may_repeat_tools: bool) -> Trial:
        """Kill the worker after a write, let another one continue, and compare the answers."""
        simulation = self._simulation()
        await self._play_on(simulation, Kill(event=0) if write == 0 else Kill(write=write))
        event = simulation.memory.tail
        saved = simulation.memory.saved
        after_state = saved is not None and saved.after_seq == event
        if simulation.killed:
            await simulation.take_over()
            await self._reach_deadlines(simulation)
        resets, repeated = _resets(simulation), _repeated_tools(simulation)
        troubles = [*_differences(_answer(undisturbed), _answer(simulation))]
        if resets and not may_reset:
            kind = "output_differs" if "output_differs" in resets else "reset"
            troubles.append(Trouble(kind, f"The answer starts over ({', '.join(resets)})."))
        if repeated and not may_repeat_tools:
            troubles.append(Trouble("twice", f"{', '.join(repeated)} ran twice."))
        return Trial(event, after_state, resets, repeated, tuple(troubles))

    def _simulation(self) -> Simulation:
        return Simulation(self._generator, self._creation, self._limits, replies=self._replies, metrics=self._metrics)

    async def _play(self, kill: Kill) -> Simulation:
        simulation = self._simulation()
        await self._play_on(simulation, kill)
        return simulation

    async def _play_on(self, simulation: Simulation, kill: Kill) -> None:
        await simulation.start(kill)
        await self._reach_deadlines(simulation, kill)

    async def _reach_deadlines(self, simulation: Simulation, kill: Kill = NEVER) -> None:
        deadlines = 0
        while simulation.memory.waited is not None or simulation.receives_for_a_time:
            deadlines += 1
            if deadlines > _MOST_DEADLINES:
                await simulation.close()
                raise DoesNotSurvive(
                    "The generator waits again after each deadline. Give what it waits for in `inputs`."
                )
            await simulation.expire(kill)
        if not simulation.at_rest:
            await simulation.close()
            raise DoesNotSurvive("The generator waits in `request.receive()` for an input. Give one more in `inputs`.")


def _answer(simulation: Simulation) -> dict[str, Any]:
    """Return what must be equal: what viewers have in the end, and how the stream ends."""
    lines = simulation.memory.lines
    so_far = past.of(lines, None).so_far
    done = orjson.loads(lines[-1]) if simulation.memory.ended else {}
    error = done.get("error") or {}
    return {
        "end": (str(done.get("status")), str(error.get("code") or done.get("finish_reason"))),
        "text": so_far.text,
        "reasoning": so_far.reasoning,
        "tool calls": so_far.tool_calls,
        "tool results": so_far.tool_results,
        "custom events": so_far.custom,
    }


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[Trouble]:
    if expected["end"] != found["end"]:
        return [Trouble("status", f"The stream ends as {' '.join(found['end'])}, not as {' '.join(expected['end'])}.")]
    return [
        Trouble(
            "differs",
            f"Viewers have other {name}:\n    undisturbed: {_cut(expected[name], found[name])}\n    "
            f"continued:   {_cut(found[name], expected[name])}",
        )
        for name in expected
        if expected[name] != found[name]
    ]


def _cut(value: Any, other: Any) -> str:
    """Return a value as text; a long one only from a little before it differs."""
    shown, against = repr(value), repr(other)
    same = next((place for place, pair in enumerate(zip(shown, against, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, same - 20) if len(shown) > 100 else 0
    return ("…" if start else "") + shown[start : start + 100] + ("…" if len(shown) > start + 100 else "")


def _resets(simulation: Simulation) -> tuple[str, ...]:
    events = map(orjson.loads, simulation.memory.lines)
    return tuple(str(event["reason"]) for event in events if event["type"] == "reset")


def _repeated_tools(simulation: Simulation) -> tuple[str, ...]:
    """Return the steps and the tools that ran twice.

    A tool's result that comes again after a reset is from a second run of the tool, unless a step had kept it.
    """
    memory = simulation.memory
    found = [step.name for step in memory.steps.values() if step.ran > 1]
    kept = sum(step.kept for step in memory.steps.values())
    names: dict[str, str] = {}
    before: set[str] = set()  # results before the last reset
    since: list[str] = []
    again: list[str] = []
    for event in map(orjson.loads, memory.lines):
        if event["type"] == "tool_call" and event.get("id"):
            names[event["id"]] = event.get("name") or event["id"]
        elif event["type"] == "reset":
            before, since = {*before, *since}, []
        elif event["type"] == "tool_result":
            since.append(event["id"])
            if event["id"] in before:
                again.append(names.get(event["id"], event["id"]))
    return (*found, *again[kept:])


def _message(trials: Sequence[Trial]) -> str:
    bad = [trial for trial in trials if trial.troubles]
    lines = [f"The answer does not survive the death of its worker at {len(bad)} of {len(trials)} places."]
    for trial in bad[:_SHOWN_PLACES]:
        lines += [f"{trial.place}:", *(f"  {trouble.sentence}" for trouble in trial.troubles)]
    if len(bad) > _SHOWN_PLACES:
        lines.append(f"… and at {len(bad) - _SHOWN_PLACES} more places.")
    kinds = dict.fromkeys(trouble.kind for trial in bad for trouble in trial.troubles)
    return "\n".join([*lines, *(f"→ {_ADVICE[kind]}" for kind in kinds)])
