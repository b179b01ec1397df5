"""Steps: functions, such as tools, that run once for each stream, even if its generator runs several times.

A step's result is kept under its key, and given again when the generator runs again. The key is the step's name, a
digest of its arguments, and its occurrence, which counts the calls with the same name and arguments in one run.

`Steps` belongs to one run, on one event loop. Where results are kept is up to its store: in memory, or in the database
of a worker. Steps may run at the same time. `thread_calls` is for generators that have no event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import hashlib
import inspect
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from uuid import UUID

import orjson

from ..errors import StepError
from ..events import clean

MAX_NAME_CHARACTERS: Final = 200
MAX_RESULT_BYTES: Final = 1 << 20

Result = TypeVar("Result")

_idempotency_key: contextvars.ContextVar[str] = contextvars.ContextVar("baton_idempotency_key")


class StepKey(NamedTuple):
    """What a step's result is kept under."""

    name: str
    digest: bytes  # of the arguments
    occurrence: int  # 0 for the first call with this name and these arguments in a run

    def idempotency_key(self, stream_id: UUID) -> str:
        """Return a UUID that is the same whenever this step of the stream runs, and for no other step."""
        return str(uuid.uuid5(stream_id, f"{self.occurrence} {self.digest.hex()} {self.name}"))


class StepStore(Protocol):
    """Keeps the results of one stream's steps, as JSON."""

    async def find(self, key: StepKey) -> bytes | None:
        """Return the result that a former run kept. Each key is asked for once in a run."""

    async def keep(self, key: StepKey, result: bytes) -> bytes:
        """Keep a result for good, and return what is kept: the first result of this key."""

    def restart(self) -> None:
        """Note that the generator is called again, and will ask for the results that were kept."""


class StepCall(NamedTuple):
    """A function that a generator calls as a step, with its positional and named arguments."""

    stream_id: UUID
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    def make(self) -> Any:
        """Call the function, and return what it returns."""
        return self.function(*self.arguments, **self.named)


class StepRunner(Protocol):
    """Runs the steps of a request: `Steps`, or `WaitingSteps`."""

    def call(self, step: StepCall) -> Any:
        """Return a step to await; the result of the step, to code that has no event loop."""


class StepMemory:
    """Keeps results in memory, for a generator that runs without a worker, as in a unit test."""

    def __init__(self) -> None:
        self._results: dict[StepKey, bytes] = {}

    async def find(self, key: StepKey) -> bytes | None:
        """Return the result that was kept."""
        return self._results.get(key)

    async def keep(self, key: StepKey, result: bytes) -> bytes:
        """Keep a result; return the first result of this key."""
        return self._results.setdefault(key, result)

    def restart(self) -> None:
        """Do nothing: everything is here."""


class Steps:
    """Runs the steps of one run.

    `used` is whether any was called, `running` how many run now, and `ended_at` the moment at which the last one ended
    (`time.monotonic`).
    """

    def __init__(self, store: StepStore | None = None, *, max_result_bytes: int = MAX_RESULT_BYTES) -> None:
        self._store = store or StepMemory()
        self._by_itself = store is None
        self._max_result_bytes = max_result_bytes
        self._occurrences: Counter[tuple[str, bytes]] = Counter()
        self._on_idle: Callable[[], None] | None = None  # once no step may begin
        self.used = False
        self.running = 0
        self.ended_at = 0.0

    def call(self, step: StepCall) -> Any:
        """Return a step to await. Its occurrence is decided here, by the order of the calls.

        Without a worker and without an event loop, as in a unit test of a plain generator, return the step's result.

        Raises:
            StepError: the name, the function or the arguments are unusable.
        """
        _check(step.name, step.function)
        self.used = True
        digest = _digest(step.name, [step.arguments, step.named])
        key = StepKey(step.name, digest, self._occurrences[step.name, digest])
        self._occurrences[step.name, digest] += 1
        running = self._run(key, step)
        return asyncio.run(running) if self._by_itself and not on_event_loop() else running

    def restart(self) -> None:
        """Count occurrences from 0 again: the generator is called again in the same run."""
        self._occurrences.clear()
        self._store.restart()

    def close(self, on_idle: Callable[[], None]) -> None:
        """Let no further step begin, and call `on_idle` as soon as none runs.

        Who calls a step after this waits until it is cancelled. A step that a running one calls still begins.
        """
        self._on_idle = on_idle
        if not self.running:
            on_idle()

    async def _run(self, key: StepKey, step: StepCall) -> Any:
        if self._on_idle is not None and _idempotency_key.get(None) is None:
            await asyncio.Event().wait()
        with self._counted():
            kept = await self._store.find(key)
            if kept is None:
                with _with_idempotency_key(key.idempotency_key(step.stream_id)):
                    result = await result_of(step.make, step.function)
                kept = await self._store.keep(key, self._encode(key.name, result))
            # What was kept, and not what the function returned: the first run gets the same as every other.
            return orjson.loads(kept)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self.ended_at = time.monotonic()
            if self._on_idle is not None and not self.running:
                self._on_idle()

    def _encode(self, name: str, result: Any) -> bytes:
        """Encode a result as JSON.

        Raises:
            StepError: it is not JSON, or it is too large.
        """
        try:
            encoded = _json(result)
        except (TypeError, RecursionError) as error:
            raise StepError(
                f"The function of the step {name!r} returned a value that JSON cannot represent, so its result cannot "
                f"be kept: {error}. Return text, numbers, lists and dicts."
            ) from None
        if len(encoded) > self._max_result_bytes:
            raise StepError(
                f"The result of the step {name!r} has {len(encoded)} bytes as JSON, and at most "
                f"{self._max_result_bytes} can be kept (BATON_MAX_EVENT_BYTES). Store it elsewhere in the function, "
                "and return where it is."
            )
        return encoded


def on_event_loop() -> bool:
    """Return whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def idempotency_key() -> str:
    """Return a key for the side effect of the step whose function runs now: a UUID.

    It is the same whenever the step runs again, also on another worker. So a service that takes such a key, for example
    in a header `Idempotency-Key`, does the work once, even if a worker dies between the function's return and the
    moment at which its result is kept.

    Raises:
        StepError: no function of a step runs here.
    """
    key = _idempotency_key.get(None)
    if key is None:
        raise StepError(
            "There is no idempotency key here. Call baton.idempotency_key() in the function that a generator passes to "
            "request.step()."
        )
    return key


def _check(name: object, function: object) -> None:
    """Reject a name that cannot be kept, and a function that was called instead of passed."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise StepError(
            f"The name of a step must be a string of 1 to {MAX_NAME_CHARACTERS} printable characters, not {name!r:.80}."
        )
    if not callable(function):
        raise StepError(
            f"The step {name!r} needs a function and its arguments, not a {type(function).__name__}: "
            f"await request.step({name!r}, function, argument)."
        )


def _digest(name: str, arguments: Any) -> bytes:
    """Return the digest of a step's arguments as JSON with sorted keys.

    Raises:
        StepError: they are not JSON.
    """
    try:
        return hashlib.sha256(_json(arguments, orjson.OPT_SORT_KEYS)).digest()
    except (TypeError, RecursionError) as error:
        raise StepError(
            f"An argument of the step {name!r} is no JSON: {error}. The arguments identify the step when the generator "
            "runs again. Bind other values, such as a client, to the function: "
            f"await request.step({name!r}, functools.partial(function, client), argument)."
        ) from None


def _json(value: Any, option: int = 0) -> bytes:
    """Encode a value as JSON. Lone surrogates become U+FFFD."""
    try:
        return orjson.dumps(value, option=option)
    except TypeError:
        return orjson.dumps(clean(value), option=option)


@contextlib.contextmanager
def _with_idempotency_key(key: str) -> Iterator[None]:
    token = _idempotency_key.set(key)
    try:
        yield
    finally:
        _idempotency_key.reset(token)


async def result_of(call: Callable[[], Any], function: Callable[..., Any]) -> Any:
    """Return what a call of a function returns: await an async function here, and run a plain one in a thread."""
    if inspect.iscoroutinefunction(function):
        return await call()
    result = await _in_thread(call)
    # For example a lambda that calls an async function.
    return await result if inspect.isawaitable(result) else result


async def _in_thread(call: Callable[[], Result]) -> Result:
    """Call a function in a thread of its own, with the context variables of the caller.

    A slow tool must not take the place of others, nor of the look-ups of hosts, as it would in the threads that the
    loop has in common. It must not keep the process from its end either, so the thread is a daemon. If the caller is
    cancelled, the function continues, and its result is dropped.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Result] = loop.create_future()
    context = contextvars.copy_context()

    def settle(result: Any, error: BaseException | None) -> None:
        if answer.done():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(call)
        except BaseException as raised:  # noqa: BLE001
            error = raised
            if isinstance(raised, StopIteration) or not isinstance(raised, Exception | asyncio.CancelledError):
                # In a task the first would end a coroutine, and the others, such as SystemExit, the whole worker.
                error = RuntimeError(f"The function raised {type(raised).__name__}.")
                error.__cause__ = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="baton step", daemon=True).start()
    return await answer
