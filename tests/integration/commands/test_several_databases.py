"""The commands over the databases of BATON_DATABASES, also while one of them is away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import orjson
from tests.support.commands import told
from tests.support.databases import execute
from tests.support.logbook import connected, queue, until
from tests.support.processes import environment, running

from baton.auth import keys
from baton.stream_ids import number_of

AWAY = "postgresql://u:hunter2@127.0.0.1:1/x"
# Of the two databases, b is away.
ONE_OF_TWO = "1 of 2 databases was not {}: b."
UNREACHABLE = "baton: b: No Postgres could be reached at 127.0.0.1:1: "

Entries = dict[str, dict[str, Any]]


def env(databases: Entries, *away: str) -> dict[str, str]:
    given = {name: entry | ({"url": AWAY} if name in away else {}) for name, entry in databases.items()}
    return {"BATON_DATABASES": json.dumps(given), "COLUMNS": "200"}


def without_b(databases: Entries, *arguments: str) -> tuple[str, str]:
    """Run a command while b is away: it does what it can, says so, and fails. Return what it wrote."""
    code, out, err = told(*arguments, env=env(databases, "b"))
    assert code == 2, (out, err)
    first, last = err.splitlines()
    assert first.startswith(UNREACHABLE)
    assert "is the url of 'b' (BATON_DATABASES) right?" in first
    assert "BATON_DATABASE_URL" not in err
    assert "hunter2" not in out + err
    return out, last


def fetch(entry: dict[str, Any], query: str) -> list[Any]:
    async def read() -> list[Any]:
        async with connected(entry["url"]) as connection:
            return [tuple(row) for row in await connection.fetch(query)]

    return asyncio.run(read())


KEYS = "SELECT id, name, tenant, scopes, secret_hash, created_at, expires_at, revoked_at FROM baton.api_key ORDER BY id"
MAKE = ("--tenant", "acme", "--scope", "read")


# baton migrate


def test_an_empty_database_is_added_beside_one_in_use(dsn: str, empty_dsn: str) -> None:
    asyncio.run(queue(dsn))
    entries: Entries = {
        "a": {"url": dsn, "number": 0, "weight": 1},
        "b": {"url": empty_dsn, "number": 7, "weight": 0},
    }
    planned = "Would give the database 'b' the number 7."
    code, out, err = told("migrate", "--dry-run", env=env(entries))
    assert (code, err) == (0, "")
    assert "b: The database has no Baton tables yet. Revisions to run:" in out
    assert out.endswith(f"\n{planned}\nWould share new streams by these weights: a 1, b 0.\n")

    out, last = without_b(entries, "migrate")
    assert out.endswith("a: The database is up to date.\n")
    assert last.startswith(f"baton: {ONE_OF_TWO.format('migrated')} The numbers of the databases and the weights were")
    assert fetch(entries["a"], "SELECT FROM baton.placement") == []

    code, out, err = told("migrate", env=env(entries))
    assert (code, err) == (0, "")
    assert out.splitlines()[-3:] == [
        "b: The database is up to date.",
        "The database 'b' has the number 7.",
        "New streams are shared by these weights, in 30 s on every pod: a 1, b 0.",
    ]
    assert number_of(asyncio.run(queue(empty_dsn))) == 7
    code, out, err = told("migrate", env=env(entries))
    assert (code, out, err) == (0, "a: The database is up to date.\nb: The database is up to date.\n", "")
    code, out, _ = told("migrate", "--dry-run", env=env(entries))
    assert (code, out) == (0, "a: No revision is missing.\nb: No revision is missing.\n")


def test_numbers_are_not_given_on_the_way_to_an_older_revision(databases: Entries, empty_dsn: str) -> None:
    entries = {"a": databases["a"], "c": {"url": empty_dsn, "number": 2, "weight": 0}}
    code, out, err = told("migrate", "--to", "0001", env=env(entries))
    assert code == 2  # a is newer
    assert err.startswith("baton: a: ")
    assert "c: The database is at revision 0001.\n" in out
    code, out, err = told("migrate", "--sql", env=env(entries))
    assert (code, out) == (2, "")
    assert "different revisions: a " in err
    assert ", c 0001. Print the SQL for each start with --from." in err
    code, out, err = told("migrate", "--sql", "--from", "0027", env=env(entries))
    assert (code, err) == (0, "")
    assert out.startswith("-- For each database: a, c. Then run `baton migrate`")


def test_swapped_urls_are_refused_after_migrating(databases: Entries) -> None:
    databases["a"]["url"], databases["b"]["url"] = databases["b"]["url"], databases["a"]["url"]
    for arguments in (["migrate"], ["migrate", "--dry-run"]):
        code, _, err = told(*arguments, env=env(databases))
        assert code == 2
        assert "the url of 'a' leads to the database with the number 1" in err


# baton maintain


def test_all_databases_are_maintained_and_one_that_is_away_is_named(databases: Entries) -> None:
    code, out, err = told("maintain", env=env(databases))
    assert (code, err) == (0, "")
    assert all(f"{name}: Streams created before " in out for name in databases)
    out, last = without_b(databases, "maintain")
    assert out.startswith("a: ")
    assert last.startswith(f"baton: {ONE_OF_TWO.format('maintained')}")
    out, _ = without_b(databases, "maintain", "--dry-run")
    assert "a: Would delete 0 streams" in out


def test_maintenance_deletes_nothing_from_another_database(databases: Entries) -> None:
    databases["b"]["url"] = databases["a"]["url"]
    code, out, err = told("maintain", env=env(databases))
    assert (code, "b: " in out) == (2, False)
    assert "baton: b: BATON_DATABASES: the url of 'b' leads to the database with the number 0" in err


async def test_a_loop_of_maintenance_waits_for_no_database(databases: Entries, tmp_path: Path) -> None:
    async def keep_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            await reader.read()

    async with await asyncio.start_server(keep_silent, "127.0.0.1", 0) as hung:
        port = hung.sockets[0].getsockname()[1]
        given = {"a": databases["a"], "b": databases["b"] | {"url": f"postgresql://u@127.0.0.1:{port}/x"}}
        async with (
            running("maintain", "--every", "3600", env=environment(**env(given)), cwd=tmp_path) as loop,
            connected(databases["a"]["url"]) as connection,
        ):

            async def maintained() -> bool:
                return bool(await connection.fetchval("SELECT EXISTS (SELECT FROM baton.retention)"))

            await until(maintained)
            assert loop.process.returncode is None
            assert loop.lines == []  # b has not been given up yet


async def test_a_loop_of_maintenance_ends_if_no_database_answers(databases: Entries, tmp_path: Path) -> None:
    async with running("maintain", "--every", "9", env=environment(**env(databases, "a", "b")), cwd=tmp_path) as loop:
        await loop.said(r"baton: b: No Postgres could be reached .+ Retrying\.")
        await loop.said("baton: No database could be maintained")
        assert await loop.ends() == 2


# baton streams, workers, mark-restored, run-end-hooks


def test_streams_of_all_databases_are_listed_newest_first(databases: Entries) -> None:
    ids = [str(asyncio.run(queue(databases[name]["url"]))) for name in ("a", "b", "a")]
    code, out, err = told("streams", "--json", env=env(databases))
    assert (code, err) == (0, "")
    listed = [(item["id"], item["database"]) for item in json.loads(out)]
    assert sorted(listed, reverse=True) == listed
    assert sorted(listed) == sorted(zip(ids, ("a", "b", "a"), strict=True))
    code, out, _ = told("streams", "--limit", "1", env=env(databases))
    header, row = out.splitlines()
    assert header.endswith("\tdatabase")
    assert row.split("\t")[0] == listed[0][0]
    out, last = without_b(databases, "streams", "--json")
    assert {item["database"] for item in json.loads(out)} == {"a"}
    assert last.startswith(f"baton: {ONE_OF_TWO.format('read')}")
    assert told("workers", env=env(databases))[:2] == (0, "No workers. Run `baton worker` to start one.\n")
    code, out, err = told("run-end-hooks", "--dry-run", env=env(databases))
    assert (code, out, err) == (0, "", "")


def test_only_the_database_that_was_restored_is_marked(databases: Entries) -> None:
    asyncio.run(queue(databases["b"]["url"]))
    assert told("mark-restored", "--database", "b", env=env(databases))[1].startswith("Marked as restored. 1 streams")
    markers = [fetch(entry, "SELECT count(DISTINCT history) FROM baton.stream") for entry in databases.values()]
    assert markers == [[(0,)], [(1,)]]
    for arguments, sentence in (
        ([], "There are several databases. Choose one with --database: a, b."),
        (["--database", "c"], "BATON_DATABASES has no 'c'. Choose one of a, b."),
    ):
        assert told("mark-restored", *arguments, env=env(databases)) == (2, "", f"baton: {sentence}\n")
    code, _, err = told("mark-restored", "--database", "b", env={"BATON_DATABASE_URL": databases["a"]["url"]})
    assert (code, "BATON_DATABASES, which is not set" in err) == (2, True)


# baton keys


def test_a_key_is_the_same_in_all_databases_or_is_not_created(databases: Entries) -> None:
    code, out, err = told("keys", "create", "web", *MAKE, env=env(databases))
    assert code == 0, err
    rows = [fetch(entry, KEYS) for entry in databases.values()]
    assert rows[0] == rows[1]
    parsed = keys.parse(out.strip())
    assert parsed is not None
    assert rows[0][0][0] == parsed[0]
    out, last = without_b(databases, "keys", "create", "other", *MAKE)
    assert (out, "No key was created" in last) == ("", True)
    # The name is taken in b only.
    asyncio.run(execute(databases["b"]["url"], "UPDATE baton.api_key SET name = 'taken'"))
    code, out, err = told("keys", "create", "taken", *MAKE, env=env(databases))
    assert (code, out, "called 'taken' exists already" in err) == (2, "", True)
    assert len(fetch(databases["a"], KEYS)) == 1
    assert told("keys", "rotate-notify", env=env(databases))[1].splitlines() == [
        f"{name}: Created key 2. The previous key becomes invalid in 80 s." for name in databases
    ]


def test_a_revocation_does_not_wait_and_is_copied_later(databases: Entries) -> None:
    for name in ("one", "two"):
        assert told("keys", "create", name, *MAKE, env=env(databases))[0] == 0
    out, last = without_b(databases, "keys", "revoke", "one")
    assert out.startswith("Revoked 'one'")
    assert "Run `baton keys sync` when all databases answer." in last
    asyncio.run(execute(databases["a"]["url"], "DELETE FROM baton.api_key WHERE name = 'two'"))
    listed = json.loads(told("keys", "list", "--json", env=env(databases))[1])
    assert [(item["name"], item["state"], item["missing_in"], item["not_revoked_in"]) for item in listed] == [
        ("one", "revoked", [], ["b"]),
        ("two", "live", ["a"], []),
    ]
    shown = told("keys", "list", env=env(databases))[1]
    assert "not revoked in b" in shown
    assert "missing in a" in shown
    code, out, err = told("keys", "sync", env=env(databases))
    assert (code, err) == (0, "")
    assert [line.partition(" (")[0] for line in out.splitlines()] == ["a: Copied 'two'", "b: Revoked 'one'"]
    rows = [fetch(entry, KEYS) for entry in databases.values()]
    assert rows[0] == rows[1]
    assert told("keys", "sync", env=env(databases)) == (0, "All databases have the same keys.\n", "")
    code, _, err = told("keys", "revoke", "one", env=env(databases))
    assert (code, "no key 'one' that could be revoked" in err) == (2, True)


def test_two_keys_of_one_name_are_told_apart_by_their_ids(databases: Entries) -> None:
    for entry in databases.values():
        assert told("keys", "create", "web", *MAKE, env={"BATON_DATABASE_URL": entry["url"]})[0] == 0
    code, out, err = told("keys", "revoke", "web", env=env(databases))
    assert (code, out, "2 keys are called 'web'. Revoke one by its id: " in err) == (2, "", True)
    code, out, err = told("keys", "sync", env=env(databases))
    assert (code, out, "other valid keys have these names: 'web' (" in err) == (2, "", True)
    ((key_id, *_),) = fetch(databases["b"], KEYS)
    assert told("keys", "revoke", str(key_id), env=env(databases))[0] == 0
    code, out, err = told("keys", "sync", env=env(databases))
    assert (code, err, out.count("Copied 'web'")) == (0, "", 2)


# baton doctor


def codes(found: list[dict[str, str]]) -> dict[str, str]:
    return {item["code"]: item["level"] for item in found}


def test_the_doctor_examines_each_database_and_all_together(databases: Entries) -> None:
    databases["b"]["weight"] = 0
    told("migrate", env=env(databases))
    told("keys", "create", "web", *MAKE, env=env(databases))
    out = told("doctor", "--json", env=env(databases))[1]
    document = orjson.loads(out)
    assert document.keys() == {"version", "complete", "errors", "warnings", "findings", "databases"}
    assert codes(document["findings"]) == dict.fromkeys(
        ["distribution", "database_numbers", "weights", "drained", "access", "keys", "database_clocks"], "ok"
    )
    assert document["databases"].keys() == {"a", "b"}
    for found in document["databases"].values():
        assert "reachable" in codes(found["findings"])
        assert not {"access", "distribution"} & codes(found["findings"]).keys()

    asyncio.run(queue(databases["b"]["url"]))
    asyncio.run(execute(databases["b"]["url"], "DELETE FROM baton.api_key"))
    asyncio.run(
        execute(
            databases["a"]["url"],
            "INSERT INTO baton.worker (name, generators, concurrency) VALUES ('w', '{test}', 1)",
        )
    )
    databases["a"]["weight"] = 2
    document = orjson.loads(told("doctor", "--json", env=env(databases))[1])
    found = codes(document["findings"])
    assert {name for name, level in found.items() if level == "warning"} == {
        *("weights_differ", "keys_differ", "database_unserved")
    }
    assert found["draining"] == "ok"
    out = told("doctor", env=env(databases))[1]
    assert "(all): ok       draining: 'b' takes no new streams. It still holds 1 stream; the newest expires " in out
    assert "\nb: ok       reachable: " in out


def test_the_doctor_names_a_wrong_and_an_unreachable_database(databases: Entries) -> None:
    code, out, _ = told("doctor", env=env(databases, "b"))
    assert code == 2
    assert "b: error    unreachable: " in out
    assert "is the url of 'b' (BATON_DATABASES) right?" in out
    assert "(all): warning  database_not_compared: 'b' was not compared with the others: it is unreachable." in out
    databases["a"]["url"], databases["b"]["url"] = databases["b"]["url"], databases["a"]["url"]
    asyncio.run(execute(databases["a"]["url"], "UPDATE baton.database_identity SET installation = gen_random_uuid()"))
    code, out, _ = told("doctor", "--json", env=env(databases))
    found = codes(orjson.loads(out)["findings"])
    assert (code, found["database_number"], found["installations_differ"]) == (1, "error", "error")
