"""Producers who send anything never break a pod, a log, or the wall between tenants."""

from __future__ import annotations

import uuid
from typing import Any

import asyncpg
import pytest
from tests.integration.api.hostile_producers import Attack, Tenant, attack
from tests.support.access import bearer
from tests.support.cluster import Cluster
from tests.support.log_invariants import require_sound_logs

OFTEN_LEARNED = 100
UNLIKE = {"x-request-id", "date"}

_OWNED = """
SELECT stream::text, external::text,
       (SELECT array_agg(batch::text ORDER BY first_seq) FROM baton.batch WHERE stream_id = id),
       (SELECT array_agg(producer::text ORDER BY producer_id) FROM baton.producer WHERE stream_id = id)
FROM baton.stream LEFT JOIN baton.external_stream AS external ON external.stream_id = id
WHERE stream.tenant = $1 ORDER BY id
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_hundreds_of_hostile_requests(cluster: Cluster) -> None:
    await _withstand(cluster, 400, seed=20, probed=1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2])
async def test_thousands_of_hostile_requests(cluster: Cluster, seed: int) -> None:
    await _withstand(cluster, 10_000, seed, probed=15)


async def _withstand(cluster: Cluster, count: int, seed: int, probed: int) -> None:
    made = await attack(cluster, seed)
    victim, intruder = made.tenants
    both = count * 3 // 4
    for first in range(0, both, OFTEN_LEARNED):
        await made.run(min(OFTEN_LEARNED, both - first))
        await made.learn()
    _require_answers(made)
    before = await _owned(cluster.pool, victim)
    await made.run(count // 4, of=intruder)
    assert await _owned(cluster.pool, victim) == before
    await _require_no_difference(made, victim, intruder, probed)
    assert await _owned(cluster.pool, victim) == before
    await _require_narrow_tokens(made, victim)
    assert await require_sound_logs(cluster.pool) > 0


def _require_answers(made: Attack) -> None:
    """The requests must have reached what they attack."""
    for method in ("PUT", "POST", "GET"):
        found = {status: number for (each, status), number in made.answers.items() if each == method}
        assert sum(number for status, number in found.items() if status < 300) > found.get(400, 0) // 8, made.answers


async def _owned(pool: asyncpg.Pool[asyncpg.Record], tenant: Tenant) -> list[Any]:
    return [tuple(row) for row in await pool.fetch(_OWNED, tenant.name)]


async def _require_no_difference(made: Attack, victim: Tenant, intruder: Tenant, probed: int) -> None:
    """What exists for another tenant is answered as what exists for nobody."""
    for taken in (*victim.ids[:probed], *victim.ids[-probed:]):
        # The same time, and other random bits.
        free = taken[:19] + str(uuid.uuid4())[19:]
        for method, before, after in (
            *(("GET", "/v1/stream/", query) for query in ("", "?offset=-1", "?offset=now&live=sse")),
            *((method, "/v1/stream/", "") for method in ("HEAD", "POST", "DELETE", "PUT")),
            *((method, "/v1/streams/", "") for method in ("GET", "HEAD", "POST", "DELETE")),
            ("GET", "/v1/streams/", "/end?wait=0"),
        ):
            answers = [await _asked(made, intruder, method, f"{before}{id_}{after}", id_) for id_ in (taken, free)]
            assert answers[0] == answers[1], (method, before, after)
            assert answers[0][0] >= 400, answers[0]
    for name in (f"only-{victim.name}-{number}" for number in range(min(5, probed))):
        for method in ("GET", "HEAD", "POST", "DELETE"):
            free = "never-" + name
            answers = [await _asked(made, intruder, method, f"/v1/stream/{path}", path) for path in (name, free)]
            assert answers[0] == answers[1], (method, name)


async def _asked(made: Attack, tenant: Tenant, method: str, path: str, name: str) -> tuple[int, dict[str, str], str]:
    """Return an answer, without what names the request or what was asked for."""
    headers = bearer(tenant.credentials[0]) | {"content-type": "text/plain"}
    body = b"x" if method == "POST" else b""
    answer = await made.cluster.client.request(method, made.pod.url + path, headers=headers, content=body)
    request_id = answer.headers["x-request-id"]
    kept = {key: value for key, value in answer.headers.items() if key not in {*UNLIKE, "content-length"}}
    return answer.status_code, kept, answer.text.replace(request_id, "").replace(name, "")


async def _require_narrow_tokens(made: Attack, tenant: Tenant) -> None:
    """A token that appends to one stream does nothing else, and to no other one."""
    client, url = made.cluster.client, made.pod.url
    key = bearer(tenant.credentials[0])
    ids = []
    for path in ("mine", "other"):
        await client.put(f"{url}/v1/stream/{path}", headers=key | {"content-type": "text/plain"})
        offset = (await client.head(f"{url}/v1/stream/{path}", headers=key)).headers["stream-next-offset"]
        rows = await made.cluster.pool.fetch(
            "SELECT stream_id FROM baton.external_stream WHERE path = $1 AND tenant = $2", path, tenant.name
        )
        ids.append(str(rows[0]["stream_id"]))
        assert ids[-1].replace("-", "").startswith(offset.partition("_")[0])
    mine, other = ids
    token = bearer(tenant.token(mine, "produce")) | {"content-type": "text/plain"}

    async def status(method: str, path: str) -> int:
        body = b"x" if method in {"POST", "PUT"} else b""
        return (await client.request(method, f"{url}/v1/stream/{path}", headers=token, content=body)).status_code

    assert await status("POST", mine) == 204
    for method, path in (
        ("POST", other),
        ("POST", "other"),
        ("PUT", "new"),
        ("PUT", "mine"),
        ("DELETE", mine),
        ("GET", mine),
        ("DELETE", other),
        ("GET", other),
    ):
        assert await status(method, path) in {401, 403, 404, 409}, (method, path)
