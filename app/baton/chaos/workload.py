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
from ..db.postgres import CONNECTION_ERRORS, Pool
from ..demo.cluster import Program
from . import end_hook
from .account import GONE, Account, Contract, Expected, LogCopy
from .complaint import Complaint
from .generators import KINDS, PAUSE_SECONDS, Answer
from .inputs import LONGEST_DELIBERATION_SECONDS, Inputs, Statistics, sending
from .tool_calls import StepAccount, ToolCalls
from .trouble import Trouble
from .viewers import Habits, Traffic, Viewer
from .webhooks import Receiver

ALLOWANCE_SECONDS: Final = 90  # how much longer a stream may take than its text
CLOSING_SECONDS: Final = 60
REQUEST_SECONDS: Final = 5
SETTLING_SECONDS: Final = 60  # until the last webhooks have been called
HAS_WEBHOOK: Final = 0.5

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
    """When a stream was created, and the count of trouble before that."""

    at: float
    trouble: int


class Workload:
    """The streams and their viewers. `run()` returns after `close()`, when the last stream has ended."""

    def __init__(
        self,
        pods: Sequence[Program],
        pool: Pool,
        random: Random,
        *,
        streams_at_once: int,
        viewers: int,
        rate: float,
        erase: bool,
        trouble: Trouble,
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
        self._pool = pool
        self._random = random
        self._streams_at_once = streams_at_once
        self._viewers = viewers
        self._rate = rate
        self._erase = erase
        self._trouble = trouble
        self._tool_calls = tool_calls
        self._violate = violate
        self._receiver = receiver
        self._created: dict[str, float] = {}  # of streams with a webhook
        self._closing = asyncio.Event()
        self._http = httpx2.AsyncClient(
            trust_env=False, limits=httpx2.Limits(max_keepalive_connections=0), timeout=REQUEST_SECONDS
        )

    def close(self) -> None:
        """Create no more streams, and cancel running ones after a few seconds."""
        self._closing.set()

    async def run(self) -> None:
        """Run until closed."""
        async with self._http, asyncio.TaskGroup() as slots:
            for _ in range(self._streams_at_once):
                slots.create_task(self._slot(Random(self._random.random())))
        if self._receiver is not None:
            await self._settle(self._receiver)

    async def _slot(self, random: Random) -> None:
        await asyncio.sleep(random.uniform(0, 2))
        while not self._closing.is_set():
            plan = StreamPlan.drawn(random, self._rate)
            before = Before(time.monotonic(), self._trouble.count)
            created = await self._create(plan, random)
            if created is not None:
                self._created[created] = before.at
                await self._watch_and_judge(plan, created, before, random)

    async def _watch_and_judge(self, plan: StreamPlan, stream: str, before: Before, random: Random) -> None:
        """Let viewers follow a stream to its end, and judge it."""

        def rewound() -> bool:
            if plan.answer.ask_every and self._trouble.lost_between(before.at, time.monotonic()):
                return True  # a wait has no worker that could heal it, and no worker keeps what others sent
            return self._trouble.may_have_rewound(stream, before.at)

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
        self.healed += self._trouble.survived(stream, before.at)
        steps = StepAccount(self._tool_calls.take(stream), self._trouble.lost_at)
        asked = Expected(
            plan.answer.events,
            plan.contract,
            plan.answer.step_every,
            plan.answer.waits,
            plan.answer.inputs,
            cancelled=cancelled.is_set(),
            worker_troubled=self._trouble.count != before.trouble,
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

        return Inputs(plan.answer, accounts, Random(random.random()), post, self._trouble.lost_at)

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
        """Create a stream, with one idempotency key for all attempts; None if time runs out after `close()`."""
        body = {"generator": plan.kind, "input": plan.answer.as_input(), "on_worker_lost": plan.policy}
        if self._receiver is not None and random.random() < HAS_WEBHOOK:
            body["webhook"] = self._receiver.url
        key = {"idempotency-key": secrets.token_hex(8)}
        reply = await self._request("POST", "/v1/streams", random, content=orjson.dumps(body), headers=key)
        return None if reply is None else str(orjson.loads(reply)["id"])

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
        copy = await self._read_log(UUID(stream))
        if asked.rewound:
            copy = await self._ended_log(UUID(stream), copy)
        complaints = [] if asked.rewound and copy.status == GONE else [*copy.complaints]
        complaints += steps.complaints
        for account in accounts:
            complaints += [*account.against(copy, rewound=asked.rewound), *account.ending(asked)]
            complaints += steps.against(account.results)
            complaints += inputs.against(account, rewound=asked.rewound)
        if self._receiver is not None and not copy.complaints:
            complaints += await self._until_answered(
                lambda: end_hook.against_log(self._pool, UUID(stream), copy.status, copy.text)
            )
        for complaint in complaints:
            self._violate(complaint, stream, "")
        if self._erase:
            await self._until_answered(lambda: stream_ending.erase(self._pool, UUID(stream)))

    async def _settle(self, receiver: Receiver) -> None:
        """Wait for the last webhooks, and compare them and the saved answers with the streams that have ended."""
        receiver.reliable = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLING_SECONDS):
                while await self._unsettled():
                    await self._until_answered(lambda: self._pool.execute(_HURRY))
                    await asyncio.sleep(0.5)
        for stream_id, complaint in await self._until_answered(lambda: end_hook.unlike(self._pool)):
            self._violate(complaint, str(stream_id), "")
        for stream_id, status in await self._until_answered(lambda: self._pool.fetch(_LIVE)):
            self._violate(Complaint("no end", 0, f"the stream is still {status}"), str(stream_id), "")
        await self._judge_webhooks(receiver)
        self.saved, self.hook_failed = await self._until_answered(lambda: end_hook.counts(self._pool))

    async def _unsettled(self) -> bool:
        """Return whether a stream is live, or a webhook still has to be called."""
        for query in (_LIVE, _UNCALLED):
            if await self._until_answered(lambda: self._pool.fetchrow(query)) is not None:  # noqa: B023
                return True
        return False

    async def _judge_webhooks(self, receiver: Receiver) -> None:
        for stream, complaint in receiver.complaints:
            self._violate(complaint, stream, "")
        for stream_id, tries, error in await self._until_answered(lambda: self._pool.fetch(_UNCALLED)):
            self._violate(Complaint("webhook", 0, f"not called after {tries} tries: {error}"), str(stream_id), "")
        for stream_id, status in await self._until_answered(lambda: self._pool.fetch(_CALLED)):
            stream = str(stream_id)
            created_at = self._created.get(stream, 0.0)
            for complaint in receiver.against(
                stream,
                status,
                lambda at: self._trouble.lost_between(created_at, at),  # noqa: B023
            ):
                self._violate(complaint, stream, "")

    async def _ended_log(self, stream_id: UUID, copy: LogCopy) -> LogCopy:
        """Wait for the end of a stream whose viewers may all have been refused.

        It may end between the reads of its log and of its row.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING_SECONDS):
                while copy.status != GONE and (copy.live or copy.complaints):
                    await asyncio.sleep(0.2)
                    copy = await self._read_log(stream_id)
        return copy

    async def _read_log(self, stream_id: UUID) -> LogCopy:
        async def read() -> LogCopy:
            batches = [batch async for page in event_log.pages(self._pool, stream_id) for batch in page]
            row = await streams.get(self._pool, stream_id)
            return LogCopy(batches, row.status if row else GONE)

        return await self._until_answered(read)

    async def _until_answered(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        """Ask the database until it answers: it is being stopped and started."""
        errors = (*CONNECTION_ERRORS, asyncpg.PostgresError)
        return await retry(lambda _backoff: ask(), errors=errors, backoff=Backoff(cap_seconds=1))
