"""`baton streams` and `baton workers`: lists both from the databases, as a table, as lines, or as JSON."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..db import stream_lists, streams, worker_rows
from ..db.postgres import Connection
from ..db.streams import Stream
from ..db.worker_rows import ListedWorker
from ..observability.log_formatters import escaped
from ..settings import Settings
from .each_database import EachDatabase
from .one_connection import ANY_ROLE, Result, run_over_each

_FORM: Final = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
_STYLES: Final = {
    "completed": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "running": "cyan",
    "open": "cyan",
    "waiting": "magenta",
}


@dataclass(frozen=True, slots=True)
class StreamQuery:
    """Which streams to list: the newest `limit` of one tenant, or of all if it is None.

    `silent`: only streams whose generator is silent, the longest first.
    """

    tenant: str | None
    status: str | None
    limit: int
    silent: bool = False


def list_streams(settings: Settings, wanted: StreamQuery, *, as_json: bool) -> None:
    """Print the newest streams, of all tenants unless one is named.

    Raises:
        ConfigurationError: the database cannot be read.
    """

    async def read(connection: Connection) -> tuple[list[Stream], dict[UUID, float]]:
        silences = await worker_rows.silences(connection)
        if wanted.silent:
            return await _most_silent(connection, wanted, silences), silences
        selection = stream_lists.StreamFilter(
            wanted.tenant, statuses=None if wanted.status is None else [wanted.status]
        )
        return [stream async for stream in stream_lists.find_all(connection, selection, wanted.limit)], silences

    each = EachDatabase(settings)
    found = _read(each, read)
    # A stream that ended after its worker's last report is not silent.
    rows = [
        (name, item, silences.get(item.id) if item.status == "running" else None)
        for name, (items, silences) in found.items()
        for item in items
    ]
    rows.sort(key=lambda row: (row[2] or 0) if wanted.silent else row[1].id.int, reverse=True)
    del rows[wanted.limit :]
    if as_json:
        _print_json([{**asdict(item), "silent_seconds": silent, **_place(each, name)} for name, item, silent in rows])
    else:
        _print_rows(
            [_stream_row(item, silent) | _place(each, name) for name, item, silent in rows],
            nothing="No stream matches.",
        )
    each.require_all("read")


async def _most_silent(connection: Connection, wanted: StreamQuery, silences: Mapping[UUID, float]) -> list[Stream]:
    """Return the streams that have been silent longest, the longest first, as their workers reported."""
    found = await streams.get_many(connection, list(silences))
    silent = [
        item for item in found if item.status == "running" and (wanted.tenant is None or item.tenant == wanted.tenant)
    ]
    return sorted(silent, key=lambda item: silences[item.id], reverse=True)[: wanted.limit]


def list_workers(settings: Settings, *, as_json: bool) -> None:
    """Print the workers that have not left. One that serves several databases has a row in each of them.

    Raises:
        ConfigurationError: the database cannot be read.
    """
    each = EachDatabase(settings)
    rows = [(name, item) for name, items in _read(each, worker_rows.list_all).items() for item in items]
    if as_json:
        _print_json([asdict(item) | _place(each, name) for name, item in rows])
    else:
        shown = [_worker_row(item) | _place(each, name) for name, item in rows]
        _print_rows(shown, nothing="No workers. Run `baton worker` to start one.")
    each.require_all("read")


def _read(each: EachDatabase, question: Callable[[Connection], Awaitable[Result]]) -> dict[str, Result]:
    return run_over_each(each, question, name="baton list", role=ANY_ROLE)


def _place(each: EachDatabase, name: str) -> dict[str, str]:
    """Return the database of a row, if there are several."""
    return {"database": name} if each.several else {}


def _stream_row(item: Stream, silent_seconds: float | None) -> dict[str, str]:
    seconds = item.duration_seconds
    first = item.time_to_first_token_seconds
    return {
        "stream": str(item.id),
        "tenant": item.tenant or "-",
        "generator": item.generator,
        "status": item.status,
        "created (UTC)": _moment(item.created_at),
        "first token": "-" if first is None else f"{first:.2f} s",
        "silent for": "-" if silent_seconds is None else f"{silent_seconds:.0f} s",
        "took": "-" if seconds is None else f"{seconds:.1f} s",
        "tokens": "-" if item.tokens is None else str(item.tokens),
        "reason": item.error_code or item.finish_reason or _wait(item) or "-",
    }


def _wait(item: Stream) -> str | None:
    return f"until {_moment(item.wait_until)}" if item.status == "waiting" and item.wait_until else None


def _worker_row(item: ListedWorker) -> dict[str, str]:
    return {
        "worker": item.name,
        "streams": f"{item.running} of {item.concurrency}",
        "last heartbeat": f"{item.silent_seconds:.1f} s ago",
        "since (UTC)": _moment(item.started_at),
        "generators": ", ".join(item.generators),
    }


def _moment(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def _print_json(items: Sequence[Mapping[str, Any]]) -> None:
    sys.stdout.write(orjson.dumps(items, default=str, option=_FORM).decode())


def _print_rows(rows: Sequence[Mapping[str, str]], *, nothing: str) -> None:
    """Print a table in a terminal, otherwise lines with tabs, for other programs."""
    console = Console(highlight=False)
    # Some values come from clients and generators.
    rows = [{name: escaped(value) for name, value in row.items()} for row in rows]
    if not rows:
        console.print(nothing, markup=False, soft_wrap=True)
    elif console.is_terminal:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in rows[0]:
            table.add_column(name, no_wrap=name in {"stream", "status"}, overflow="fold")
        for row in rows:
            table.add_row(*(Text(value, style=_STYLES.get(value, "")) for value in row.values()))
        console.print(table)
    else:
        for line in (list(rows[0]), *(list(row.values()) for row in rows)):
            sys.stdout.write("\t".join(line) + "\n")
