"""`baton run`: runs a generator in the terminal, without a database, a pod or a worker.

It is simulated as in `baton.testing`. A generator that waits for an input asks at the terminal: for approvals yes or no
for each call, otherwise a line of text. Nothing else of the process runs meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import orjson
import uvloop
from rich.console import Console

from ..errors import ConfigurationError, GenerationError
from ..events import read_json
from ..generators import Generator
from ..generators.registry import close_generators, configured_names, load_generators, load_target, what_is_missing
from ..settings import Settings
from ..snapshot import Snapshot
from ..testing.dialects import NAMES, Client
from ..testing.memory import Observer
from ..testing.outbox import Kill
from ..testing.simulation import NEVER, Creation, Limits, Simulation
from .terminal import AnswerPrinter, Flow, Output, end_words, words_of_wait

_YES: Final = frozenset({"y", "yes"})


@dataclass(frozen=True, slots=True)
class Request:
    """What to run, with which input, and how to show it. `replies` are sent in turn when the generator waits."""

    target: str
    input: Any = None
    replies: Sequence[Any] = ()
    kill_after: int | None = None
    dialect: str | None = None
    as_json: bool = False


def input_of(given: str) -> Any:
    """Return the value of `--input`: a file's content or the value itself, as JSON.

    Raises:
        ConfigurationError: it is neither.
    """
    if given == "-":
        return _parsed(sys.stdin.read(), "The text on standard input")
    with contextlib.suppress(OSError, ValueError):
        if Path(given).is_file():
            return _parsed(Path(given).read_text(), f"The file {given}")
    return _parsed(given, f"{given!r:.80} is no file, and")


def replies_of(given: Sequence[str]) -> list[Any]:
    """Return the values of `--reply`.

    Raises:
        ConfigurationError: one is not JSON.
    """
    return [_parsed(item, f"The reply {item!r:.80}") for item in given]


def run(settings: Settings, request: Request) -> int:
    """Run a generator to its end; return 0 if the answer is completed, else 1.

    Raises:
        ConfigurationError: the generator or the dialect does not exist.
    """
    if request.dialect is not None and request.dialect not in NAMES:
        raise ConfigurationError(f"There is no dialect {request.dialect!r:.80}. Choose one of {', '.join(NAMES)}.")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    # What the generator raises is printed in the end, without the frames of Baton.
    logging.getLogger("baton.worker.run").setLevel(logging.CRITICAL)
    return uvloop.run(_run(settings, request))


async def _run(settings: Settings, request: Request) -> int:
    async with _loaded(settings, request.target) as generator:
        watching = _Watching(asyncio.current_task())
        creation = Creation(request.input, name=request.target)
        simulation = Simulation(generator, creation, Limits.of(settings), replies=request.replies, observer=watching)
        watching.display = display = _display(request, simulation)
        try:
            status = await _play(simulation, Kill(request.kill_after), display)
        except asyncio.CancelledError:
            if watching.broken_pipe is None:
                raise
            raise watching.broken_pipe from None
        finally:
            await simulation.close()
        if simulation.error is not None:
            for line in _traceback(simulation.error).splitlines():
                display.remark(line, "red")
        return 0 if status == "completed" else 1


async def _play(simulation: Simulation, kill: Kill, display: _Display) -> str | None:
    """Play a stream with the person at the terminal; return its final status, None if it has no end."""
    await simulation.start(kill)
    while not simulation.memory.ended:
        if simulation.killed:
            display.remark(f"· the worker was killed after event {simulation.memory.tail}", "yellow")
            kill = NEVER
            await simulation.take_over()
            continue
        if not sys.stdin.isatty():
            display.fail("The generator waits for an input. Run it in a terminal, or give --reply JSON.")
            return None
        if inputs := _asked(simulation, display):
            await simulation.send(*inputs, kill=kill)
        elif simulation.memory.waited is not None or simulation.receives_for_a_time:
            display.remark("· the deadline is over", "dim")
            await simulation.expire(kill)
        else:
            display.fail("The generator waits for an input, and got none.")
            return None
    display.end()
    return display.status


def _traceback(error: BaseException) -> str:
    """Return what a generator has raised, with its own frames only."""
    if isinstance(error, GenerationError):
        return f"{type(error).__name__}: {error}"
    found = traceback.TracebackException.from_exception(error)
    package = str(Path(__file__).parents[1])
    found.stack = traceback.StackSummary.from_list(
        [frame for frame in found.stack if not frame.filename.startswith(package)]
    )
    return "".join(found.format()).rstrip()


@contextlib.asynccontextmanager
async def _loaded(settings: Settings, target: str) -> AsyncIterator[Generator]:
    """Load the generator of a target, and close it in the end.

    Raises:
        ConfigurationError: it does not exist or cannot be loaded; the message says what to do.
    """
    if ":" in target and target not in settings.models:
        found = {target: load_target(target)}
    else:
        if target not in configured_names(settings):
            raise ConfigurationError(_unknown(settings, target))
        found = load_generators(settings.model_copy(update={"enabled_generators": frozenset({target})}))
    try:
        yield found[target]
    finally:
        await close_generators(found)


def _unknown(settings: Settings, target: str) -> str:
    if missing := what_is_missing(settings, target):
        return missing
    known = ", ".join(sorted(configured_names(settings)))
    return (
        f"There is no generator {target!r:.80}. Name the function of yours as module:function, such as "
        f"my_agent:generate, or one that is configured here: {known}."
    )


def _parsed(text: str, what: str) -> Any:
    try:
        return read_json(text)
    except ValueError:
        raise ConfigurationError(f"{what} is not JSON. Write a text as PROMPT, or as JSON: '\"text\"'.") from None


# What the generator waits for, and the answers of the person at the terminal.


def _asked(simulation: Simulation, display: _Display) -> list[Any]:
    """Ask for what the generator waits for; return the inputs, none at the end of standard input."""
    display.pause()
    waited = simulation.memory.waited
    reason = waited.reason if waited is not None else None
    try:
        if isinstance(reason, Mapping) and reason.get("type") == "approval" and reason.get("calls"):
            calls = {call["id"]: call for call in Snapshot.of(simulation.memory.lines, 0).tool_calls}
            return [_approval(str(call_id), calls.get(call_id), display) for call_id in reason["calls"]]
        return [_message(display.ask("Your reply (Ctrl-D: no reply): "))]
    except EOFError:
        display.remark("")
        return []


def _approval(call_id: str, call: Mapping[str, Any] | None, display: _Display) -> dict[str, Any]:
    shown = call_id if call is None else f"{call['name']} {call['arguments']}"
    approved = display.ask(f"Allow {shown:.200}? [y/N] ").strip().lower() in _YES
    return {"type": "approval", "call_id": call_id, "approved": approved, "reason": None}


def _message(line: str) -> Any:
    """Return a line as a message; as it is if it is a JSON object."""
    if line.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):
            return read_json(line)
    return {"type": "message", "message": {"role": "user", "content": line}}


# The forms of output.


class _Display(Protocol):
    """Prints what happens to a stream."""

    status: str | None

    def event(self, seq: int, event: Mapping[str, Any]) -> None: ...

    def step(self, name: str, *, kept: bool) -> None: ...

    def state(self, state: Any) -> None: ...

    def remark(self, text: str, style: str = "") -> None: ...

    def pause(self) -> None: ...

    def ask(self, question: str) -> str: ...

    def fail(self, sentence: str) -> None: ...

    def end(self) -> None: ...


class _Watching(Observer):
    """Passes what happens to a display, which is made after the stream that it may read.

    If nobody reads the output any more, it cancels the task of the command: an exception would be the generator's.
    """

    display: _Display

    def __init__(self, command: asyncio.Task[Any] | None) -> None:
        self.broken_pipe: BrokenPipeError | None = None
        self._command = command

    def event(self, seq: int, event: Mapping[str, Any]) -> None:
        """Print an event."""
        if self.broken_pipe is not None or self._command is None:
            return
        try:
            self.display.event(seq, event)
        except BrokenPipeError as error:
            self.broken_pipe = error
            self._command.cancel()

    def step(self, name: str, *, kept: bool) -> None:
        """Print a step."""
        self.display.step(name, kept=kept)

    def state(self, state: Any) -> None:
        """Note a state."""
        self.display.state(state)


def _display(request: Request, simulation: Simulation) -> _Display:
    if request.as_json:
        return _Lines()
    if request.dialect is not None:
        return _Wire(Client(request.dialect, simulation.memory, simulation.creation))
    return _Screen()


class _Plain:
    """Prints the answer to standard output, and everything else to standard error."""

    def __init__(self) -> None:
        self.status: str | None = None
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def event(self, seq: int, event: Mapping[str, Any]) -> None:
        """Print an event, and note the end."""
        self.status = event.get("status")
        self._write(self._encoded(seq, event))

    def step(self, name: str, *, kept: bool) -> None:
        """Do nothing: a step is no event."""

    def state(self, state: Any) -> None:
        """Do nothing: a state is no event."""

    def remark(self, text: str, style: str = "") -> None:
        """Print a remark."""
        self._errors.print(text, style=style or None, markup=False)

    def pause(self) -> None:
        """Do nothing: every output ends with a line break."""

    def ask(self, question: str) -> str:
        """Print a question, and return the line that follows."""
        self._errors.print(question, end="", markup=False)
        return input()

    def fail(self, sentence: str) -> None:
        """Print why the stream does not end."""
        self._errors.print(f"baton: {sentence}", markup=False)

    def end(self) -> None:
        """Do nothing: the end is an event."""

    def _encoded(self, seq: int, event: Mapping[str, Any]) -> bytes:
        raise NotImplementedError

    def _write(self, output: bytes) -> None:
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()


class _Lines(_Plain):
    """Prints one line of JSON for each event, as `baton tail --json` does."""

    def _encoded(self, seq: int, event: Mapping[str, Any]) -> bytes:
        return orjson.dumps({"seq": seq, **event}, option=orjson.OPT_APPEND_NEWLINE)


class _Wire(_Plain):
    """Prints what a client of a dialect gets."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def end(self) -> None:
        """Say how the connection ends, if that matters."""
        if self._client.cut:
            self.remark("· the connection breaks here: the format cannot say what has happened", "yellow")

    def _encoded(self, seq: int, event: Mapping[str, Any]) -> bytes:
        return self._client.read()


@dataclass
class _Screen:
    """Prints the answer as it arrives, with its steps, and a summary in the end."""

    status: str | None = None
    _console: Output = field(default_factory=Output)
    _states: int = 0
    _state: Any = None

    def __post_init__(self) -> None:
        self._flow = Flow(self._console)
        self._answer = AnswerPrinter(self._flow)
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True)

    def event(self, seq: int, event: Mapping[str, Any]) -> None:
        """Print an event."""
        if event["type"] == "done":
            self._end(event)
        elif (sentence := words_of_wait(dict(event))) is not None:
            self._answer.end()
            self.remark(f"· {sentence}", "magenta")
        else:
            self._answer.show(dict(event))

    def step(self, name: str, *, kept: bool) -> None:
        """Print a step."""
        self.remark(f"· step {name}: " + ("kept from an earlier run" if kept else "ran"), "dim")

    def state(self, state: Any) -> None:
        """Count a state: some generators save one after each event."""
        self._states, self._state = self._states + 1, state

    def remark(self, text: str, style: str = "") -> None:
        """Print a line that is not part of the answer."""
        if self._console.is_terminal:
            self._flow.line(text, style or None)
        else:
            self._errors.print(text, markup=False)

    def pause(self) -> None:
        """Show everything that has arrived."""
        self._answer.end()

    def ask(self, question: str) -> str:
        """Print a question, and return the line that follows."""
        self._console.print(question, end="", style="yellow", markup=False, highlight=False)
        return input()

    def fail(self, sentence: str) -> None:
        """Print why the stream does not end."""
        self._answer.end()
        self._errors.print(f"baton: {sentence}", markup=False)

    def end(self) -> None:
        """Do nothing: the end is an event."""

    def _end(self, event: Mapping[str, Any]) -> None:
        self.status = event.get("status")
        self._answer.end()
        if event.get("usage"):
            counts = (f"{name} {count:g}" for name, count in event["usage"].items())
            self.remark(f"· usage: {', '.join(counts)}", "dim")
        if self._states:
            shown = orjson.dumps(self._state).decode()
            count = "1 state" if self._states == 1 else f"{self._states} states"
            self.remark(f"· saved {count}, the last: {shown:.120}", "dim")
        self.remark(end_words(dict(event)), "green" if self.status == "completed" else "red")
