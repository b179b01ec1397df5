"""Creating a stream in an application's own transaction, over the application's own connection.

The transactional outbox: if the transaction commits, the stream exists, and a worker runs it; if it is rolled back,
there never was one. Everything happens in the SQL function `baton.enqueue`, which a program in any language can call
(see the migration that creates it). This module knows how to call it over the connections that Python programs have.
It imports no driver, and does not end the transaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

import orjson

# The parameters of the function, with the types of what is sent. JSON is sent as text: the application may have given
# its connection a codec for JSON, which would encode it once more.
_TYPES: Final = {
    "generator": "text",
    "input": "json",
    "metadata": "jsonb",
    "tenant": "text",
    "on_worker_lost": "text",
    "max_duration_seconds": "double precision",
    "idle_timeout_seconds": "double precision",
    "queue_timeout_seconds": "double precision",
    "cancel_when_unwatched_seconds": "double precision",
    "priority": "text",
    "start_after": "timestamptz",
    "webhook": "text",
    "idempotency_key": "text",
    "traceparent": "text",
    "notify": "boolean",
}
_JSON: Final = frozenset({"json", "jsonb"})


async def enqueue(
    connection: Any,
    *,
    generator: str,
    input: Any,  # noqa: A002 - the name of the field
    metadata: Mapping[str, str | bool | int | float] | None = None,
    tenant: str = "",
    on_worker_lost: Literal["continue", "retry", "fail"] | None = None,
    max_duration_seconds: float | None = None,
    idle_timeout_seconds: float | None = None,
    queue_timeout_seconds: float | None = None,
    cancel_when_unwatched_seconds: float | None = None,
    priority: Literal["high", "normal", "low"] | None = None,
    start_after: datetime | None = None,
    webhook: str | None = None,
    idempotency_key: str | None = None,
    traceparent: str | None = None,
    notify: bool = True,
) -> UUID:
    """Create a stream in the connection's transaction, and return its id. It is queued when the transaction commits.

        async with connection.transaction():
            await connection.execute("INSERT INTO message …")
            stream_id = await baton.enqueue(connection, generator="agent", input=question, tenant="acme")

    `connection` is one of asyncpg, or an `AsyncConnection` or `AsyncSession` of SQLAlchemy with any driver. The role
    needs what `baton grants --app ROLE` grants. The fields are those of `POST /v1/streams`, except that `generator` has
    no default, and that no process checks its name: a stream that no worker can run ends as `queue_timeout`. The limits
    of a tenant's rate and number of streams do not apply. With several databases, the application's own database is one
    of them: the stream is created there, whatever the weights are, and its id has that database's number.

    With an `idempotency_key`, a later call with the same arguments returns the same stream, for a day. With `notify`
    false no worker is woken, and the stream starts up to `BATON_QUEUE_POLL_SECONDS` later.

    Raises:
        TypeError: the connection is of another kind, or the input is not JSON.

    The driver raises its own errors, as for any statement: one for an argument that is out of range. The transaction
    cannot continue then.
    """
    given = {
        "generator": generator,
        "input": input,
        "metadata": {} if metadata is None else dict(metadata),
        "tenant": tenant,
        "on_worker_lost": on_worker_lost,
        "max_duration_seconds": max_duration_seconds,
        "idle_timeout_seconds": idle_timeout_seconds,
        "queue_timeout_seconds": queue_timeout_seconds,
        "cancel_when_unwatched_seconds": cancel_when_unwatched_seconds,
        "priority": priority,
        "start_after": start_after,
        "webhook": webhook,
        "idempotency_key": idempotency_key,
        "traceparent": traceparent,
        "notify": notify,
    }
    sent = {name: orjson.dumps(value).decode() if _TYPES[name] in _JSON else value for name, value in given.items()}
    library = _library_of(connection)
    if library == "asyncpg":
        stream_id = await connection.fetchval(_call(f"${number}" for number in range(1, len(sent) + 1)), *sent.values())
    elif library == "sqlalchemy" and hasattr(connection, "run_sync"):
        # Only a program that uses it has imported it.
        from sqlalchemy import text

        stream_id = await connection.scalar(text(_call(f":{name}" for name in sent)), sent)
    else:
        raise TypeError(
            "baton.enqueue takes a connection of asyncpg, or an AsyncConnection or AsyncSession of SQLAlchemy, and not "
            f"{type(connection).__module__}.{type(connection).__name__}. Over any other connection, call the SQL "
            "function baton.enqueue."
        )
    return stream_id if type(stream_id) is UUID else UUID(str(stream_id))


def _call(placeholders: Any) -> str:
    """Return the statement, with these placeholders for the parameters in their order."""
    arguments = ", ".join(
        f"{name} => {_cast(placeholder, kind)}"
        for (name, kind), placeholder in zip(_TYPES.items(), placeholders, strict=True)
    )
    return f"SELECT baton.enqueue({arguments})"


def _cast(placeholder: str, kind: str) -> str:
    return f"CAST(CAST({placeholder} AS text) AS {kind})" if kind in _JSON else f"CAST({placeholder} AS {kind})"


def _library_of(connection: Any) -> str | None:
    """Return which library a connection is of, also if its class was derived from one of that library's."""
    roots = [cls.__module__.partition(".")[0] for cls in type(connection).__mro__]
    return next((root for root in roots if root in {"asyncpg", "sqlalchemy"}), None)
