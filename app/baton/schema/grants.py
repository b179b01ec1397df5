"""The rights that each of Baton's services needs in the database, and the SQL that grants just these.

`GRANTS` is the one place that says so: `baton grants` prints SQL made of it, and `baton doctor` compares with it what a
role may do. A third role runs the migrations: it owns the Postgres schema `baton`, and all that is in there.

The SQL may be run at any time, and again: it creates what is missing, takes away what is too much, and skips what a
later migration will bring.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import asdict, dataclass
from typing import Final, Literal, TypeAlias

from ..db.end_columns import CHANGED as ENDED
from ..errors import ConfigurationError

Service: TypeAlias = Literal["work", "serve"]
# Defaults of the roles in this database. A session that stays in a transaction holds its locks, and keeps vacuum from
# removing what died since; none of Baton's stays in one for a second. Inputs and texts travel as parameters of
# statements, and a server's log would keep them for longer than retention does.
SETTINGS: Final = {
    "idle_in_transaction_session_timeout": "60s",
    "log_parameter_max_length": "0",
    "log_parameter_max_length_on_error": "0",
}

# Roles that could not connect any more if PUBLIC could not, and whether they may use Baton's schema. Superusers need no
# privilege.
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
    """A right on a table, or on some of its columns, or on a function; all are in the Postgres schema `baton`."""

    privilege: Privilege
    on: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RoleNames:
    """What the three roles are called in a database.

    Raises:
        ConfigurationError: Postgres has no such names, or two are the same.
    """

    migrate: str = "baton_migrate"
    work: str = "baton_work"
    serve: str = "baton_serve"

    def __post_init__(self) -> None:
        names = (self.migrate, self.work, self.serve)
        for name in names:
            _require_name(name)
        if len(set(names)) < len(names):
            raise ConfigurationError("The roles that migrate, work and serve must be three different ones.")


@dataclass(frozen=True, slots=True)
class Revocation:
    """That PUBLIC may not connect to the database any more, and who else still may.

    `keep` are roles that may. A role that could connect through PUBLIC alone and is not among them stops the SQL, which
    then changes nothing; `lock_out_others` says that those without a session just now may be locked out.

    Raises:
        ConfigurationError: Postgres has no such names.
    """

    keep: tuple[str, ...] = ()
    lock_out_others: bool = False

    def __post_init__(self) -> None:
        for name in self.keep:
            _require_name(name)


def _require_name(name: str) -> None:
    if not name.isprintable() or not 0 < len(name.encode()) <= _MAX_NAME_BYTES or _RESERVED.fullmatch(name):
        raise ConfigurationError(
            f"{name!r} cannot be the name of a role: it takes 1 to {_MAX_NAME_BYTES} printable characters, and "
            "none of the names that Postgres keeps for itself (public, none, pg_…)."
        )


_NEW_STREAM: Final = (
    *("tenant", "generator", "input", "metadata", "on_worker_lost"),
    *("max_duration", "idle_timeout", "queue_timeout", "unwatched_timeout", "traceparent", "continuation"),
)
_BOTH: Final = (
    Grant("SELECT", "alembic_version"),
    Grant("SELECT", "compatibility"),
    Grant("SELECT", "retention"),
    Grant("SELECT", "partitioning"),  # for `baton doctor`
    Grant("SELECT", "batch"),
    Grant("INSERT", "batch"),  # a pod ends what it cancels while it is queued, and what it erases
    Grant("SELECT", "worker"),
    Grant("SELECT", "notify_key"),
    Grant("EXECUTE", "current_history()"),
    Grant("EXECUTE", "begin_history(text, uuid, bigint)"),
)

GRANTS: Final[dict[Service, tuple[Grant, ...]]] = {
    "work": (
        *_BOTH,
        Grant("SELECT", "stream"),
        Grant("UPDATE", "stream", (*ENDED, "epoch", "claim_token", "history", "attempts", "queued_at", "started_at")),
        Grant("INSERT", "worker", ("name", "generators", "concurrency")),
        Grant("UPDATE", "worker", ("heartbeat", "heartbeat_at", "tokens", "silent", "silent_seconds")),
        Grant("DELETE", "worker"),  # a worker that leaves, or that buries another
        Grant("EXECUTE", "create_partitions(integer)"),
    ),
    "serve": (
        *_BOTH,
        Grant("SELECT", "stream"),
        Grant("INSERT", "stream", _NEW_STREAM),
        Grant("UPDATE", "stream", (*ENDED, "epoch", "cancel_requested_at", "watched_at")),
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
        Grant("DELETE", "pod"),  # itself when it leaves, and others that are long gone
        Grant("SELECT", "token_bucket"),
        Grant("INSERT", "token_bucket"),
        Grant("UPDATE", "token_bucket", ("slot", "full_at")),
        # For pods of the release before.
        Grant("SELECT", "bucket"),
        Grant("INSERT", "bucket"),
        Grant("UPDATE", "bucket", ("full_at",)),
    ),
}

_DEEP: Final = " " * 12
_SCRIPT: Final = """\
-- Roles for Baton, with the least rights that it needs. Run this as an administrator of the database (a superuser, or
-- the database's owner if it may create roles): once before the first `baton migrate`, and again after each. Where
-- another role has run the migrations, whoever runs this must be a superuser, or belong to that role.
--
-- It waits for a lock for half a second at most. If it cannot have one, nothing was done: run it again. Only a change
-- of the tables' owner locks them, for the moment that it takes.
--
-- The roles can log in, but have no password yet. Give each one what your server asks for, for instance with
--   ALTER ROLE {serve} PASSWORD '...';    (or \\password in psql, which keeps it out of the server's log)
--
{about_public}
DO {tag}
DECLARE
    before constant text := current_setting('role');
    joined boolean := false;
    owner oid;
    grantee name;
    item text;
    privilege text;
    object text;
    columns name[];
{declarations}BEGIN
    SET LOCAL search_path = pg_catalog, pg_temp;
    SET LOCAL lock_timeout = '500ms';

    -- The roles.
    FOREACH grantee IN ARRAY ARRAY[{migrate_text}, {work_text}, {serve_text}] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = grantee) THEN
            EXECUTE format('CREATE ROLE %I LOGIN', grantee);
        END IF;
        IF NOT has_database_privilege(grantee, current_database(), 'CONNECT') THEN
            EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), grantee);
        END IF;
    END LOOP;
    owner := (SELECT oid FROM pg_roles WHERE rolname = {migrate_text});

    -- Their settings in this database, for sessions from now on. What somebody has set for a role stays.
    FOR grantee, item, privilege IN
        SELECT r.rolname, s.name, s.value FROM pg_roles AS r, (VALUES {settings}) AS s (name, value)
        WHERE r.rolname IN ({migrate_text}, {work_text}, {serve_text}) AND NOT EXISTS (
            SELECT FROM pg_db_role_setting AS t, unnest(t.setconfig) AS c
            WHERE t.setrole = r.oid AND starts_with(c, s.name || '=')
              AND t.setdatabase IN (0, (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())))
    LOOP
        object := format('ALTER ROLE %I IN DATABASE %I SET %s = %L', grantee, current_database(), item, privilege);
        BEGIN
            EXECUTE object;
        EXCEPTION WHEN insufficient_privilege THEN
            RAISE NOTICE '% may not do this, and went on without: %;', current_user, object
                USING HINT = 'Let a superuser run it, or look for the setting in the console of your provider.';
        END;
    END LOOP;

    -- An administrator who is no superuser must belong to the role that owns the schema, for as long as this runs.
    BEGIN
        SET LOCAL ROLE {migrate};
    EXCEPTION WHEN insufficient_privilege THEN
        GRANT {migrate} TO CURRENT_USER;
        joined := true;
    END;
    PERFORM set_config('role', before, true);

    -- The schema; and where another role has run the migrations, what it owns there.
    IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'baton') THEN
        CREATE SCHEMA baton AUTHORIZATION {migrate};
    END IF;
    FOR item IN
        SELECT 'SCHEMA baton' FROM pg_namespace WHERE nspname = 'baton' AND nspowner <> owner
        UNION ALL
        SELECT format('TABLE baton.%I', relname) FROM pg_class
        WHERE relnamespace::regnamespace::text = 'baton' AND relkind IN ('r', 'p', 'v', 'm') AND relowner <> owner
        UNION ALL
        SELECT format('ROUTINE %s', oid::regprocedure) FROM pg_proc
        WHERE pronamespace::regnamespace::text = 'baton' AND proowner <> owner
    LOOP
        EXECUTE format('ALTER %s OWNER TO %I', item, {migrate_text});
    END LOOP;

    -- What the services need, and nothing that they had before.
    SET LOCAL ROLE {migrate};
    REVOKE ALL ON SCHEMA baton FROM PUBLIC, {work}, {serve};
    REVOKE ALL ON ALL TABLES IN SCHEMA baton FROM PUBLIC, {work}, {serve};
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA baton FROM PUBLIC, {work}, {serve};
    REVOKE ALL ON ALL ROUTINES IN SCHEMA baton FROM PUBLIC, {work}, {serve};
    GRANT USAGE ON SCHEMA baton TO {work}, {serve};
    FOR grantee, privilege, object, columns IN VALUES
{rows}
    LOOP
        -- A table, a column or a function that is not there comes with a later migration.
        IF privilege = 'EXECUTE' THEN
            IF to_regprocedure('baton.' || object) IS NOT NULL THEN
                EXECUTE format('GRANT EXECUTE ON FUNCTION baton.%s TO %I', object, grantee);
            END IF;
            CONTINUE;
        END IF;
        CONTINUE WHEN to_regclass('baton.' || object) IS NULL;
        item := '';
        IF columns IS NOT NULL THEN
            SELECT format('(%s)', string_agg(quote_ident(attname), ', ')) INTO item FROM pg_attribute
            WHERE attrelid = to_regclass('baton.' || object) AND attname = ANY (columns) AND NOT attisdropped;
        END IF;
        EXECUTE format('GRANT %s %s ON baton.%I TO %I', privilege, item, object, grantee);
    END LOOP;
    IF to_regclass('baton.stream') IS NULL THEN
        RAISE NOTICE 'Baton has no tables here yet. Run `baton migrate` as %, and then this again.', {migrate_text};
    END IF;

    PERFORM set_config('role', before, true);
    IF joined THEN
        REVOKE {migrate} FROM CURRENT_USER;
    END IF;
{revocation}END
{tag};
"""


_LEAVES_PUBLIC: Final = """\
-- Any role that can connect to a database can hear its notifications, which carry text unless BATON_NOTIFY_PAYLOADS is
-- false, and can send some, which costs pods and workers work. By default every role of the server can connect. This
-- leaves it so; `baton grants --revoke-connect` prints SQL that ends it."""
_REVOKES_PUBLIC: Final = """\
-- At its end it revokes CONNECT on this database from PUBLIC, so that only roles that were granted it, their members,
-- the database's owner and superusers can connect. Before, it looks for roles that would be locked out. If one has a
-- session here, or (without --lock-out-others) if there is one at all, it lists them, fails, and nothing was done.
-- Name those that must still connect with --keep. To undo it: GRANT CONNECT ON DATABASE ... TO PUBLIC."""
_REVOCATION_DECLARATIONS: Final = """\
    kept constant name[] := ARRAY[{kept}]::name[];
    lock_out_others constant boolean := {lock_out_others};
    sessions bigint;
    busy text := '';
    idle text := '';
"""
_REVOCATION: Final = """
    -- Who may connect. It comes last, so that nothing is done if it fails.
    FOREACH grantee IN ARRAY kept LOOP
        EXECUTE format('GRANT CONNECT ON DATABASE %I TO %I', current_database(), grantee);
    END LOOP;
    FOR grantee, sessions IN
        SELECT b.rolname, (SELECT count(*) FROM pg_stat_activity AS a
                           WHERE a.datname = current_database() AND a.usesysid = b.oid)
        FROM ({by_public_only}) AS b ORDER BY 2 DESC, 1
    LOOP
        IF sessions > 0 THEN
            busy := format('%s%I (%s), ', busy, grantee, sessions);
        ELSE
            idle := format('%s%I, ', idle, grantee);
        END IF;
    END LOOP;
    IF busy <> '' OR (idle <> '' AND NOT lock_out_others) THEN
        RAISE EXCEPTION 'Roles would be locked out of the database %. Nothing was done.', current_database() USING
            DETAIL = format('With sessions just now: %s. Without: %s.',
                            coalesce(nullif(rtrim(busy, ', '), ''), 'none'),
                            coalesce(nullif(rtrim(idle, ', '), ''), 'none')),
            HINT = 'Print this again with --keep ROLE for each that must still connect, and --lock-out-others for '
                   'those without sessions that need not. A session that is open now stays until it reconnects.';
    END IF;
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database());
    IF has_database_privilege('public', current_database(), 'CONNECT') THEN
        RAISE EXCEPTION '% may not revoke CONNECT from PUBLIC. Nothing was done.', current_user
            USING HINT = 'Run this as the owner of the database, or as a superuser.';
    END IF;
    IF idle <> '' THEN
        RAISE NOTICE 'These roles cannot connect to % any more: %.', current_database(), rtrim(idle, ', ')
            USING HINT = format('To undo it: GRANT CONNECT ON DATABASE %I TO PUBLIC;', current_database());
    END IF;
"""


def script(names: RoleNames, revocation: Revocation | None = None) -> str:
    """Return SQL that any client can run, in one statement: it takes effect as a whole or not at all.

    With a `revocation`, it also takes from PUBLIC the right to connect to the database.
    """
    rows = [_row(getattr(names, service), grant) for service, wanted in GRANTS.items() for grant in wanted]
    kept = () if revocation is None else (*asdict(names).values(), *revocation.keep)
    return _SCRIPT.format(
        tag=_tag(*asdict(names).values(), *kept),
        rows=",\n".join(rows),
        settings=", ".join(f"('{name}', '{value}')" for name, value in SETTINGS.items()),
        about_public=_LEAVES_PUBLIC if revocation is None else _REVOKES_PUBLIC,
        declarations="" if revocation is None else _declarations(kept, revocation),
        revocation="" if revocation is None else _REVOCATION.format(by_public_only=BY_PUBLIC_ONLY),
        **{service: _identifier(name) for service, name in asdict(names).items()},
        **{f"{service}_text": _text(name) for service, name in asdict(names).items()},
    )


def _declarations(kept: tuple[str, ...], revocation: Revocation) -> str:
    return _REVOCATION_DECLARATIONS.format(
        kept=", ".join(_text(name) for name in kept),
        lock_out_others=str(revocation.lock_out_others).lower(),
    )


def _row(role: str, grant: Grant) -> str:
    columns = " NULL::name[]"
    if grant.columns:
        columns = "\n" + textwrap.fill(
            f"'{{{', '.join(grant.columns)}}}'::name[]", 110, initial_indent=_DEEP, subsequent_indent=_DEEP
        )
    return f"        ({_text(role)}, '{grant.privilege}', '{grant.on}',{columns})"


def _identifier(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    """Quote a string, so that it is read alike whatever standard_conforming_strings is."""
    quoted = "'" + value.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in value else quoted


def _tag(*names: str) -> str:
    """Return a dollar quote that no name holds."""
    tag = "$baton$"
    while any(tag in name for name in names):
        tag = f"{tag[:-1]}_$"
    return tag
