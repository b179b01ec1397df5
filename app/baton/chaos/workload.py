"""Keeps a number of streams running, each with viewers and inputs; judges each at its end, and replaces it."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Final, TypeVar
from uuid import UUID

import asyncpg
import httpx2
import orjson

from ..backoff import Backoff, retry
from ..db import event_log, stream_ending, streams
from ..db.postgres import CONNECTION_ERRORS
from ..demo.cluster import Program
from . import end_hook
from .account import GONE, Account, Contract, Expected, LogCopy
from .complaint import Complaint
from .databases import Database, Databases
from .generators import KINDS, PAUSE_SECONDS, Answer
from .inputs import LONGEST_DELIBERATION_SECONDS, Inputs, Statistics, sending
from .reach import Reach
from .tool_calls import StepAccount, ToolCalls
from .unkeyed import UnkeyedCreates
from .viewers import Habits, Traffic, Viewer
from .webhooks import Receiver

ALLOWANCE_SECONDS: Final = 90  # how much longer a stream may take than its text
CLOSING_SECONDS: Final = 60
REQUEST_SECONDS: Final = 5
SETTLING_SECONDS: Final = 60  # until the last webhooks have been called
HAS_WEBHOOK: Final = 0.5
# Of creates with several databases.
IS_UNKEYED: Final = 0.5
IS_REPEATED: Final = 0.2

_LIVE: Final = "SELECT id, status FROM baton.stream WHERE status NOT IN ('completed', 'failed', 'cancelled')"
# The call of a worker that has died would follow after a lease of a minute.
_HURRY: Final = "UPDATE baton.webhook_call SET due_at = clock_timestamp()"
_CALLED: Final = """
SELECT id, status FROM baton.stream AS s
WHERE webhook IS NOT NULL AND status IN ('completed', 'failed', 'cancelled')
AND NOT EXISTS (SELECT FROM baton.webhook_call AS c WHERE c.stream_id = s.id)
"""
_UNCALLED: Final = "SELECT stream_id, tries, error FROM baton.webhook_call"

_PASSING: Final = frozenset({503})
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Violation:
    """A complaint, with its place, and its time in seconds since the start."""

    complaint: Complaint
    stream: str
    pod: str
    at_seconds: float
    last_faults: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """What a stream's generator does, and what its user does."""

    answer: Answer
    kind: str  # of its generator
    policy: str
    cancel_at: int | None  # the event after which its user cancels it

    @property
    def seconds(self) -> float:
        """How long the stream takes if nothing breaks."""
        waiting = len(self.answer.waits) * max(PAUSE_SECONDS, LONGEST_DELIBERATION_SECONDS)
        return self.answer.events / self.answer.rate + waiting

    @property
    def contract(self) -> Contract:
        """What happens to it when its worker is lost."""
        return Contract.of(self.kind, self.policy)

    @classmethod
    def drawn(cls, random: Random, rate: float) -> StreamPlan:
        """Draw a plan: short or long, around a mean rate, one by one or in bursts, perhaps with large events."""
        rate *= random.uniform(0.6, 1.4)
        seconds = random.choice((random.uniform(0.2, 3), random.uniform(5, 20), random.uniform(20, 60)))
        events = max(3, int(rate * seconds))
        large_every, padding = random.choice(((0, 0), (0, 0), (0, 0), (5, 800), (40, 5000)))
        kind = random.choice(KINDS)
        answer = Answer(
            events=events,
            rate=rate,
            burst=random.choice((1, 2, 2, 4, 25)),
            large_every=large_every,
            padding=padding,
            step_every=random.choice((0, 20, 80)),
            # A generator that repeats itself needs no state.
            save_every=random.choice((1, 8, 50) if kind in {"continuing", "asking"} else (0, 8, 50)),
            messages=random.choice((0, 2, 20)) if kind == "asking" else 0,
            ask_every=max(1, events // random.choice((1, 3, 5))) if kind == "asking" else 0,
        )
        # Once it has waited, an answer continues, whatever its policy was.
        policies = ("continue",) if kind == "asking" else ("continue", "continue", "continue", "retry", "fail")
        return cls(
            answer=answer,
            kind=kind,
            policy=random.choice(policies),
            cancel_at=random.randint(1, events) if random.random() < 0.12 else None,
        )


@dataclass(frozen=True, slots=True)
class Before:
    """When a stream was created, and the count of trouble of each database before that."""

    at: float
    trouble: Mapping[int, int]


class Workload:
    """The streams and their viewers. `run()` returns after `close()`, when the last stream has ended."""

    def __init__(
        self,
        pods: Sequence[Program],
        databases: Databases,
        random: Random,
        *,
        streams_at_once: int,
        viewers: int,
        rate: float,
        reach: Reach,
        tool_calls: ToolCalls,
        violate: Callable[[Complaint, str, str], None],
        receiver: Receiver | None = None,
    ) -> None:
        """With a `receiver`, workers have chaos' end hook, and streams have webhooks."""
        self.traffic = Traffic()
        self.live = 0
        self.judged = 0
        self.kinds: Counter[str] = Counter()
        self.resets: Counter[str] = Counter()
        self.resumes: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.steps = self.repeated_steps = 0
        self.inputs = Statistics()
        self.saved = self.hook_failed = 0
        self.webhooks: Counter[str] = Counter() if receiver is None else receiver.counts
        self.healed = 0  # streams that ran through a promotion with their worker, and lost nothing
        self.missing = self.repeated = self.misplaced = self.without_end = 0
        self._pods = pods
        self.databases = databases
        self._random = random
        self._streams_at_once = streams_at_once
        self._viewers = viewers
        self._rate = rate
        self._tool_calls = tool_calls
        self._violate = violate
        self._receiver = receiver
        self._created: dict[str, float] = {}  # of streams with a webhook
        self.by_database: Counter[str] = Counter()
        self._closing = asyncio.Event()
        self._http = httpx2.AsyncClient(
            trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0), timeout=REQUEST_SECONDS
        )
        self.unkeyed = UnkeyedCreates(self._http, pods, reach, violate)
        self.strays = 0  # streams that were created without an answer

    def close(self) -> None:
        """Create no more streams, and cancel running ones after a few seconds."""
        self._closing.set()

    async def run(self) -> None:
        """Run until closed."""
        async with self._http:
            async with asyncio.TaskGroup() as slots:
                for _ in range(self._streams_at_once):
                    slots.create_task(self._slot(Random(self._random.random())))
            if self._receiver is not None:
                await self._settle(self._receiver)

    async def _slot(self, random: Random) -> None:
        await asyncio.sleep(random.uniform(0, 2))
        while not self._closing.is_set():
            plan = StreamPlan.drawn(random, self._rate)
            trouble = {database.number: database.trouble.count for database in self.databases}
            before = Before(time.monotonic(), trouble)
            created = await self._create(plan, random)
            if created is not None:
                self._created[created] = before.at
                await self._watch_and_judge(plan, created, before, random)

    async def _watch_and_judge(self, plan: StreamPlan, stream: str, before: Before, random: Random) -> None:
        """Let viewers follow a stream to its end, and judge it. Only the trouble of its database excuses anything."""
        database = self.databases.of(stream)
        trouble = database.trouble

        def rewound() -> bool:
            if plan.answer.ask_every and trouble.lost_between(before.at, time.monotonic()):
                return True  # a wait has no worker that could heal it, and no worker keeps what others sent
            return trouble.may_have_rewound(stream, before.at)

        def complain(complaint: Complaint, *, pod: str) -> None:
            self._violate(complaint, stream, pod)

        viewers = [
            Viewer(
                stream,
                self._pods,
                Habits.drawn(random, plan.seconds),
                random=Random(random.random()),
                traffic=self.traffic,
                complain=complain,
                rewound=rewound,
                step_every=plan.answer.step_every,
                ask_every=plan.answer.ask_every,
            )
            for _ in range(max(1, self._viewers + random.randint(-1, 1)))
        ]
        accounts = [viewer.account for viewer in viewers]
        inputs = self._inputs(plan, stream, accounts, random, rewound)
        self.live += 1
        async with self._cancelling(plan, stream, accounts, random, rewound) as cancelled, sending(inputs):
            await self._watch(plan, viewers)
        self.live -= 1
        self.healed += trouble.survived(stream, before.at)
        self.by_database[database.name] += 1
        steps = StepAccount(self._tool_calls.take(stream), trouble.lost_at)
        asked = Expected(
            plan.answer.events,
            plan.contract,
            plan.answer.step_every,
            plan.answer.waits,
            plan.answer.inputs,
            cancelled=cancelled.is_set(),
            worker_troubled=trouble.count != before.trouble[database.number],
            rewound=rewound(),
            step_forgotten=steps.forgotten,
        )
        await self._judge(stream, accounts, asked, steps, inputs)
        inputs.count(self.inputs)
        self._count(plan, accounts, steps)

    def _inputs(
        self,
        plan: StreamPlan,
        stream: str,
        accounts: Sequence[Account],
        random: Random,
        rewound: Callable[[], bool],
    ) -> Inputs:
        """Return the inputs of a stream, which go to any pod."""

        async def post(key: str, data: Mapping[str, Any]) -> int | None:
            reply = await self._request(
                "POST",
                f"/v1/streams/{stream}/inputs",
                random,
                rewound=rewound,
                until_ended=True,
                content=orjson.dumps({"data": data}),
                headers={"idempotency-key": key},
            )
            return None if reply is None else int(orjson.loads(reply)["number"])

        return Inputs(plan.answer, accounts, Random(random.random()), post, self.databases.of(stream).trouble.lost_at)

    def _count(self, plan: StreamPlan, accounts: Sequence[Account], steps: StepAccount) -> None:
        self.kinds[f"{plan.kind}, {plan.contract.value}"] += 1
        for account in accounts:
            self.missing += account.missing
            self.repeated += account.repeated
            self.misplaced += account.misplaced
            self.without_end += account.end is None and not account.refused
        longest = max(accounts, key=lambda account: account.tail)
        self.resets += longest.resets
        self.resumes += longest.resumes
        self.steps += len(steps.nonces)
        self.repeated_steps += steps.repeated
        without = "refused" if any(account.refused for account in accounts) else "no end"
        self.outcomes[next((account.outcome for account in accounts if account.end), without)] += 1
        self.judged += 1

    async def _watch(self, plan: StreamPlan, viewers: Sequence[Viewer]) -> None:
        """Let the viewers follow until all have seen the end or time is up. A takeover restarts the time."""
        interruptions = 0
        watching = [asyncio.create_task(viewer.run()) for viewer in viewers]
        deadline = asyncio.create_task(self._late(plan.seconds + ALLOWANCE_SECONDS))
        try:
            pending = set(watching)
            while pending and not deadline.done():
                await asyncio.wait({*pending, deadline}, return_when=asyncio.FIRST_COMPLETED)
                pending = {task for task in pending if not task.done()}
                seen = max(viewer.account.interruptions for viewer in viewers)
                if deadline.done() and seen > interruptions and not self._closing.is_set():
                    interruptions = seen
                    deadline = asyncio.create_task(self._late(plan.seconds + ALLOWANCE_SECONDS))
        finally:
            for task in (*watching, deadline):
                task.cancel()
            results = await asyncio.gather(*watching, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _late(self, seconds: float) -> None:
        """Return when a stream has taken too long, before or after `close()`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closing.wait()
                await asyncio.sleep(CLOSING_SECONDS)

    @contextlib.asynccontextmanager
    async def _cancelling(
        self, plan: StreamPlan, stream: str, accounts: Sequence[Account], random: Random, rewound: Callable[[], bool]
    ) -> AsyncIterator[asyncio.Event]:
        """Cancel the stream when its plan says so; the event is set once the stream may have been cancelled."""
        asked = asyncio.Event()

        async def cancel() -> None:
            while plan.cancel_at is None or max(account.tail for account in accounts) < plan.cancel_at:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await self._closing.wait()
                        break
            if self._closing.is_set():
                await asyncio.sleep(random.uniform(1, 4))
            asked.set()
            await self._request("POST", f"/v1/streams/{stream}/cancel", random, rewound=rewound)

        task = asyncio.create_task(cancel())
        try:
            yield asked
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _create(self, plan: StreamPlan, random: Random) -> str | None:
        """Create a stream; None if time runs out after `close()`.

        There is one idempotency key for all attempts, or with several databases perhaps none.
        """
        body = {"generator": plan.kind, "input": plan.answer.as_input(), "on_worker_lost": plan.policy}
        if self._receiver is not None and random.random() < HAS_WEBHOOK:
            body["webhook"] = self._receiver.url
        content = orjson.dumps(body)
        if self.databases.several and random.random() < IS_UNKEYED:
            return await self._create_unkeyed(content, random)
        begin, key = time.monotonic(), {"idempotency-key": secrets.token_hex(8)}
        created = await self._create_keyed(content, key, random)
        if created is None or not self.databases.several or random.random() >= IS_REPEATED:
            return created
        again = await self._create_keyed(content, key, random)
        if again == created or again is None:
            return created
        if not self.databases.of(created).trouble.lost_between(begin, time.monotonic()):
            detail = f"another pod created {again} for the same idempotency key"
            self._violate(Complaint("created twice", 0, detail), created, "")
        return again

    async def _create_keyed(self, content: bytes, key: Mapping[str, str], random: Random) -> str | None:
        reply = await self._request("POST", "/v1/streams", random, content=content, headers=key)
        return None if reply is None else str(orjson.loads(reply)["id"])

    async def _create_unkeyed(self, content: bytes, random: Random) -> str | None:
        late = asyncio.create_task(self._late(ALLOWANCE_SECONDS))
        try:
            created = await self.unkeyed.create(content, random, late.done)
        finally:
            late.cancel()
        if created is None:
            self._violate(Complaint("refused", 0, "no pod created a stream without a key"), "", "")
        return created

    async def _request(
        self,
        method: str,
        path: str,
        random: Random,
        *,
        rewound: Callable[[], bool] = lambda: False,
        until_ended: bool = False,
        **content: Any,
    ) -> bytes | None:
        """Send a request to one pod after another until one accepts it; None if none does in time.

        Return None as well if a promotion has lost the stream, or, with `until_ended`, if the stream has ended.
        """
        backoff = Backoff(cap_seconds=1)
        late = asyncio.create_task(self._late(ALLOWANCE_SECONDS))
        try:
            while not late.done():
                pod = random.choice(self._pods)
                try:
                    reply = await self._http.request(method, f"{pod.address}{path}", **content)
                except (httpx2.TransportError, AttributeError):
                    # anyio raises the second one if a pod is killed just after it has accepted the connection.
                    reply = None
                if reply is not None and reply.is_success:
                    return reply.content
                if reply is not None and reply.status_code == httpx2.codes.NOT_FOUND and rewound():
                    return None
                if until_ended and reply is not None and reply.status_code == httpx2.codes.CONFLICT:
                    return None
                if reply is not None and reply.status_code not in _PASSING:
                    complaint = Complaint("refused", 0, f"{method} {path}: {reply.status_code} {reply.text[:200]}")
                    self._violate(complaint, path, pod.name)
                await backoff.sleep()
        finally:
            late.cancel()
        self._violate(Complaint("refused", 0, f"{method} {path}: no pod accepted it"), path, "")
        return None

    async def _judge(
        self, stream: str, accounts: Sequence[Account], asked: Expected, steps: StepAccount, inputs: Inputs
    ) -> None:
        """Compare the accounts with the log, the calls of the tool, the inputs, and what the end hook has saved."""
        database = self.databases.of(stream)
        copy = await self._read_log(database, UUID(stream))
        if asked.rewound:
            copy = await self._ended_log(database, UUID(stream), copy)
        complaints = [] if asked.rewound and copy.status == GONE else [*copy.complaints]
        complaints += steps.complaints
        for account in accounts:
            complaints += [*account.against(copy, rewound=asked.rewound), *account.ending(asked)]
            complaints += steps.against(account.results)
            complaints += inputs.against(account, rewound=asked.rewound)
        if self._receiver is not None and not copy.complaints:
            complaints += await self._until_answered(
                lambda: end_hook.against_log(database.pool, UUID(stream), copy.status, copy.text)
            )
        for complaint in complaints:
            self._violate(complaint, stream, "")
        if database.pair is None:
            await self._until_answered(lambda: stream_ending.erase(database.pool, UUID(stream)))

    async def _settle(self, receiver: Receiver) -> None:
        """Wait for the last webhooks, and compare them and the saved answers with the streams that have ended."""
        receiver.reliable = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLING_SECONDS):
                while unsettled := [item for item in self.databases if await self._unsettled(item)]:
                    for database in unsettled:
                        await self._hurry(database)
                    await asyncio.sleep(0.5)
        for stream, complaint in receiver.complaints:
            self._violate(complaint, stream, "")
        for database in self.databases:
            await self._judge_ends(database, receiver)

    async def _unsettled(self, database: Database) -> bool:
        """Return whether a stream is live, or a webhook still has to be called."""
        for query in (_LIVE, _UNCALLED):
            if await self._until_answered(lambda: database.pool.fetchrow(query)) is not None:  # noqa: B023
                return True
        return False

    async def _hurry(self, database: Database) -> None:
        await self._until_answered(lambda: database.pool.execute(_HURRY))
        if self.databases.several:
            live = await self._until_answered(lambda: database.pool.fetch(_LIVE))
            await self._cancel_strays([str(stream_id) for stream_id, _ in live])

    async def _cancel_strays(self, live: Sequence[str]) -> None:
        """Cancel the live streams that nobody knows, since the creates that made them got no answer."""
        for stream in live:
            if stream not in self._created:
                self._created[stream] = 0.0
                self.strays += 1
                await self._cancel(stream)

    async def _cancel(self, stream: str) -> None:
        await self._request("POST", f"/v1/streams/{stream}/cancel", self._random, rewound=lambda: True)

    async def _judge_ends(self, database: Database, receiver: Receiver) -> None:
        pool = database.pool
        for stream_id, complaint in await self._until_answered(lambda: end_hook.unlike(pool)):
            self._violate(complaint, str(stream_id), "")
        for stream_id, status in await self._until_answered(lambda: pool.fetch(_LIVE)):
            self._violate(Complaint("no end", 0, f"the stream is still {status}"), str(stream_id), "")
        await self._judge_webhooks(database, receiver)
        saved, hook_failed = await self._until_answered(lambda: end_hook.counts(pool))
        self.saved += saved
        self.hook_failed += hook_failed

    async def _judge_webhooks(self, database: Database, receiver: Receiver) -> None:
        for stream_id, tries, error in await self._until_answered(lambda: database.pool.fetch(_UNCALLED)):
            self._violate(Complaint("webhook", 0, f"not called after {tries} tries: {error}"), str(stream_id), "")
        for stream_id, status in await self._until_answered(lambda: database.pool.fetch(_CALLED)):
            stream = str(stream_id)
            created_at = self._created.get(stream, 0.0)
            for complaint in receiver.against(
                stream,
                status,
                lambda at: database.trouble.lost_between(created_at, at),  # noqa: B023
            ):
                self._violate(complaint, stream, "")

    async def _ended_log(self, database: Database, stream_id: UUID, copy: LogCopy) -> LogCopy:
        """Wait for the end of a stream whose viewers may all have been refused.

        It may end between the reads of its log and of its row. If it waits, those who would answer have left: they
        cancel it.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                while copy.status != GONE and (copy.live or copy.complaints):
                    if copy.status == "waiting":
                        await self._cancel(str(stream_id))
                    await asyncio.sleep(0.2)
                    copy = await self._read_log(database, stream_id)
        return copy

    async def _read_log(self, database: Database, stream_id: UUID) -> LogCopy:
        async def read() -> LogCopy:
            batches = [batch async for page in event_log.pages(database.pool, stream_id) for batch in page]
            row = await streams.get(database.pool, stream_id)
            return LogCopy(batches, row.status if row else GONE)

        return await self._until_answered(read)

    async def _until_answered(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        """Ask the database until it answers: it is being stopped and started."""
        errors = (*CONNECTION_ERRORS, asyncpg.PostgresError)
        return await retry(lambda _backoff: ask(), errors=errors, backoff=Backoff(cap_seconds=1))
