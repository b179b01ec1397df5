"""Tokens of an identity provider: JWTs that are signed with one of the keys that it publishes (JWKS, RFC 7517).

The keys are fetched when the pod starts and then every few minutes. So requests do not wait for a fetch, and a key that
the provider withdraws is soon refused. A token with an unknown key causes another fetch, at most every ten seconds for
all callers together. If the provider does not answer, the last keys are valid for up to a day.

Only algorithms with a public key are accepted. With the others, anyone who reads the published key could sign.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import jwt
import orjson

from ..errors import Unauthenticated, Unavailable
from ..principal import SCOPES, AuthScope, Principal, is_name
from .lifetime import expiry

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 300.0
PAUSE_SECONDS: Final = 10.0
FETCH_SECONDS: Final = 5.0
MAX_AGE_SECONDS: Final = 86_400.0
MAX_BYTES: Final = 1 << 20
LEEWAY_SECONDS: Final = 30

_RSA: Final = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
ALGORITHMS: Final = frozenset({*_RSA, "ES256", "ES384", "ES512", "EdDSA"})
_CLAIMS: Final = ["iss", "aud", "sub", "exp"]


@dataclass(frozen=True, slots=True)
class Key:
    """One public key, and the algorithms that it may be used with."""

    public: Any
    algorithms: list[str]


class IdentityProvider:
    """The identity provider whose tokens pods accept, in addition to their own."""

    def __init__(
        self,
        url: str,
        *,
        issuer: str,
        audience: str,
        tenant_claim: str,
        scope_claim: str,
        lifetime_seconds: float,
        pause_seconds: float = PAUSE_SECONDS,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        self.url = url
        self._issuer = issuer
        self._audience = audience
        self._tenant_claim = tenant_claim
        self._scope_claim = scope_claim
        self._lifetime_seconds = lifetime_seconds
        self._pause_seconds = pause_seconds
        self._fetch_seconds = fetch_seconds
        self._client = httpx2.AsyncClient(timeout=fetch_seconds, limits=httpx2.Limits(max_keepalive_connections=0))
        self._keys: dict[str, Key] = {}
        self._fetching: asyncio.Task[None] | None = None
        self._asked_at = float("-inf")
        self._fetched_at = float("-inf")
        self._answering = False
        self.fetches = 0

    async def run(self) -> None:
        """Keep the keys fresh until cancelled."""
        try:
            while True:
                await self._refresh()
                await asyncio.sleep(REFRESH_SECONDS if self._answering else self._pause_seconds)
        finally:
            if self._fetching is not None:
                self._fetching.cancel()
            await self._client.aclose()

    async def check(self, token: str, header: Mapping[str, Any]) -> Principal:
        """Return the principal of a token.

        Raises:
            Unauthenticated: it is not valid, or names no tenant.
            Unavailable: its key is not known, and the provider cannot be reached.
        """
        algorithm, kid = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or algorithm not in ALGORITHMS or not isinstance(kid, str):
            raise Unauthenticated("The token is not signed like those of the identity provider.")
        key = await self._key(kid)
        try:
            claims = jwt.decode(
                token,
                key.public,
                algorithms=key.algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_SECONDS,
                options={"require": _CLAIMS, "enforce_minimum_key_length": True},
            )
            return self._principal(claims)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.") from None
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError):
            raise Unauthenticated("The token is not valid.") from None

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        tenant, subject = _claim(claims, self._tenant_claim), claims["sub"]
        if not isinstance(tenant, str) or not is_name(tenant):
            raise Unauthenticated(f"The token names no tenant: the claim {self._tenant_claim!r} must be a text.")
        if not is_name(subject):
            raise Unauthenticated("The token names no subject.")
        scopes = _scopes(_claim(claims, self._scope_claim))
        expires = expiry(claims, max_seconds=self._lifetime_seconds)
        return Principal(tenant, scopes, f"subject:{subject}", expires_at=expires)

    async def _key(self, kid: str) -> Key:
        loop = asyncio.get_running_loop()
        if loop.time() - self._fetched_at > MAX_AGE_SECONDS:
            self._keys = {}
        if kid not in self._keys and (self._fetching or loop.time() - self._asked_at >= self._pause_seconds):
            await self._refresh()
        if kid in self._keys:
            return self._keys[kid]
        if not self._answering:
            raise Unavailable("The identity provider does not answer, so the token cannot be checked just now.")
        raise Unauthenticated("The token was signed with a key that the identity provider does not publish.")

    async def _refresh(self) -> None:
        """Fetch the keys, once for all concurrent callers. An error is logged, and keeps the last keys."""
        if self._fetching is None:
            self._asked_at = asyncio.get_running_loop().time()
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._has_fetched)
        await asyncio.shield(self._fetching)

    def _has_fetched(self, _task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _fetch(self) -> None:
        self.fetches += 1
        try:
            async with asyncio.timeout(self._fetch_seconds):
                self._keys = public_keys(await self._read())
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, TimeoutError, ValueError) as error:
            self._answering = False
            logger.warning("The keys of the identity provider (BATON_JWKS_URL) cannot be fetched: %r", error)
        else:
            self._answering = True
            self._fetched_at = asyncio.get_running_loop().time()

    async def _read(self) -> bytes:
        body = bytearray()
        async with self._client.stream("GET", self.url, headers={"accept": "application/json"}) as response:
            if response.status_code != 200:
                raise ValueError(f"it answered with {response.status_code}")
            async for part in response.aiter_bytes():
                body += part
                if len(body) > MAX_BYTES:
                    raise ValueError("it answered with more than a megabyte")
        return bytes(body)


def public_keys(document: bytes) -> dict[str, Key]:
    """Return the keys of a JWKS that can be used, by their ids.

    Raises:
        ValueError: it is not a JWKS, or has no such key.
    """
    content = orjson.loads(document)
    listed = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(listed, list):
        raise ValueError("it is not a JWKS")
    found = {item["kid"]: key for item in listed if isinstance(item, dict) and (key := _key(item)) is not None}
    if not found:
        raise ValueError("it has no public key for signatures that has a kid")
    return found


def _key(item: Mapping[str, Any]) -> Key | None:
    if not isinstance(item.get("kid"), str) or item.get("use", "sig") != "sig":
        return None
    try:
        parsed = jwt.PyJWK(dict(item))
    except (jwt.PyJWTError, NotImplementedError, ValueError, TypeError, KeyError):
        return None
    # An RSA key without an algorithm is valid for each of them.
    named = _RSA if item.get("kty") == "RSA" and not item.get("alg") else (parsed.algorithm_name,)
    algorithms = [name for name in named if name in ALGORITHMS]
    return Key(parsed.key, algorithms) if algorithms else None


def _claim(claims: Mapping[str, Any], path: str) -> Any:
    """Return a claim by its name, or by a path of names with dots."""
    if path in claims:
        return claims[path]
    found: Any = claims
    for name in path.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(name)
    return found


def _scopes(claim: Any) -> frozenset[AuthScope]:
    names = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    return frozenset(scope for scope in SCOPES if scope in names)
