"""Measures how one tenant's list requests delay another tenant's creates: `python -m bench.starving`.

One pod runs as a process of its own on an embedded Postgres, with a key for each of two tenants. The large tenant has a
million streams, and none of them was cancelled. Calm and starved phases alternate. In a starved phase clients of the
large tenant, in a process of their own, list its cancelled streams again and again, without a pause and whatever the
answer is. In all phases the small tenant creates 20 streams a second. The report has the times of these creates, and
the statuses of the lists.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import asyncpg
import httpx2
import orjson
import uvloop

from baton.auth import keys
from baton.demo.embedded import embedded_postgres
from baton.schema.migrate import migrate

from .attacker import attacking
from .cluster import cluster

SETTINGS: Final = {"BATON_ALLOW_ANONYMOUS": "false", "BATON_MAX_TENANT_STREAMS": "1000000"}
EVERY_SECONDS: Final = 0.05
SETTLE_SECONDS: Final = 3
# By then all clients have sent a request.
START_SECONDS: Final = 1
PART: Final = 50_000
TENANTS: Final = ("large", "small")
STARVED: Final = "starved"
# As if one had been created every 86 ms until now.
_FILL: Final = """
INSERT INTO baton.stream (id, tenant, generator, input, on_worker_lost, status, epoch, metadata, finished_at)
SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - ($3::bigint - i) * 86), 12, '0')
        || '7' || substr(md5(i::text), 1, 3) || '8' || substr(md5(i::text), 4, 15))::uuid,
       'large', 'replay', '"?"', 'retry', CASE WHEN i % 50 = 0 THEN 'failed' ELSE 'completed' END, 1,
       jsonb_build_object('chat', i::text, 'kind', 'x'), now()
FROM generate_series($1::bigint, $2::bigint) AS i
"""


async def fill(pool: asyncpg.Pool[asyncpg.Record], count: int) -> dict[str, str]:
    """Give the large tenant its streams; return a key for each tenant."""
    for first in range(1, count + 1, PART):
        await pool.execute(_FILL, first, min(first + PART - 1, count), count)
    await pool.execute("VACUUM ANALYZE baton.stream")
    async with pool.acquire() as connection:
        return {tenant: (await keys.make(connection, tenant, tenant, ["create", "read"]))[1] for tenant in TENANTS}


async def create(url: str, key: str, seconds: float) -> list[float]:
    """Create streams for some seconds; return how long each took, in milliseconds. A rejection counts as infinite.

    They start at fixed times, whether the earlier ones have been answered or not: otherwise few slow ones would be
    counted.
    """

    async def create_one() -> float:
        began = time.perf_counter()
        answer = await http.post(f"{url}/v1/streams", json={"input": "?"})
        return (time.perf_counter() - began) * 1000 if answer.status_code == 201 else math.inf

    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {key}"}, timeout=60) as http:
        tasks = []
        for _ in range(int(seconds / EVERY_SECONDS)):
            tasks.append(asyncio.create_task(create_one()))
            await asyncio.sleep(EVERY_SECONDS)
        return await asyncio.gather(*tasks)


async def attack(url: str, key: str, query: str, clients: int) -> Counter[str]:
    """List streams until standard input ends; return the count of each status.

    These clients know just enough HTTP to keep their connections, so that they use little of the machine.
    """
    answers: Counter[str] = Counter()
    host = url.removeprefix("http://")
    asked = f"GET /v1/streams?{query} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {key}\r\n\r\n".encode()

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(*host.split(":"))
        while True:
            writer.write(asked)
            head = await reader.readuntil(b"\r\n\r\n")
            answers[head.split(b" ", 2)[1].decode()] += 1
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))

    tasks = [asyncio.create_task(ask()) for _ in range(clients)]
    await asyncio.sleep(START_SECONDS)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return answers


async def run(dsn: str, folder: Path, given: argparse.Namespace) -> tuple[dict[str, list[float]], Counter[str]]:
    """Measure; return the times by kind of phase, and the statuses of the lists."""
    taken: dict[str, list[float]] = defaultdict(list)
    answers: Counter[str] = Counter()
    await migrate(dsn, days_ahead=7)
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
        made = await fill(pool, given.streams)
        async with cluster(dsn, folder, 10, SETTINGS, workers=()) as (_, port):
            url = f"http://127.0.0.1:{port}"
            await create(url, made["small"], SETTLE_SECONDS)
            for turn in range(1, given.turns + 1):
                taken["calm"] += await create(url, made["small"], given.seconds)
                async with attacking(
                    "bench.starving", url, made["large"], given.query, str(given.clients), on_end=answers.update
                ):
                    taken[STARVED] += await create(url, made["small"], given.seconds)
                print(f"turn {turn} of {given.turns}", file=sys.stderr, flush=True)
                await asyncio.sleep(SETTLE_SECONDS)
    return taken, answers


def report(taken: dict[str, list[float]], answers: Counter[str]) -> int:
    """Print the figures; return the exit status."""
    found: dict[str, list[float]] = {}
    print("| phase | creates | refused | p50 | p99 |\n| --- | --- | --- | --- | --- |")
    for kind, times in taken.items():
        ordered = sorted(times)
        found[kind] = [statistics.median(ordered), ordered[int(len(ordered) * 0.99)]]
        p50, p99 = found[kind]
        print(f"| {kind} | {len(times)} | {times.count(math.inf)} | {p50:.1f} ms | {p99:.1f} ms |")
    ratios = [starved / calm for calm, starved in zip(found["calm"], found[STARVED], strict=True)]
    print(f"\n{STARVED} against calm: p50 {ratios[0]:.2f}, p99 {ratios[1]:.2f} times")
    print("Lists were answered: " + ", ".join(f"{count} with {status}" for status, count in sorted(answers.items())))
    return 0 if ratios[1] < 2 else 1


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=1_000_000, help="of the large tenant")
    parser.add_argument("--clients", type=int, default=24, help="that list at once")
    parser.add_argument("--query", default="status=cancelled", help="of the lists")
    parser.add_argument("--seconds", type=float, default=8, help="how long each phase takes")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--attack", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        url, key, query, clients = given.attack
        print(orjson.dumps(uvloop.run(attack(url, key, query, int(clients)))).decode())
        return 0
    print(__doc__)
    with embedded_postgres() as dsn, tempfile.TemporaryDirectory() as folder:
        return report(*uvloop.run(run(dsn, Path(folder), given)))


if __name__ == "__main__":
    sys.exit(main())
