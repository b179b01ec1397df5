"""Whose trouble excuses a stream: that of its own database, which its id names."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any, cast
from urllib.parse import urlsplit

from pydantic import SecretStr

from baton.chaos.databases import Database, Databases, Lines
from baton.chaos.proxy import Proxy
from baton.chaos.trouble import Trouble
from baton.settings import Settings

OF_FIRST = "019c2f5e-0000-7000-8000-000000000000"
OF_SECOND = "019c2f5e-0000-8001-8000-000000000000"


def databases(count: int) -> Databases:
    nothing = cast(Any, None)
    return Databases(
        [
            Database(name, number, "", nothing, {"pod-1": lines(name)}, None, Trouble())
            for number, name in enumerate(["a", "b"][:count] if count > 1 else [""])
        ]
    )


def lines(name: str) -> Lines:
    return Lines(Proxy(f"postgresql://user@host/{name}"), Proxy(f"postgresql://user@host/{name}"))


def port_of(url: SecretStr | None) -> int | None:
    return urlsplit(url.get_secret_value()).port if url is not None else None


def test_a_promotion_excuses_only_the_streams_of_its_database() -> None:
    both = databases(2)
    first, second = both
    promotion = second.trouble.note_detached({})
    promotion.stopped_at = promotion.promoted_at = time.monotonic()
    assert (both.of(OF_FIRST), both.of(OF_SECOND)) == (first, second)
    assert both.of(OF_SECOND).trouble.may_have_rewound(OF_SECOND, 0)
    assert not both.of(OF_FIRST).trouble.may_have_rewound(OF_FIRST, 0)
    assert not both.of(OF_FIRST).trouble.lost_at(time.monotonic())


def test_a_fault_between_a_worker_and_one_database_excuses_only_its_streams() -> None:
    first, second = databases(2)
    second.trouble.note_worker("worker-1")
    assert (first.trouble.count, second.trouble.count) == (0, 1)


async def test_a_process_reaches_each_database_by_lines_of_its_own() -> None:
    both = databases(2)
    async with contextlib.AsyncExitStack() as stack:
        for database in both:
            for proxy in (database.lines["pod-1"].queries, database.lines["pod-1"].listen):
                await stack.enter_async_context(proxy)
        given = json.loads(both.settings_of("pod-1")["BATON_DATABASES"])
        entries = Settings.load(databases=given).all_databases
        ports = [(item.queries.port, item.listen.port) for item in (database.lines["pod-1"] for database in both)]
    assert [(entry.name, entry.number, entry.weight) for entry in entries] == [("a", 0, 1), ("b", 1, 1)]
    assert [(port_of(entry.url), port_of(entry.listen_url)) for entry in entries] == ports


def test_one_database_needs_no_list_of_databases() -> None:
    assert databases(1).settings_of("pod-1").keys() == {"BATON_DATABASE_URL", "BATON_LISTEN_DATABASE_URL"}
