"""Checks of access control: callers need a credential for pods, and only Baton's roles can reach the database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..auth import keys
from ..schema.grants import BY_PUBLIC_ONLY
from ..settings import Settings
from .finding import Case, Finding, amount, listed, ok, warning

_MAY_READ_KEYS: Final = "SELECT has_table_privilege('baton.api_key', 'SELECT')"

_PUBLIC: Final = "SELECT has_database_privilege('public', current_database(), 'CONNECT')"


async def access(case: Case) -> AsyncIterator[Finding]:
    """Is there an API key or an identity provider, and is anonymous access off?"""
    # The role of a worker may not read keys.
    if case.settings.allow_anonymous:
        yield judged(case.settings, 0)
    elif await case.connection.fetchval(_MAY_READ_KEYS):
        yield judged(case.settings, len(await keys.live(case.connection)))


def judged(settings: Settings, live: int) -> Finding:
    """Return what follows for access from the settings, and from the number of valid keys."""
    if settings.allow_anonymous:
        return warning(
            "access_anonymous",
            "BATON_ALLOW_ANONYMOUS is set: anyone who can reach a pod can read, cancel and erase every stream.",
            "Create API keys with `baton keys create`, then unset it.",
        )
    if not live and settings.jwks_url is None:
        return warning(
            "access_not_configured",
            "There is no valid API key and no identity provider, so pods refuse to start.",
            "Run `baton keys create`, or set BATON_JWKS_URL for the pods.",
        )
    provider = "" if settings.jwks_url is None else ", and an identity provider"
    return ok("access", f"{amount(live, 'valid API key')}{provider}.")


async def public(case: Case) -> AsyncIterator[Finding]:
    """Can roles connect that do not belong to Baton? Postgres has no privileges on notifications."""
    if not await case.connection.fetchval(_PUBLIC):
        yield ok("connect", "Only roles with an explicit grant can connect to this database.")
        return
    others = sorted(row["rolname"] for row in await case.connection.fetch(BY_PUBLIC_ONLY) if not row["inside"])
    if not others:
        yield ok(
            "connect", "Any role can connect to this database. The server has no roles but Baton's and superusers."
        )
        return
    if case.settings.hints_transport != "postgres":
        yield ok("connect", "Any role can connect to this database. Baton sends and hears no notifications there.")
        return
    received = "the text of streams" if case.settings.notify_payloads else "the ids of streams"
    yield warning(
        "connect_public",
        f"Any role can connect to this database, such as {listed(others)}. Such a role can receive {received} with "
        "LISTEN, and slow down pods and workers with forged NOTIFYs.",
        "Run the SQL of `baton grants --revoke-connect`. It first lists the roles that would be locked out.",
    )
