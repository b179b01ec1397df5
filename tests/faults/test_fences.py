"""Zombie, reaper and successor on one stream's log, in every order of their steps.

The zombie is a worker whose append is in flight while its stream is taken away: held by a lock in the database before
or after its row is inserted, and then committed with its reply arriving, committed with the reply lost, or rolled back
with the connection. The reaper gives the stream to a successor or ends it. All of them are the real thing; only the
order of their steps is the test's.

With the policy `continue` the zombie saves a state with each word, and the successor continues after the last word.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import combinations, islice, product
from typing import Any, Literal
from uuid import UUID

import pytest
from tests.support.logbook import claimed, connected, employ, events, row, settings, text, until

from baton.chaos.proxy import Proxy
from baton.db import event_log, stream_creation, stream_ending, stream_queue, stream_states, worker_rows
from baton.db.event_log import Append
from baton.db.fence import Fence
from baton.db.postgres import Connection, Pool, connect, pool
from baton.db.stream_creation import NewStream
from baton.db.stream_ending import End
from baton.db.stream_states import State
from baton.db.worker_rows import Orphan
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded
from baton.outcome import Outcome
from baton.worker.host import Host
from baton.worker.outbox import Outbox
from baton.worker.reaper import release
from baton.worker.run import Run
from baton.worker.worker import Worker

Held = Literal["before", "after"]
Reply = Literal["arrives", "lost", "rolled back"]

AT_ONCE = 8
ZOMBIES_ANSWER = "Z1 Z2 Z3 Z4 "
SUCCESSORS_ANSWER = "S1 S2 "

# An append under epoch 1 waits while somebody holds the lock that is named after its stream.
GATE = """
CREATE FUNCTION gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtextextended(NEW.stream_id::text, 0));
    RETURN NEW;
END $$;
CREATE TRIGGER gate {held} INSERT ON baton.batch FOR EACH ROW WHEN (NEW.epoch = 1) EXECUTE FUNCTION gate()
"""
STUCK = """
SELECT count(*) FROM pg_stat_activity
WHERE pid = ANY ($1) AND wait_event_type = 'Lock' AND (wait_event = 'advisory') = $2
"""


@dataclass(frozen=True, slots=True)
class Story:
    """What the scenarios of one test have in common."""

    held: Held
    reply: Reply
    terminal: bool  # the batch in flight is the zombie's last
    prior: bool  # there are events in the log from before
    policy: Literal["retry", "fail", "continue"]

    @property
    def continues(self) -> bool:
        return self.policy == "continue"

    @property
    def fallback(self) -> str:
        return "fail" if self.continues else self.policy

    @property
    def has_successor(self) -> bool:
        """With `fail`, a stream that has emitted something is ended by the reaper itself."""
        return self.policy != "fail" or not self.prior

    def orders(self) -> Iterator[str]:
        """Every way to merge the zombie's steps (z) with the others' (s), each in their own order."""
        zombies = 2 if self.reply == "arrives" else 3
        others = 4 if self.has_successor else 1
        for places in combinations(range(zombies + others), zombies):
            yield "".join("z" if place in places else "s" for place in range(zombies + others))


class Chain:
    """Steps that one actor takes in turn, each when it is told to and has finished the one before."""

    def __init__(self, steps: Sequence[Callable[[], Awaitable[None]]], pids: Callable[[], list[int]]) -> None:
        self._steps = steps
        self._told = asyncio.Semaphore(0)
        self.done = 0
        self.pids = pids

    def tell(self) -> None:
        self._told.release()

    async def run(self) -> None:
        for step in self._steps:
            await self._told.acquire()
            await step()
            self.done += 1


@dataclass(slots=True)
class Player:
    """A worker without its control loop: its steps are taken from outside."""

    worker: Worker
    proxy: Proxy
    outboxes: list[Outbox] = field(default_factory=list)
    writing: asyncio.Task[None] | None = None

    @property
    def runs(self) -> dict[UUID, Run]:
        return self.worker.slots.runs

    @property
    def outbox(self) -> Outbox:
        return self.outboxes[0]

    async def claim(self, connection: Connection) -> None:
        await self.worker.claiming.claim(connection)
        self.outboxes += [run.outbox for run in self.runs.values()]

    def write(self) -> None:
        self.writing = asyncio.create_task(self.worker.writer.run())

    async def put_down_pen(self) -> None:
        if self.writing is not None:
            self.writing.cancel()
            await asyncio.gather(self.writing, return_exceptions=True)

    async def close(self) -> None:
        tasks = [*self.worker.slots.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.put_down_pen()
        self.worker._records.close()

    def pids(self) -> list[int]:
        connection = self.worker.writer._connection
        return [] if connection is None or connection.is_closed() else [connection.get_server_pid()]

    def settled(self) -> bool:
        """Whether it knows what became of all it wanted to write."""
        return not self.outbox.ready or self.outbox.closed.is_set()


class Cast:
    """A generator that can continue if the story says so."""

    def __init__(self, generator: Callable[[GenerationRequest], AsyncGenerator[Yielded, None]], story: Story) -> None:
        self.generator = generator
        self.continues = story.continues

    async def __call__(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        words = len(request.so_far.text.split())
        async for item in self.generator(request):
            yield item
            if self.continues and isinstance(item, str):
                words += 1
                yield {"type": "state", "state": words}


class Scenario:
    """One story in one order."""

    def __init__(self, story: Story, order: str, dsn: str, witness: Pool) -> None:
        self.story, self.order, self.dsn, self.witness = story, order, dsn, witness
        self.go, self.more, self.go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.cancelled = False
        self.given: GenerationRequest | None = None
        self.claiming: asyncio.Task[None] | None = None

    async def play(self) -> None:
        async with AsyncExitStack() as stack:
            await self._cast(stack)
            chains = {
                "z": Chain([self.begin_append, self.let_it_through, self.learn], self.zombie.pids),
                "s": Chain(self._others(), lambda: [self.reaper.get_server_pid(), *self.successor.pids()]),
            }
            async with asyncio.TaskGroup() as group:
                for chain in chains.values():
                    group.create_task(chain.run())
                for name in self.order:
                    await self._take_step(chains[name])
                if self.story.reply == "arrives":
                    chains["z"].tell()
                for _ in range(4 - self.order.count("s") if self.story.has_successor else 0):
                    chains["s"].tell()
            await self.judge()

    def _others(self) -> Sequence[Callable[[], Awaitable[None]]]:
        steps = [self.reap, self.claim, self.look_at_tail, self.write_on]
        return steps if self.story.has_successor else steps[:1]

    async def _take_step(self, chain: Chain) -> None:
        """Tell an actor to go on, and wait until it did or a lock holds it up."""
        before = chain.done
        chain.tell()

        async def rests() -> bool:
            return chain.done > before or await self._stuck(chain.pids(), at_gate=False)

        await until(rests)

    async def _stuck(self, pids: list[int], *, at_gate: bool) -> bool:
        return bool(await self.witness.fetchval(STUCK, pids, at_gate))

    async def _cast(self, stack: AsyncExitStack) -> None:
        name = f"{self.story.reply} {self.order}"
        new = NewStream(name, None, {}, self.story.fallback, may_continue=self.story.continues)
        self.stream_id = (await stream_creation.create(self.witness, new))[0].id
        self.zombie = await self._player(stack, {name: Cast(self.zombies_generator, self.story)})
        self.successor = await self._player(stack, {name: Cast(self.successors_generator, self.story)})
        self.reaper = await stack.enter_async_context(connected(self.dsn))
        self.keeper = await stack.enter_async_context(self.witness.acquire())
        await self.zombie.claim(self.reaper)
        self.fence = self.zombie.outbox.fence
        if self.story.prior:
            self.zombie.write()
            await until(lambda: self.zombie.outbox.tail == 2)
            await self.zombie.put_down_pen()
        await self.keeper.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", str(self.stream_id))
        # By way of a proxy, so that the successor can be held between its claim and its look at the tail. The
        # statement is prepared by then: one reply to hold, not two.
        self.control = await connect(self.successor.proxy.dsn)
        stack.callback(self.control.terminate)
        await self.successor.claim(self.control)
        assert not self.successor.outboxes

    async def _player(self, stack: AsyncExitStack, generators: dict[str, Any]) -> Player:
        proxy = await stack.enter_async_context(Proxy(self.dsn))
        own = settings(proxy.dsn)
        worker = Worker(own, Host(own, generators))
        worker.lease.worker_id = UUID(int=len(stack._exit_callbacks))  # type: ignore[attr-defined]
        async with connected(self.dsn) as connection:
            await employ(connection, worker.lease.worker_id)
            worker.lease.place = await worker_rows.place(connection, worker.lease.worker_id)
        player = Player(worker, proxy)
        stack.push_async_callback(player.close)
        return player

    async def zombies_generator(self, _request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        try:
            if self.story.prior:
                yield "Z1 "
                yield "Z2 "
            await self.go.wait()
            for word in ("Z3 ", "Z4 ") if self.story.prior else ("Z1 ", "Z2 ", "Z3 ", "Z4 "):
                yield word
            if not self.story.terminal:
                await self.more.wait()
                yield "Z5 "
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    async def successors_generator(self, request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
        if self.story.continues:
            self.given = request
            yield {"type": "continue", "after": request.so_far.seq}
            await self.go_on.wait()
            for number in range(len(request.so_far.text.split()) + 1, 5):
                yield f"Z{number} "
            return
        yield "S1 "
        await self.go_on.wait()
        yield "S2 "

    # The zombie's steps.

    async def begin_append(self) -> None:
        outbox = self.zombie.outbox
        self.go.set()
        await until(lambda: outbox._outcome is not None if self.story.terminal else bool(outbox._lines))
        self.zombie.write()

        async def under_way() -> bool:
            return self.zombie.settled() or await self._stuck(self.zombie.pids(), at_gate=True)

        await until(under_way)

    async def let_it_through(self) -> None:
        proxy = self.zombie.proxy
        if self.zombie.settled() or self.story.reply == "arrives":
            await self._open_gate()
            await until(self.zombie.settled)
        elif self.story.reply == "lost":
            proxy.hold_replies()
            await self._open_gate()
            await until(lambda: proxy.holding > 0)
        else:
            proxy.refuse()
            await self.witness.execute(
                "SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid", self.zombie.pids()
            )
            await until(lambda: proxy.connections == 0)
            await self._open_gate()

    async def learn(self) -> None:
        if self.story.reply == "lost":
            self.zombie.proxy.cut()
        self.zombie.proxy.resume()
        await until(self.zombie.settled)

    async def _open_gate(self) -> None:
        await self.keeper.execute("SELECT pg_advisory_unlock_all()")

    # The reaper's step, and the successor's.

    async def reap(self) -> None:
        await release(
            self.reaper, Orphan(self.fence, 1, self.story.fallback, continues=self.story.continues), max_attempts=3
        )

    async def claim(self) -> None:
        self.successor.proxy.hold_replies()
        self.claiming = asyncio.create_task(self.successor.claim(self.control))
        await until(lambda: self.successor.proxy.holding > 0)

    async def look_at_tail(self) -> None:
        assert self.claiming is not None
        self.successor.proxy.resume()
        await self.claiming

    async def write_on(self) -> None:
        if not self.successor.outboxes:
            # The zombie may have locked the row while the claim looked at it; the next poll finds it.
            await self.successor.claim(self.control)
        if self.successor.outboxes:
            await until(lambda: self.successor.outbox.ready)
            self.successor.write()
            await until(self.successor.settled)
            self.go_on.set()
            await self.successor.outbox.closed.wait()

    # What must hold in the end.

    async def judge(self) -> None:
        acknowledged = self.zombie.outbox.tail
        self.more.set()
        await until(lambda: not self.zombie.runs and not self.successor.runs)
        async with self.witness.acquire() as connection:
            found = await events(connection, self.stream_id)
            stream = await row(connection, self.stream_id)
        assert stream.ended
        assert self.cancelled or self.story.terminal
        story = "".join(event.get("delta", "") for event in found)
        assert "Z5" not in story
        if self.order.startswith("s"):
            # The stream was taken away before the append began: a stale writer starts nothing new.
            assert acknowledged == (2 if self.story.prior else 0)
            assert self.story.continues or "Z4" not in story
        assert [event["delta"] for event in found[:acknowledged] if "delta" in event] == [
            f"Z{number} " for number in range(1, min(acknowledged, 4) + 1)
        ]
        if self.story.continues:
            assert (stream.status, text(found)) == ("completed", ZOMBIES_ANSWER)
            assert "reset" not in {event["type"] for event in found}
            if self.given is not None:
                # Its state is as of the last word that a batch of the zombie's has, and that batch is in the log.
                assert self.given.state == (len(self.given.so_far.text.split()) or None)
        elif stream.status == "completed":
            assert text(found) in {ZOMBIES_ANSWER, SUCCESSORS_ANSWER}
            assert self.story.terminal or text(found) == SUCCESSORS_ANSWER
        else:
            assert stream.error_code == "worker_lost"
            assert self.story.policy == "fail"
            assert "reset" not in {event["type"] for event in found}
            assert ZOMBIES_ANSWER.startswith(text(found))


def described(story: Story) -> str:
    words = [f"held {story.held}", f"reply {story.reply}", "terminal" if story.terminal else "partial"]
    return "-".join([*words, "prior" if story.prior else "first", story.policy]).replace(" ", "_")


def stories() -> Iterator[Any]:
    """Every combination that differs: what is rolled back leaves nothing, wherever it was held."""
    for held, reply in (
        ("before", "arrives"),
        ("before", "lost"),
        ("after", "arrives"),
        ("after", "lost"),
        ("after", "rolled back"),
    ):
        for terminal, prior, policy in product((False, True), (False, True), ("retry", "fail", "continue")):
            story = Story(held, reply, terminal, prior, policy)  # type: ignore[arg-type]
            # Each way to be held and answered, each kind of batch and each policy is among those that always run, in
            # every fourth order.
            if policy == "continue":
                many = reply == "lost" or prior != (terminal == (held == "before"))
            elif reply == "arrives":
                many = prior or policy != ("retry" if terminal == (held == "before") else "fail")
            else:
                many = prior or policy == "fail" or terminal != (held == "before")
            yield pytest.param(story, 1, marks=pytest.mark.slow, id=described(story))
            if not many:
                yield pytest.param(story, 4, id=f"{described(story)}-some")


@asynccontextmanager
async def gated(dsn: str, held: Held) -> AsyncIterator[Pool]:
    async with pool(dsn, size=AT_ONCE + 4, timeout_seconds=10) as witness:
        await witness.execute(GATE.format(held=held))
        name = await witness.fetchval("SELECT current_database()")
        await witness.execute(f"ALTER DATABASE {name} SET deadlock_timeout = '50ms'")
        yield witness


@pytest.mark.parametrize(("story", "step"), list(stories()))
async def test_zombie_reaper_and_successor_in_any_order_leave_one_complete_log(
    story: Story, step: int, dsn: str
) -> None:
    turns = asyncio.Semaphore(AT_ONCE)
    async with gated(dsn, story.held) as witness:

        async def play(order: str) -> None:
            async with turns:
                try:
                    await Scenario(story, order, dsn, witness).play()
                except Exception as error:
                    error.add_note(f"in the order {order}")
                    raise

        results = await asyncio.gather(*map(play, islice(story.orders(), 0, None, step)), return_exceptions=True)
    failures = [result for result in results if isinstance(result, Exception)]
    if failures:
        raise ExceptionGroup(f"{len(failures)} of {len(results)} orders", failures)


HOLD_TAKING = """
CREATE FUNCTION hold_taking() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1);
    RETURN NULL;
END $$;
CREATE TRIGGER hold_taking AFTER UPDATE ON baton.stream FOR EACH ROW WHEN (NEW.epoch <> OLD.epoch)
EXECUTE FUNCTION hold_taking()
"""


async def test_an_outside_end_survives_a_deadlock_with_the_last_owners_end(dsn: str) -> None:
    completed = Outcome.completed("stop")
    async with connected(dsn) as keeper, connected(dsn) as reaper, connected(dsn) as owner:
        (stream_id,) = await claimed(keeper)
        await keeper.execute(HOLD_TAKING)
        await keeper.execute("SELECT pg_advisory_lock(1)")
        await reaper.execute("SET deadlock_timeout = '10ms'")  # so that it is the one to be given up
        await owner.execute("SET deadlock_timeout = '1min'")

        async def stuck(connection: Connection, *, at_gate: bool) -> bool:
            return bool(await keeper.fetchval(STUCK, [connection.get_server_pid()], at_gate))

        lost = Outcome.failed("worker_lost", "")
        ending = asyncio.create_task(stream_ending.end(reaper, End.of_claimed(Fence(stream_id, 1), lost)))
        await until(lambda: stuck(reaper, at_gate=True))
        append = Append(stream_id, 1, 1, 1, completed.encode(), completed)
        appending = asyncio.create_task(event_log.append(owner, [append]))
        await until(lambda: stuck(owner, at_gate=False))
        await keeper.execute("SELECT pg_advisory_unlock(1)")
        assert not await ending
        assert await appending == {stream_id}
        assert (await row(keeper, stream_id)).status == "completed"
        assert len(await events(keeper, stream_id)) == 1


async def test_a_state_without_a_batch_is_refused_once_the_stream_is_taken_away(dsn: str) -> None:
    async with connected(dsn) as keeper, connected(dsn) as zombie:
        (stream_id,) = await claimed(keeper)
        fence = Fence(stream_id, 1)
        saved = await stream_states.save_alone(zombie, [(fence, State(0, b"1"))], None)
        assert saved == {stream_id}
        async with keeper.transaction():
            assert await stream_queue.requeue(keeper, fence)
            saving = asyncio.create_task(stream_states.save_alone(zombie, [(fence, State(0, b"2"))], None))
            await until(lambda: stuck(dsn, zombie))
        assert await saving == set()
        assert await stream_states.read(keeper, stream_id) == (0, 1, 0)


async def stuck(dsn: str, connection: Connection) -> bool:
    """Whether a connection waits for another's transaction."""
    async with connected(dsn) as witness:
        return bool(await witness.fetchval(STUCK, [connection.get_server_pid()], False))
