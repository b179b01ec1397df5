"""A pod's way into the log for producers: what is appended over HTTP is committed in groups.

While one statement is in flight, the appends that arrive form the next group, of all producers and streams on this pod.
So a busy pod makes few commits, and an idle one answers after one. The appends of one stream in a group become one
batch. What each of them means is decided in order (`external_appends.State`), on the state that the pod remembers: a
group whose streams are all known costs one round trip. See `external_appends` for what makes that safe.

An append whose outcome is unknown, since the connection was lost, is decided again from the log if it has a producer:
if it was written, it is a duplicate now. Without a producer it fails, and its client cannot know.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final
from uuid import UUID

from .. import usage
from ..backoff import Backoff
from ..db import event_log, external_appends
from ..db.event_log import Append
from ..db.external_appends import Appended, AppendRequest, Refused, Standing, State, Write
from ..db.external_streams import GENERATOR
from ..db.postgres import DATA_ERRORS, Connection, connect
from ..db.reconnecting import FAILURES, keep_connected
from ..errors import Unavailable
from ..events import join_lines
from ..hints.hints import Hints
from ..observability import stream_end
from ..outcome import Outcome, Timings
from ..settings import Settings

logger = logging.getLogger(__name__)

# The most bytes of messages in one statement, unless one append is larger.
GROUP_BYTES: Final = 4 << 20
MOST_STATES: Final = 10_000
# Each time, somebody else wrote to the stream between the read of its state and the write.
MOST_TRIES: Final = 20

_UNKNOWN: Final = "The service did not answer in time, and may have stored this. Send it again if that does no harm."
_LATER: Final = "The service cannot store this at the moment. Try again shortly."
_UNSETTLED: Final = "The database has failed over, and it is not clear yet whether this stream is complete."


@dataclass(slots=True, eq=False)
class _Waiting:
    """An append that waits for its commit."""

    request: AppendRequest
    answer: asyncio.Future[Appended | Refused]
    tries: int = 0

    @property
    def key(self) -> tuple[UUID, str]:
        return self.request.stream_id, self.request.producer_id


@dataclass(slots=True)
class _Plan:
    """What a group does with one stream: its state before and after, and all answers, in order.

    `is_doubtful`: the state may be too old for the next append to this stream.
    """

    before_tail: int
    after: State
    accepted: list[AppendRequest] = field(default_factory=list)
    answers: list[tuple[_Waiting, Appended | Refused]] = field(default_factory=list)
    is_doubtful: bool = False
    standing: Standing | None = None  # of a stream that ends

    @property
    def ending(self) -> AppendRequest | None:
        """The append that ends the stream."""
        last = self.accepted[-1] if self.accepted else None
        return last if last is not None and last.outcome is not None else None


class AppendQueue:
    """Appends to external streams. It belongs to a pod, which awaits `run()`; requests await `append`."""

    def __init__(
        self, settings: Settings, hints: Hints, *, on_group: Callable[[int], None] = lambda _streams: None
    ) -> None:
        """`on_group` is called with the number of streams that a statement wrote to."""
        self._settings = settings
        self._on_group = on_group
        self._hints = hints
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._states: OrderedDict[UUID, State] = OrderedDict()

    async def append(self, request: AppendRequest) -> Appended | Refused:
        """Append, and return once that is committed, or why it was refused.

        Raises:
            Unavailable: the database does not answer. Without a producer, the append may still have been written.
        """
        item = _Waiting(request, asyncio.get_running_loop().create_future())
        self._waiting.append(item)
        self._wake.set()
        try:
            async with asyncio.timeout(self._settings.database_timeout_seconds):
                return await item.answer
        except TimeoutError:
            raise Unavailable(_UNKNOWN, operator="the database did not commit an append in time") from None

    def distrust(self) -> None:
        """Read all states again: the database may have gone back in time."""
        self._states.clear()

    async def run(self) -> None:
        """Write until cancelled. There is a connection from the first append on."""
        await self._wake.wait()
        try:
            await keep_connected(self._connect, self._serve, on_failure=self._on_failure)
        finally:
            for item in self._waiting:
                _refuse(item, Unavailable(_LATER))

    async def _connect(self) -> Connection:
        return await connect(
            self._settings.dsn,
            timeout_seconds=self._settings.database_timeout_seconds,
            name="baton pod append",
            prepare=self._settings.prepare,
            by_index=True,
        )

    def _on_failure(self, error: Exception) -> None:
        logger.warning("Appends of producers cannot be written: %r", error)
        self._states.clear()

    async def _serve(self, connection: Connection, backoff: Backoff) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while group := self._next_group():
                await self._answer(connection, group)
                while len(self._states) > MOST_STATES:
                    self._states.popitem(last=False)
                backoff.reset()

    def _next_group(self) -> list[_Waiting]:
        """Take the appends that wait, up to `GROUP_BYTES`. Those that nobody waits for any more are left out."""
        group: list[_Waiting] = []
        size = 0
        while self._waiting and (not group or size < GROUP_BYTES):
            item = self._waiting.popleft()
            if not item.answer.done():
                group.append(item)
                size += item.request.size_bytes
        return group

    async def _answer(self, connection: Connection, group: list[_Waiting]) -> None:
        """Decide and write a group, and answer it."""
        plans: dict[UUID, _Plan] = {}
        try:
            fresh = await self._read(connection, group)
            plans = await self._decide(connection, group, fresh)
            if plans:
                await self._write(connection, plans)
        except FAILURES as error:
            self._fail(group, plans, error)
            raise

    def _fail(self, group: list[_Waiting], plans: dict[UUID, _Plan], error: Exception) -> None:
        """After a lost connection, keep what can be decided again, and answer the rest."""
        sent = {id(request) for plan in plans.values() for request in plan.accepted}
        again = []
        put_back = set(self._waiting)  # some of the group are, if their decision needs a newer state
        for item in group:
            if id(item.request) in sent and item.request.producer is None:
                _refuse(item, Unavailable(_UNKNOWN, operator=f"an append has an unknown outcome: {error!r}"))
            elif not item.answer.done() and item not in put_back:
                again.append(item)
        self._put_back(again)

    async def _read(self, connection: Connection, group: list[_Waiting]) -> set[UUID]:
        """Read the states that are not known, or lack a producer; return the streams whose states are fresh."""
        lacking = {item.request.stream_id for item in group if not self._knows(item)}
        if not lacking:
            return set()
        wanted = {item.key for item in group if item.request.stream_id in lacking}
        for stream_id in lacking:
            self._states.pop(stream_id, None)
        self._states.update(await external_appends.read(connection, sorted(wanted)))
        return lacking

    def _knows(self, item: _Waiting) -> bool:
        state = self._states.get(item.request.stream_id)
        return state is not None and not state.rewound and item.request.producer_id in state.known

    async def _decide(self, connection: Connection, group: list[_Waiting], fresh: set[UUID]) -> dict[UUID, _Plan]:
        """Decide what each append does, stream by stream; answer the streams in which nothing is to be written."""
        by_stream: defaultdict[UUID, list[_Waiting]] = defaultdict(list)
        for item in group:
            by_stream[item.request.stream_id].append(item)
        plans: dict[UUID, _Plan] = {}
        for stream_id, items in by_stream.items():
            state = self._states.get(stream_id)
            if state is None:
                _settle((item, Refused("not_found")) for item in items)
                continue
            if state.rewound and not state.closed and not await self._prove(connection, items, state):
                self._refuse_unproved(items, state)
                continue
            plan = self._plan(items, state, is_fresh=stream_id in fresh)
            if plan.accepted:
                plans[stream_id] = plan
            else:
                _settle(plan.answers)
        return plans

    def _plan(self, items: list[_Waiting], state: State, *, is_fresh: bool) -> _Plan:
        """Decide the appends to one stream, in order. Those that a newer state may answer otherwise are put back."""
        plan = _Plan(state.tail, state.copy())
        for position, item in enumerate(items):
            found = plan.after.accept(item.request, max_bytes=self._settings.max_external_bytes)
            if not (is_fresh or found.is_final):
                plan.is_doubtful = True
                self._states.pop(item.request.stream_id, None)
                self._put_back(items[position:])
                break
            if isinstance(found, Appended) and not found.duplicate:
                plan.accepted.append(item.request)
            plan.answers.append((item, found))
        return plan

    async def _prove(self, connection: Connection, items: list[_Waiting], state: State) -> bool:
        """After a failover, return whether one of these appends proves that nothing was lost.

        Nothing proves the opposite: an append whose number is too high may have overtaken the one before it. Unless
        that comes, the stream ends once it is overdue (`external_upkeep`).
        """
        if not any(state.is_continued_by(item.request.producer) for item in items):
            return False
        await external_appends.adopt(connection, items[0].request.stream_id, state.tail)
        state.rewound = False
        return True

    def _refuse_unproved(self, items: list[_Waiting], state: State) -> None:
        """Answer what the log still has, and ask for the rest again, until the stream is proved complete or ends."""
        for item in items:
            found = state.copy().accept(item.request, max_bytes=self._settings.max_external_bytes)
            if isinstance(found, Appended) and found.duplicate:
                _settle([(item, found)])
            else:
                _refuse(item, Unavailable(_UNSETTLED))

    async def _write(self, connection: Connection, plans: dict[UUID, _Plan]) -> None:
        """Write the plans, each as one batch. Appends to streams that others wrote to meanwhile are decided again."""
        ends = await self._ends(connection, plans)
        writes = [_write_of(stream_id, plan, ends.get(stream_id)) for stream_id, plan in plans.items()]
        written, faults = await self._written(connection, writes)
        self._hints.send(*[_append_of(item) for item in writes if item.stream_id in written])
        self._note([item for item in writes if item.stream_id in written], plans)
        for stream_id, plan in plans.items():
            if stream_id in faults:
                for item, _ in plan.answers:
                    _refuse(item, faults[stream_id])
            elif stream_id not in written:
                self._states.pop(stream_id, None)
                self._put_back([item for item, _ in plan.answers])
            else:
                if not plan.is_doubtful:
                    self._states[stream_id] = plan.after
                    self._states.move_to_end(stream_id)
                _settle(plan.answers)

    def _note(self, written: Sequence[Write], plans: dict[UUID, _Plan]) -> None:
        """Count a group, and log the streams that it ended."""
        self._on_group(len(written))
        for item in written:
            standing = plans[item.stream_id].standing
            if item.outcome is not None and standing is not None:
                stream_end.note(
                    item.stream_id,
                    item.outcome,
                    standing.trace,
                    tenant=standing.tenant,
                    generator=GENERATOR,
                    events=item.last_seq,
                    size_bytes=item.after.size_bytes,
                    tokens=item.outcome.timings.tokens,
                    time_to_first_token_seconds=item.outcome.timings.time_to_first_token_seconds,
                    total_seconds=item.outcome.timings.duration_seconds,
                )

    async def _written(
        self, connection: Connection, writes: Sequence[Write]
    ) -> tuple[set[UUID], dict[UUID, Unavailable]]:
        """Write all in one statement; if one is at fault, each alone. Return the written streams, and the faults."""
        try:
            return await external_appends.write(connection, writes), {}
        except DATA_ERRORS as error:
            if len(writes) == 1:
                stream_id = writes[0].stream_id
                logger.error("An append to stream %s cannot be written: %s", stream_id, error)
                return set(), {stream_id: Unavailable(_LATER, operator=f"an append cannot be written: {error}")}
        written: set[UUID] = set()
        faults: dict[UUID, Unavailable] = {}
        for item in writes:
            there, fault = await self._written(connection, [item])
            written |= there
            faults |= fault
        return written, faults

    async def _ends(self, connection: Connection, plans: dict[UUID, _Plan]) -> dict[UUID, Outcome]:
        """Return the ends of the streams that these plans end, with their usage and timings."""
        ending = {stream_id: plan.ending for stream_id, plan in plans.items() if plan.ending}
        if not ending:
            return {}
        standings = await external_appends.standings(connection, list(ending))
        found = {}
        for stream_id, request in ending.items():
            plan = plans[stream_id]
            assert request.outcome is not None
            logged = await event_log.read_usage(connection, stream_id) if plan.after.carries_events else {}
            own = usage.of_lines((1, line) for each in plan.accepted for line in each.lines)
            plan.standing = standings.get(stream_id, Standing(Timings(), "", None))
            spent = plan.standing.timings.plus(sum(each.tokens for each in plan.accepted))
            found[stream_id] = replace(request.outcome, usage=usage.total_of(logged | own), timings=spent)
        return found

    def _put_back(self, items: Sequence[_Waiting]) -> None:
        """Decide these again, before what came after them. One that was tried too often is refused."""
        for item in items:
            item.tries += 1
            if item.tries > MOST_TRIES:
                _refuse(item, Unavailable(_LATER, operator="a stream has too many writers at once"))
        self._waiting.extendleft(reversed([item for item in items if not item.answer.done()]))
        self._wake.set()


def _write_of(stream_id: UUID, plan: _Plan, outcome: Outcome | None) -> Write:
    lines = [line for request in plan.accepted for line in request.lines]
    if outcome is not None:
        lines.append(outcome.encode())
    return Write(
        stream_id,
        plan.before_tail,
        plan.after,
        len(lines),
        join_lines(lines),
        sum(request.size_bytes for request in plan.accepted),
        sum(request.tokens for request in plan.accepted),
        {request.producer_id for request in plan.accepted},
        outcome,
    )


def _append_of(write: Write) -> Append:
    first = write.before_tail + 1
    return Append(write.stream_id, 0, first, write.last_seq, write.events, write.outcome)


def _settle(answers: Iterable[tuple[_Waiting, Appended | Refused]]) -> None:
    for item, answer in answers:
        if not item.answer.done():
            item.answer.set_result(answer)


def _refuse(item: _Waiting, error: Exception) -> None:
    if not item.answer.done():
        item.answer.set_exception(error)
