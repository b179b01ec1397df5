"""The SQL that `baton grants` prints: it creates the roles, and grants each what `GRANTS` lists and nothing else.

It can be run at any time, and again: it creates what is missing, revokes what is too much, and skips what a later
migration will create.
"""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import Final

from .grants import APPLICATION, BY_PUBLIC_ONLY, GRANTS, SETTINGS, Grant, Revocation, RoleNames, require_names

_DEEP: Final = " " * 12
_SCRIPT: Final = """\
-- Roles for Baton, with the least privileges that it needs. Run this as an administrator of the database (a superuser,
-- or the database's owner if it may create roles): once before the first `baton migrate`, and again after each one. If
-- another role has run the migrations, run this as a superuser or as a member of that role. With several databases
-- (BATON_DATABASES), run it in each of them: it is the same for all.
--
-- It waits for a lock for half a second at most. If it does not get one, it changes nothing: run it again. It locks
-- tables only if it changes their owner, and then for a moment.
--
-- The roles can log in, but have no password yet. Give each one the credential that your server asks for, such as
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

    -- Their settings in this database, for new sessions. A setting that a role already has stays.
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
            RAISE NOTICE '% may not run this, so it was skipped: %;', current_user, object
                USING HINT = 'Let a superuser run it, or change the setting in the console of your provider.';
        END;
    END LOOP;

    -- An administrator without superuser rights must be a member of the role that owns the schema while this runs.
    BEGIN
        SET LOCAL ROLE {migrate};
    EXCEPTION WHEN insufficient_privilege THEN
        GRANT {migrate} TO CURRENT_USER;
        joined := true;
    END;
    PERFORM set_config('role', before, true);

    -- The schema, and everything in it that another role owns because it ran the migrations.
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

    -- The privileges of the services. Everything else that they had is revoked.
    SET LOCAL ROLE {migrate};
    REVOKE ALL ON SCHEMA baton FROM PUBLIC, {work}, {serve};
    REVOKE ALL ON ALL TABLES IN SCHEMA baton FROM PUBLIC, {work}, {serve};
    REVOKE ALL ON ALL SEQUENCES IN SCHEMA baton FROM PUBLIC, {work}, {serve};
    REVOKE ALL ON ALL ROUTINES IN SCHEMA baton FROM PUBLIC, {work}, {serve};
    GRANT USAGE ON SCHEMA baton TO {work}, {serve}{apps};
    FOR grantee, privilege, object, columns IN VALUES
{rows}
    LOOP
        -- A table, a column or a function that does not exist yet comes with a later migration.
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
        RAISE NOTICE 'Baton has no tables here yet. Run `baton migrate` as %, then run this again.', {migrate_text};
    END IF;

    PERFORM set_config('role', before, true);
    IF joined THEN
        REVOKE {migrate} FROM CURRENT_USER;
    END IF;
{revocation}END
{tag};
"""


_LEAVES_PUBLIC: Final = """\
-- Any role that can connect to a database can receive its notifications, which carry text unless BATON_NOTIFY_PAYLOADS
-- is false. It can also send notifications, which cost pods and workers time. By default every role of the server can
-- connect. This SQL does not change that; `baton grants --revoke-connect` prints SQL that does."""
_REVOKES_PUBLIC: Final = """\
-- At its end it revokes CONNECT on this database from PUBLIC. Then only roles with a grant of their own, their members,
-- the database's owner and superusers can connect. First it looks for roles that would be locked out. If one has a
-- session here, or (without --lock-out-others) if there is any, it lists them, fails, and changes nothing.
-- Name the roles that must still connect with --keep. To undo it: GRANT CONNECT ON DATABASE ... TO PUBLIC."""
_REVOCATION_DECLARATIONS: Final = """\
    kept constant name[] := ARRAY[{kept}]::name[];
    lock_out_others constant boolean := {lock_out_others};
    sessions bigint;
    busy text := '';
    idle text := '';
"""
_REVOCATION: Final = """
    -- The right to connect. It comes last; if it fails, the whole statement changes nothing.
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
        RAISE EXCEPTION 'Roles would be locked out of the database %. Nothing was changed.', current_database() USING
            DETAIL = format('With open sessions: %s. Without: %s.',
                            coalesce(nullif(rtrim(busy, ', '), ''), 'none'),
                            coalesce(nullif(rtrim(idle, ', '), ''), 'none')),
            HINT = 'Print this SQL again with --keep ROLE for each role that must still connect, and with '
                   '--lock-out-others to lock out the roles without sessions. A session that is open now stays until '
                   'it reconnects.';
    END IF;
    EXECUTE format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC', current_database());
    IF has_database_privilege('public', current_database(), 'CONNECT') THEN
        RAISE EXCEPTION '% may not revoke CONNECT from PUBLIC. Nothing was changed.', current_user
            USING HINT = 'Run this as the owner of the database, or as a superuser.';
    END IF;
    IF idle <> '' THEN
        RAISE NOTICE 'These roles can no longer connect to %: %.', current_database(), rtrim(idle, ', ')
            USING HINT = format('To undo it: GRANT CONNECT ON DATABASE %I TO PUBLIC;', current_database());
    END IF;
"""


def script(names: RoleNames, revocation: Revocation | None = None, apps: tuple[str, ...] = ()) -> str:
    """Return one SQL statement that any client can run. It takes effect as a whole or not at all.

    With a `revocation`, it also revokes the right to connect to the database from PUBLIC. `apps` names existing roles
    of applications that create streams in their own transactions.

    Raises:
        ConfigurationError: Postgres does not allow a name of `apps`.
    """
    require_names(apps)
    rows = [_row(getattr(names, service), grant) for service, grants in GRANTS.items() for grant in grants]
    rows += [_row(app, grant) for app in apps for grant in APPLICATION]
    kept = () if revocation is None else (*asdict(names).values(), *apps, *revocation.keep)
    return _SCRIPT.format(
        tag=_tag(*asdict(names).values(), *apps, *kept),
        apps="".join(f", {_identifier(app)}" for app in apps),
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
    """Quote a string so that it does not depend on standard_conforming_strings."""
    quoted = "'" + value.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in value else quoted


def _tag(*names: str) -> str:
    """Return a dollar quote that no name contains."""
    tag = "$baton$"
    while any(tag in name for name in names):
        tag = f"{tag[:-1]}_$"
    return tag
