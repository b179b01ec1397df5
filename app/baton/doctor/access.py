"""Checks of access control: does anybody get in, and not everybody, neither to pods nor to the database?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..auth import keys
from ..schema.grants import BY_PUBLIC_ONLY
from .finding import Case, Finding, amount, listed, ok, warning

_MAY_LOOK: Final = "SELECT has_table_privilege('baton.api_key', 'SELECT')"

_PUBLIC: Final = "SELECT has_database_privilege('public', current_database(), 'CONNECT')"


async def access(case: Case) -> AsyncIterator[Finding]:
    """Is there an API key or an identity provider, and is access not anonymous?"""
    if case.settings.allow_anonymous:
        yield warning(
            "access_anonymous",
            "BATON_ALLOW_ANONYMOUS is set: whoever reaches a pod can read, cancel and erase every stream.",
            "Make API keys with `baton keys create`, and unset it.",
        )
        return
    # A worker has no business with keys.
    if not await case.connection.fetchval(_MAY_LOOK):
        return
    live = len(await keys.live(case.connection))
    if not live and case.settings.jwks_url is None:
        yield warning(
            "access_not_configured",
            "There is no API key that works and no identity provider, so that pods refuse to start.",
            "Run `baton keys create`, or set BATON_JWKS_URL for the pods.",
        )
    else:
        provider = "" if case.settings.jwks_url is None else ", and an identity provider"
        yield ok("access", f"{amount(live, 'API key')}{provider}.")


async def public(case: Case) -> AsyncIterator[Finding]:
    """Can roles connect that have nothing to do with Baton? Notifications have no privileges of their own."""
    if not await case.connection.fetchval(_PUBLIC):
        yield ok("connect", "Only roles that were granted it can connect to this database.")
        return
    others = sorted(row["rolname"] for row in await case.connection.fetch(BY_PUBLIC_ONLY) if not row["inside"])
    if not others:
        yield ok("connect", "Any role can connect to this database, and there is none but Baton's and superusers.")
        return
    hears = "hear the text of streams" if case.settings.notify_payloads else "hear the ids of streams"
    yield warning(
        "connect_public",
        f"Any role can connect to this database, such as {listed(others)}. It can {hears} with LISTEN, "
        "and make pods and workers look for what is not there with NOTIFY, which costs time.",
        "Run the SQL of `baton grants --revoke-connect`, which first lists roles that would be locked out.",
    )
