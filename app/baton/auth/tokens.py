"""Tokens of one stream, for browsers: JWTs (RFC 7519) that are signed here, with a secret that all pods share.

Claims: `iss` and `aud` are baton, `sub` is the stream's id, `tenant`, `scope` (of read, cancel, produce and input,
separated by spaces), `view`, `iat`, `exp`. `kid` in the header names the secret that signed it. Anyone who has the
secret can sign such tokens.

A token works until `exp`, at most a day after `iat`, and until a grace time after the stream's end.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args
from uuid import UUID

import jwt
from pydantic import SecretStr

from ..errors import Unauthenticated
from ..principal import AuthScope, Principal, View, is_name
from .lifetime import expiry

ALGORITHM: Final = "HS256"
ISSUER: Final = "baton"
MAX_LIFETIME_SECONDS: Final = 86_400
LEEWAY_SECONDS: Final = 30
TOKEN_SCOPES: Final[frozenset[AuthScope]] = frozenset({"read", "cancel", "produce", "input"})
# What a viewer's token allows. A token that may write, or steer the generator, is only issued on request.
VIEWER_SCOPES: Final[frozenset[AuthScope]] = TOKEN_SCOPES - {"produce", "input"}

_CLAIMS: Final = ["iss", "aud", "sub", "iat", "exp"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a new token should allow; None is as much as the caller may do, without `produce` and `input`."""

    scopes: frozenset[AuthScope] | None = None
    view: View | None = None


class TokenSigner:
    """Signs with the first secret, and checks with all of them."""

    def __init__(self, keys: Mapping[str, SecretStr], *, lifetime_seconds: float, grace_seconds: float) -> None:
        self._secrets = {kid: key.get_secret_value() for kid, key in keys.items()}
        self._lifetime_seconds = lifetime_seconds
        self._grace_seconds = grace_seconds

    def issue(
        self, principal: Principal, stream_id: UUID, wish: Wish, ended_at: float | None = None
    ) -> tuple[str, float] | None:
        """Return a token and when it expires, in seconds since 1970; None if no token can be issued.

        A token allows no more than its issuer may do. A token that was issued with another token does not outlive it. A
        stream that ended too long ago, at `ended_at`, gets no token: it would never work.

        Raises:
            Forbidden: the token would allow more than the principal may do.
        """
        scopes, view = granted(principal, wish)
        if not self._secrets or not scopes:
            return None
        now = int(time.time())
        expires = now + self._lifetime_seconds
        if principal.stream_id is not None:
            expires = min(expires, principal.expires_at)
        if ended_at is not None:
            expires = min(expires, ended_at + self._grace_seconds)
        if expires <= now:
            return None
        claims: dict[str, Any] = {
            "iss": ISSUER,
            "aud": ISSUER,
            "sub": str(stream_id),
            "tenant": principal.tenant,
            "scope": " ".join(sorted(scopes)),
            "view": view,
            "iat": now,
            "exp": int(expires),
        }
        kid = next(iter(self._secrets))
        return jwt.encode(claims, self._secrets[kid], ALGORITHM, {"kid": kid}), claims["exp"]

    def knows(self, kid: object) -> bool:
        """Whether a secret of this name is in use."""
        return isinstance(kid, str) and kid in self._secrets

    def check(self, token: str, kid: object) -> Principal:
        """Return the principal of a token.

        Raises:
            Unauthenticated: it was not signed here, or has expired.
        """
        secret = self._secrets.get(kid) if isinstance(kid, str) else None
        if secret is None:
            raise Unauthenticated("The token was signed with a key that is unknown here. Get a new token.")
        try:
            claims = jwt.decode(
                token,
                secret,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=ISSUER,
                leeway=LEEWAY_SECONDS,
                options={"require": _CLAIMS},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.") from None
        except (jwt.PyJWTError, TypeError, ValueError, OverflowError):
            raise Unauthenticated("The token is not valid.") from None
        return self._principal(claims)

    def _principal(self, claims: Mapping[str, Any]) -> Principal:
        try:
            stream_id, view, scopes = UUID(claims["sub"]), claims["view"], frozenset(claims["scope"].split())
        except (KeyError, ValueError, AttributeError):
            raise Unauthenticated("The token does not have the claims of a stream's token.") from None
        expires = expiry(claims, max_seconds=MAX_LIFETIME_SECONDS)
        if not (is_name(claims.get("tenant")) and view in get_args(View) and scopes <= TOKEN_SCOPES):
            raise Unauthenticated("The token does not have the claims of a stream's token.")
        return Principal(
            claims["tenant"],
            scopes,
            f"token:{stream_id}",
            stream_id=stream_id,
            view=view,
            expires_at=expires,
            grace_seconds=self._grace_seconds,
        )


def granted(principal: Principal, wish: Wish) -> tuple[frozenset[AuthScope], View]:
    """Return what a token that a principal issues allows.

    Raises:
        Forbidden: the token would allow more than the principal may do.
    """
    for scope in sorted(wish.scopes or ()):
        principal.require(scope)
    view = wish.view or principal.view
    principal.require_view(view)
    scopes = VIEWER_SCOPES & principal.scopes if wish.scopes is None else TOKEN_SCOPES & wish.scopes
    return scopes, view
