"""The database privileges that each of Baton's services needs.

`GRANTS` is the only list of them: `baton grants` prints SQL made from it (see `grants_sql`), and `baton doctor`
compares a role's privileges with it. A third role runs the migrations: it owns the Postgres schema `baton` and
everything in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ..db.end_columns import CHANGED as ENDED
from ..errors import ConfigurationError

Service: TypeAlias = Literal["work", "serve"]
# Settings of the roles in this database. A session that stays in a transaction holds its locks, and keeps vacuum from
# removing newly dead rows; no session of Baton's stays in one for a second. Inputs and texts travel as parameters of
# statements, and a server's log would keep them longer than retention does.
SETTINGS: Final = {
    "idle_in_transaction_session_timeout": "60s",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}

# Roles that can connect only through PUBLIC, and whether they may use Baton's schema. Superusers need no privilege.
BY_PUBLIC_ONLY: Final = """\
SELECT r.oid, r.rolname, coalesce(has_schema_privilege(r.oid, to_regnamespace('baton'), 'USAGE'), false) AS inside
FROM pg_roles AS r, pg_database AS d
WHERE d.datname = current_database() AND r.rolcanlogin AND NOT r.rolsuper
  AND EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a
              WHERE a.privilege_type = 'CONNECT' AND a.grantee = 0)
  AND NOT EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS a
                  WHERE a.privilege_type = 'CONNECT' AND a.grantee <> 0 AND pg_has_role(r.oid, a.grantee, 'USAGE'))"""

Privilege: TypeAlias = Literal["SELECT", "INSERT", "UPDATE", "DELETE", "EXECUTE"]

_MAX_NAME_BYTES: Final = 63
_RESERVED: Final = re.compile(r"public|none|pg_.*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Grant:
    """A privilege on a table, on some of its columns, or on a function, in the Postgres schema `baton`."""

    privilege: Privilege
    on: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoleNames:
    """The names of the three roles in a database.

    Raises:
        ConfigurationError: Postgres does not allow a name, or two names are the same.
    """

    migrate: str = "baton_migrate"
    work: str = "baton_work"
    serve: str = "baton_serve"

    def __post_init__(self) -> None:
        names = (self.migrate, self.work, self.serve)
        for name in names:
            _require_name(name)
        if len(set(names)) < len(names):
            raise ConfigurationError(
                "Two of the roles that migrate, work and serve have the same name. Choose three different names."
            )


def require_names(names: Iterable[str]) -> None:
    """Refuse a name that no role can have.

    Raises:
        ConfigurationError: Postgres does not allow it.
    """
    for name in names:
        _require_name(name)


@dataclass(frozen=True, slots=True)
class Revocation:
    """Revoke the right to connect to the database from PUBLIC, and keep it for some roles.

    `keep` names the roles that may still connect. If another role can connect only through PUBLIC, the SQL fails and
    changes nothing; `lock_out_others` allows it to lock out such roles, unless they have a session at that moment.

    Raises:
        ConfigurationError: Postgres does not allow a name.
    """

    keep: tuple[str, ...] = ()
    lock_out_others: bool = False

    def __post_init__(self) -> None:
        require_names(self.keep)


def _require_name(name: str) -> None:
    if not name.isprintable() or not 0 < len(name.encode()) <= _MAX_NAME_BYTES or _RESERVED.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a role. Use 1 to {_MAX_NAME_BYTES} bytes of printable characters, and no "
            "name that Postgres reserves (public, none, pg_…)."
        )


_NEW_STREAM: Final = (
    *("tenant", "generator", "input", "metadata", "on_worker_lost"),
    *("max_duration", "idle_timeout", "queue_timeout", "unwatched_timeout", "traceparent", "continuation"),
    *("may_continue", "status", "started_at", "queue_position", "held_until", "start_after", "priority", "webhook"),
)
# What puts a stream back among the queued ones.
_QUEUED: Final = ("queued_at", "queue_position", "held_until", "interruption", "attempts")
_WAITING: Final = ("waiting_since", "wait_until", "wait_ends", "waited_seconds", "may_continue")
_CLAIMED: Final = (
    *("epoch", "claim_token", "history", "started_at", "continues", "run"),
    *_QUEUED,
)
# What an append, a read or a sign of life changes.
_APPENDED: Final = (
    *("used_at", "tail", "size_bytes", "tokens", "first_token_at", "heard_at", "stream_seq", "producers"),
    "closed",
)
_BOTH: Final = (
    Grant("SELECT", "alembic_version"),
    Grant("SELECT", "compatibility"),
    Grant("SELECT", "retention"),
    Grant("SELECT", "partitioning"),  # for `baton doctor`
    Grant("SELECT", "database_identity"),
    Grant("SELECT", "placement"),
    Grant("SELECT", "batch"),
    Grant("INSERT", "batch"),  # a pod ends a queued stream that it cancels, and a stream that it erases
    # The end of a stream deletes its state and its steps, and may leave a call that stops the provider.
    Grant("SELECT", "stream_state"),
    Grant("DELETE", "stream_state"),
    Grant("SELECT", "step"),
    Grant("DELETE", "step"),
    Grant("SELECT", "input"),
    Grant("DELETE", "input"),
    Grant("SELECT", "webhook_call"),  # pods only for `baton doctor`
    Grant("INSERT", "stop_call", ("stream_id", "generator", "state")),
    Grant("SELECT", "worker"),
    Grant("SELECT", "notify_key"),
    Grant("EXECUTE", "raise_oldest_code(text)"),
    Grant("EXECUTE", "new_stream_id()"),
    Grant("EXECUTE", "current_history()"),
    Grant("EXECUTE", "begin_history(text, uuid, bigint)"),
)

# What a role of an application needs to create streams in its own transactions, and to send them inputs.
APPLICATION: Final = (
    Grant(
        "EXECUTE",
        "enqueue(text, json, jsonb, text, text, double precision, double precision, double precision, "
        "double precision, text, timestamptz, text, text, text, boolean)",
    ),
    Grant("EXECUTE", "add_input(uuid, bytea, text, integer)"),
)

GRANTS: Final[dict[Service, tuple[Grant, ...]]] = {
    "work": (
        *_BOTH,
        Grant("SELECT", "stream"),
        Grant("UPDATE", "stream", (*ENDED, *_CLAIMED, *_WAITING, "hook_failed")),
        Grant("INSERT", "stream_state"),
        Grant("UPDATE", "stream_state"),
        Grant("INSERT", "step"),
        Grant("SELECT", "stop_call"),
        Grant("UPDATE", "stop_call", ("due_at", "tries")),
        Grant("DELETE", "stop_call"),
        Grant("UPDATE", "webhook_call", ("due_at", "tries", "error")),
        Grant("DELETE", "webhook_call"),
        Grant("SELECT", "external_stream", ("stream_id", "kind")),  # whether a webhook's call can show a text
        Grant("INSERT", "worker", ("name", "generators", "concurrency", "code", "has_end_hook")),
        Grant("UPDATE", "worker", ("heartbeat", "heartbeat_at", "tokens", "silent", "silent_seconds")),
        Grant("DELETE", "worker"),  # a worker that stops, or that removes a dead one
        Grant("EXECUTE", "create_partitions(integer)"),
    ),
    "serve": (
        *_BOTH,
        Grant("SELECT", "stream"),
        Grant("INSERT", "stream", _NEW_STREAM),
        Grant("UPDATE", "stream", (*ENDED, "epoch", "cancel_requested_at", "watched_at", "held_until")),
        Grant("EXECUTE", "add_input(uuid, bytea, text, integer)"),
        Grant("DELETE", "stream"),
        Grant("DELETE", "batch"),
        Grant("SELECT", "idempotency_key"),
        Grant("INSERT", "idempotency_key"),
        Grant("UPDATE", "idempotency_key", ("request_hash", "stream_id", "expires_at")),
        Grant("DELETE", "idempotency_key"),
        Grant("SELECT", "api_key"),
        Grant("SELECT", "pod"),
        Grant("INSERT", "pod"),
        Grant("UPDATE", "pod"),
        Grant("DELETE", "pod"),  # its own row when it stops, and the rows of pods that are long gone
        Grant("SELECT", "token_bucket"),
        Grant("INSERT", "token_bucket"),
        Grant("UPDATE", "token_bucket", ("slot", "full_at")),
        # Streams that are written over HTTP.
        Grant("SELECT", "external_stream"),
        Grant("INSERT", "external_stream"),
        Grant("UPDATE", "external_stream", _APPENDED),
        Grant("DELETE", "external_stream"),
        Grant("SELECT", "producer"),
        Grant("INSERT", "producer"),
        Grant("UPDATE", "producer", ("epoch", "last_seq")),
        Grant("DELETE", "producer"),
        # For pods of the previous release.
        Grant("SELECT", "bucket"),
        Grant("INSERT", "bucket"),
        Grant("UPDATE", "bucket", ("full_at",)),
    ),
}
