"""Credentials for tests, and pods that ask for them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import jwt
from tests.support.cluster import Cluster, RunningPod

from baton.auth import keys
from baton.auth.keys import ApiKey
from baton.principal import SCOPES

TENANT = "acme"
SECRETS = {kid: secrets.token_urlsafe(32) for kid in ("new", "old", "never")}
TOKEN_KEYS = f"new={SECRETS['new']},old={SECRETS['old']}"


async def make_key(cluster: Cluster, *scopes: str, tenant: str = TENANT, name: str = "") -> tuple[ApiKey, str]:
    """Create a key, by default with all scopes."""
    async with cluster.pool.acquire() as connection:
        return await keys.make(connection, name or secrets.token_hex(4), tenant, scopes or sorted(SCOPES))


async def guarded_pod(cluster: Cluster, **given: Any) -> RunningPod:
    """A pod with access control; there must be a key by then, or an identity provider."""
    return await cluster.pod(**{"allow_anonymous": False, "token_keys": TOKEN_KEYS} | given)


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


def api_key(credential: str) -> dict[str, str]:
    return {"x-api-key": credential}


def signed(
    stream_id: UUID | str,
    *,
    kid: str = "new",
    scopes: Sequence[str] = ("read", "cancel"),
    view: str = "full",
    **changes: Any,
) -> str:
    """A stream's token as a pod would sign it, with some claims changed."""
    now = int(time.time())
    claims = {
        "iss": "baton",
        "aud": "baton",
        "sub": str(stream_id),
        "tenant": TENANT,
        "scope": " ".join(scopes),
        "view": view,
        "iat": now,
        "exp": now + 3600,
    } | changes
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, SECRETS[kid], "HS256", {"kid": kid})
