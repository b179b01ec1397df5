"""Checks that compare the privileges of the connected role with those in the SQL of `baton grants`."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Set
from typing import Final, TypeAlias

from ..db.postgres import Connection
from ..schema.grants import GRANTS, Grant
from .finding import Case, Finding, amount, error, listed, ok, warning

# A privilege, the table or function, and the column.
ColumnPrivilege: TypeAlias = tuple[str, str, str | None]

_ROLE: Final = """
SELECT current_user::text AS name, rolsuper AS superuser, pg_has_role(n.nspowner, 'USAGE') AS owner,
       pg_get_userbyid(n.nspowner)::text AS owned_by, has_schema_privilege(n.oid, 'USAGE') AS inside
FROM pg_roles AS r, pg_namespace AS n
WHERE r.rolname = current_user AND n.nspname = 'baton'
"""
_PRIVILEGES: Final = """
WITH relation AS (
    SELECT c.oid, c.relname::text FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'baton' AND c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition
)
SELECT privilege, relname, attname::text, has_column_privilege(r.oid, attnum, privilege) AS held
FROM relation AS r
JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE']) AS privilege
UNION ALL
SELECT privilege, relname, NULL, has_table_privilege(r.oid, privilege)
FROM relation AS r CROSS JOIN unnest(ARRAY['DELETE', 'TRUNCATE', 'TRIGGER']) AS privilege
UNION ALL
SELECT 'EXECUTE', format('%s(%s)', proname, oidvectortypes(proargtypes)), NULL, has_function_privilege(p.oid, 'EXECUTE')
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname = 'baton'
"""
_FOREIGN: Final = """
SELECT c.relname, pg_get_userbyid(c.relowner) AS owner
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = 'baton' AND c.relkind IN ('r', 'p', 'v') AND c.relowner <> n.nspowner
UNION ALL
SELECT p.proname, pg_get_userbyid(p.proowner)
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname = 'baton' AND p.proowner <> n.nspowner
ORDER BY 1
"""
_FEW: Final = 3
_ADVICE: Final = "Run the SQL of `baton grants` (again after each `baton migrate`), and connect as one of its roles."


async def privileges(case: Case) -> AsyncIterator[Finding]:
    """Does the role have the privileges of a pod, a worker or a migration, and no more?"""
    role = await case.connection.fetchrow(_ROLE)
    if role is None:
        return
    name = f"The role {role['name']!r}"
    if role["superuser"]:
        yield warning(
            "role_superuser",
            f"{name} is a superuser.",
            "Pods and workers need far fewer privileges: see `baton grants`.",
        )
        return
    if role["owner"]:
        yield ok("role", f"{name} owns Baton's schema: it may migrate, and do everything else there.")
        return
    held, existing = await _held_and_existing(case.connection)
    if not existing:
        return
    required = {service: _expanded(grants, existing) for service, grants in GRANTS.items()}
    may = [service for service in required if role["inside"] and required[service] <= held]
    if not may:
        missing = " ".join(
            f"To {service}, it needs {_described(needed - held, existing)}." for service, needed in required.items()
        )
        yield error("role_missing_privileges", f"{name} may neither serve nor work. {missing}", _ADVICE)
    elif excess := held - set[ColumnPrivilege]().union(*(required[service] for service in may)):
        yield warning(
            "role_excess_privileges",
            f"{name} may {' and '.join(may)}, and has privileges that it does not need for that: "
            f"{_described(excess, existing)}.",
            _ADVICE,
        )
    else:
        yield ok("role", f"{name} may {' and '.join(may)}, and has no other privileges.")


async def owners(case: Case) -> AsyncIterator[Finding]:
    """Does everything in the schema belong to its owner? Otherwise migrations and new partitions fail."""
    rows = await case.connection.fetch(_FOREIGN)
    if rows:
        yield error(
            "owners_differ",
            f"{rows[0]['relname']} belongs to {rows[0]['owner']!r} and not to the owner of the schema; "
            f"{amount(len(rows), 'such object')} in all.",
            "Run the SQL of `baton grants`: it makes the role that migrates the owner of everything.",
        )


async def _held_and_existing(connection: Connection) -> tuple[set[ColumnPrivilege], set[ColumnPrivilege]]:
    """Return the privileges that the role has, and all that exist."""
    rows = await connection.fetch(_PRIVILEGES)
    return {tuple(row)[:3] for row in rows if row["held"]}, {tuple(row)[:3] for row in rows}


def _expanded(grants: Iterable[Grant], existing: Set[ColumnPrivilege]) -> set[ColumnPrivilege]:
    """Return the privileges on columns that grants give, for the tables and columns that exist."""
    return {
        (privilege, on, column)
        for privilege, on, column in existing
        for grant in grants
        if (grant.privilege, grant.on) == (privilege, on) and (not grant.columns or column in grant.columns)
    }


def _described(privileges: Set[ColumnPrivilege], existing: Set[ColumnPrivilege]) -> str:
    """List the privileges table by table, with the columns if they are few and not all."""
    columns: dict[str, list[str]] = {}
    for privilege, on, column in sorted(privileges, key=lambda item: (item[1], item[0], item[2] or "")):
        columns.setdefault(f"{privilege} on {on}", []).append(column or "")
    every = Counter(f"{privilege} on {on}" for privilege, on, _ in existing)
    named = [
        f"{what} ({', '.join(some)})" if len(some) < every[what] and len(some) <= _FEW else what
        for what, some in columns.items()
    ]
    return listed(named)
