"""API keys: the table, and a pod's copy of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.support.access import bearer, guarded_pod, make_key
from tests.support.cluster import Cluster
from tests.support.logbook import connected, until

from baton.auth import all_keys, keys
from baton.auth.ring import MAX_WAITING, KeyRing
from baton.db.postgres import Connection, Pool, pool
from baton.errors import ConfigurationError, DatabaseUnreachable, Unavailable


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[Connection]:
    async with connected(dsn) as opened:
        yield opened


async def test_a_key_is_made_once_and_only_its_hash_is_kept(connection: Connection) -> None:
    key, text = await keys.make(connection, "web", "acme", ["read", "create", "read"], 30)
    parsed = keys.parse(text)
    assert parsed is not None
    key_id, secret = parsed
    assert (key_id, len(bytes.fromhex(secret))) == (key.id, 32)
    kept = await connection.fetchrow("SELECT * FROM baton.api_key")
    assert kept is not None
    assert kept["secret_hash"] == hashlib.sha256(secret.encode()).digest()
    assert secret not in str(dict(kept))
    assert 29.9 < (kept["expires_at"] - kept["created_at"]).total_seconds() / 86_400 < 30.1
    (found,) = (await keys.live(connection)).values()
    assert found.has_secret(secret)
    assert not found.has_secret(secret[::-1])
    assert (found.tenant, sorted(found.scopes)) == ("acme", ["create", "read"])
    assert "secret" not in repr(found)


async def test_keys_are_revoked_by_name_or_id_once(connection: Connection) -> None:
    made = [(await keys.make(connection, name, "acme", ["read"]))[0] for name in ("a", "b", "c")]
    for given in ("a", str(made[1].id), made[2].id.hex):
        assert (await keys.revoke(connection, given)).revoked_at is not None
        with pytest.raises(ConfigurationError, match=r"no key .+ that could be revoked"):
            await keys.revoke(connection, given)
    assert await keys.live(connection) == {}
    again, _ = await keys.make(connection, "a", "acme", ["read"])
    listed = all_keys.union({"": await all_keys.read(connection)})
    assert [(item.key.name, item.state) for item in listed] == [
        *((name, "revoked") for name in "abc"),
        (again.name, "live"),
    ]


async def test_an_expired_key_is_listed_and_does_not_work(connection: Connection) -> None:
    key, _ = await keys.make(connection, "a", "acme", ["read"], 1)
    await connection.execute("UPDATE baton.api_key SET expires_at = clock_timestamp() - interval '1 s'")
    (listed,) = all_keys.union({"": await all_keys.read(connection)})
    assert (listed.key.id, listed.state) == (key.id, "expired")
    assert await keys.live(connection) == {}


@pytest.mark.parametrize(
    ("name", "tenant", "scopes", "sentence"),
    [
        ("", "acme", ["read"], "name of a key"),
        ("-a", "acme", ["read"], "name of a key"),
        ("a\n", "acme", ["read"], "name of a key"),
        ("x" * 101, "acme", ["read"], "name of a key"),
        ("01a1ff4b-97cc-7065-9fdf-ffaa7c1be540", "acme", ["read"], "name of a key"),
        ("a", "", ["read"], "tenant"),
        ("a", "a\0", ["read"], "tenant"),
        ("a", "x" * 201, ["read"], "tenant"),
        ("a", "acme", [], "scopes"),
        ("a", "acme", ["read", "all"], "scopes"),
        ("taken", "acme", ["read"], "called 'taken' exists already"),
    ],
)
async def test_an_invalid_key_is_refused_with_a_reason(
    connection: Connection, name: str, tenant: str, scopes: list[str], sentence: str
) -> None:
    await keys.make(connection, "taken", "acme", ["read"])
    with pytest.raises(ConfigurationError, match=sentence):
        await keys.make(connection, name, tenant, scopes)


@pytest.mark.parametrize("text", ["", "baton_", f"baton_{'0' * 32}_{'0' * 63}", f"Baton_{'0' * 32}_{'0' * 64}", "sk-x"])
def test_a_string_of_another_form_is_not_a_key(text: str) -> None:
    assert keys.parse(text) is None
    assert keys.parse(f"baton_{'0' * 32}_{'0' * 64}\n") is None


# A pod's copy


async def test_a_flood_of_unknown_keys_is_one_query_a_second(dsn: str) -> None:
    async with pool(dsn, size=2, timeout_seconds=10) as opened:
        ring = KeyRing(lambda: [opened], refresh_seconds=60, pause_seconds=0.2)
        await ring.open()
        assert await asyncio.gather(*(ring.find(uuid4()) for _ in range(MAX_WAITING + 50))) == [None] * (
            MAX_WAITING + 50
        )
        assert ring.reads == 2


async def test_a_key_created_while_others_are_refused_works_at_once(dsn: str, connection: Connection) -> None:
    async with pool(dsn, size=2, timeout_seconds=10) as opened:
        ring = KeyRing(lambda: [opened], refresh_seconds=60, pause_seconds=0.05)
        await ring.open()
        for number in range(5):
            refused = asyncio.create_task(ring.find(uuid4()))
            await asyncio.sleep(0)
            key, _ = await keys.make(connection, f"key {number}", "acme", ["read"])
            assert await ring.find(key.id) == (await keys.live(connection))[key.id]
            assert await refused is None


async def test_while_the_database_is_down_only_known_keys_work(dsn: str) -> None:
    async with connected(dsn) as connection, pool(dsn, size=2, timeout_seconds=10) as opened:
        key, _ = await keys.make(connection, "a", "acme", ["read"])
        ring = KeyRing(lambda: [opened], refresh_seconds=0.01, pause_seconds=0.01)
        await ring.open()
        await opened.close()
        running = asyncio.create_task(ring.run())
        await until(lambda: ring.reads > 3)
        assert (await ring.find(key.id)) is not None
        with pytest.raises(Unavailable):
            await ring.find(uuid4())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# A pod's copy of the keys of several databases


@pytest.fixture
async def pools(databases: dict[str, dict[str, Any]]) -> AsyncIterator[list[Pool]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(pool(entry["url"], size=1, timeout_seconds=10))
            for entry in databases.values()
        ]


async def made(pool: Pool, name: str, copy_to: Pool | None = None) -> UUID:
    """Make a key in one database, and the same one in another."""
    async with pool.acquire() as connection:
        key, _ = await keys.make(connection, name, "acme", ["read"])
    if copy_to is not None:
        row = await pool.fetchrow(
            "SELECT id, name, tenant, scopes, secret_hash FROM baton.api_key WHERE id = $1", key.id
        )
        assert row is not None
        await copy_to.execute(
            "INSERT INTO baton.api_key (id, name, tenant, scopes, secret_hash) VALUES ($1, $2, $3, $4, $5)", *row
        )
    return key.id


async def revoke(pool: Pool, key_id: UUID) -> None:
    async with pool.acquire() as connection:
        await keys.revoke(connection, str(key_id))


async def test_a_key_of_any_database_works_unless_one_has_revoked_it(pools: list[Pool]) -> None:
    first, second = pools
    everywhere, revoked = await made(first, "everywhere", second), await made(first, "revoked", second)
    missing = await made(second, "missing")
    await revoke(second, revoked)
    ring = KeyRing(lambda: pools, refresh_seconds=60, pause_seconds=0.01)
    await ring.open()
    assert [await ring.find(key_id) is not None for key_id in (everywhere, missing, revoked)] == [True, True, False]
    await revoke(first, everywhere)
    assert await ring.find(uuid4()) is None
    assert everywhere not in ring
    assert len(ring) == 1


async def test_the_last_keys_of_a_database_that_is_away_stay_valid(pools: list[Pool]) -> None:
    first, second = pools
    shared, revoked, only_there = (
        await made(first, "shared", second),
        await made(first, "revoked", second),
        await made(second, "only there"),
    )
    ring = KeyRing(lambda: pools, refresh_seconds=0.01, pause_seconds=0.01)
    await ring.open()
    await second.close()
    await revoke(first, revoked)
    running = asyncio.create_task(ring.run())
    await until(lambda: revoked not in ring)
    assert {shared, only_there} == {key_id for key_id in (shared, only_there) if key_id in ring}
    new = await made(first, "new")
    assert await ring.find(new) is not None
    assert await ring.find(uuid4()) is None
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_a_revocation_outlasts_the_database_that_knew_it(pools: list[Pool]) -> None:
    first, second = pools
    key_id = await made(first, "a", second)
    ring = KeyRing(lambda: pools, refresh_seconds=60, pause_seconds=0.01)
    await revoke(second, key_id)
    await ring.open()
    await second.close()
    assert await ring.find(key_id) is None


async def test_a_key_that_a_silent_database_may_have_is_not_refused(pools: list[Pool]) -> None:
    first, second = pools
    known = await made(first, "a")
    await second.close()
    ring = KeyRing(lambda: pools, refresh_seconds=60, pause_seconds=0.01)
    await ring.open()
    assert await ring.find(known) is not None
    with pytest.raises(Unavailable):
        await ring.find(uuid4())
    unconnected = KeyRing(lambda: [first, None], refresh_seconds=60, pause_seconds=0.01)
    await unconnected.open()
    assert await unconnected.find(known) is not None
    with pytest.raises(Unavailable):
        await unconnected.find(uuid4())
    await first.close()
    with pytest.raises(DatabaseUnreachable, match="The API keys could not be read"):
        await KeyRing(lambda: pools, refresh_seconds=60).open()


async def test_a_pod_that_cannot_check_a_key_asks_event_sources_to_reconnect(cluster: Cluster) -> None:
    _, text = await make_key(cluster)
    pod = await guarded_pod(cluster, database_timeout_seconds=1)
    author = await cluster.author(tenant="acme")
    unknown = bearer(f"baton_{uuid4().hex}_{'0' * 64}")
    await cluster.pool.execute("ALTER TABLE baton.api_key RENAME TO elsewhere")
    ways = (
        (f"/v1/streams/{author.id}/events", "*/*", 200),
        (f"/v1/streams/{author.id}/events", "application/problem+json", 503),
        (f"/v1/streams/{author.id}/events", "text/plain", 503),
        (f"/v1/streams/{author.id}", "*/*", 503),
        (f"/v1/responses/{author.id}", "*/*", 503),
    )
    asked = (cluster.client.get(pod.url + path, headers=unknown | {"accept": accept}) for path, accept, _ in ways)
    for (path, accept, status), answer in zip(ways, await asyncio.gather(*asked), strict=True):
        assert answer.status_code == status, (path, accept, answer.text)
        if status == 200:
            assert answer.text.startswith(": baton\nretry: ")
        else:
            assert answer.headers["retry-after"] == "1"
    assert (await cluster.client.get(f"{pod.url}/v1/streams/{author.id}", headers=bearer(text))).status_code == 200


async def test_a_pod_without_any_valid_credential_does_not_start(cluster: Cluster) -> None:
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="No client could get in"):
            await guarded_pod(cluster)
        key, _ = await make_key(cluster)
        async with cluster.pool.acquire() as connection:
            await keys.revoke(connection, str(key.id))
    await make_key(cluster)
    await guarded_pod(cluster)


async def test_a_cached_key_expires_on_time(cluster: Cluster) -> None:
    key, text = await make_key(cluster)
    change = "UPDATE baton.api_key SET expires_at = clock_timestamp() + interval '1 s' WHERE id = $1"
    await cluster.pool.execute(change, key.id)
    pod = await guarded_pod(cluster, keys_refresh_seconds=60)

    async def is_refused() -> bool:
        return (await cluster.client.get(f"{pod.url}/v1/streams", headers=bearer(text))).status_code == 401

    await until(is_refused)
    assert key.id in pod.pod.gate.ring
    assert pod.pod.gate.ring.reads == 1
