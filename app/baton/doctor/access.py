"""A check of access control: does anybody get in, and not everybody?"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from ..auth import keys
from .finding import Case, Finding, amount, ok, warning

_MAY_LOOK: Final = "SELECT has_table_privilege('baton.api_key', 'SELECT')"


async def access(case: Case) -> AsyncIterator[Finding]:
    """Is there an API key or an identity provider, and is access not anonymous?"""
    if case.settings.allow_anonymous:
        yield warning(
            "access_anonymous",
            "BATON_ALLOW_ANONYMOUS is set: whoever reaches a pod can read, cancel and erase every stream.",
            "Make API keys with `baton keys make`, and unset it.",
        )
        return
    # A worker has no business with keys.
    if not await case.connection.fetchval(_MAY_LOOK):
        return
    live = len(await keys.live(case.connection))
    if not live and case.settings.jwks_url is None:
        yield warning(
            "access_none",
            "There is no API key that works and no identity provider, so that pods refuse to start.",
            "Run `baton keys make`, or set BATON_JWKS_URL for the pods.",
        )
    else:
        provider = "" if case.settings.jwks_url is None else ", and an identity provider"
        yield ok("access", f"{amount(live, 'API key')}{provider}.")
