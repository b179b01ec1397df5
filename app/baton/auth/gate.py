"""The gate of a pod: turns the credential of a request into its principal."""

from __future__ import annotations

import datetime
import inspect
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import jwt

from ..db.postgres import Pool
from ..errors import ConfigurationError, Unauthenticated
from ..principal import ANONYMOUS, Caller, Principal
from ..settings import Settings
from . import credentials, keys, tokens
from .credentials import Credential
from .ring import KeyRing
from .tokens import TokenSigner

if TYPE_CHECKING:
    from .provider import IdentityProvider

logger = logging.getLogger(__name__)

# Returns the caller of a request; None if the application does not know it. The request is Starlette's, without a body.
Authenticate: TypeAlias = Callable[[Any], Awaitable[Caller | None]]

_INVALID: Final = "The credential is not valid: it is unknown, revoked or expired."


class Gate:
    """Admits callers. `origin_allowed` says from which other origins' pages a cookie may change something.

    `authenticate` is how an application that mounts the pod knows its own callers. It is asked about each request that
    carries no credential of Baton's. `pools`: see `KeyRing`.
    """

    def __init__(
        self,
        settings: Settings,
        pools: Callable[[], Sequence[Pool | None]],
        *,
        origin_allowed: Callable[[str], bool] = lambda _origin: False,
        authenticate: Authenticate | None = None,
    ) -> None:
        self.anonymous = settings.allow_anonymous
        self._authenticate = authenticate
        self.ring = KeyRing(pools, refresh_seconds=settings.keys_refresh_seconds)
        self.tokens = TokenSigner(
            settings.token_keys,
            lifetime_seconds=settings.token_lifetime_seconds,
            grace_seconds=settings.token_grace_seconds,
        )
        self.provider = _provider(settings)
        self._origin_allowed = origin_allowed

    async def open(self) -> None:
        """Read the API keys.

        Raises:
            ConfigurationError: no credential could be valid, or the keys cannot be read.
        """
        if self.anonymous:
            return
        await self.ring.open()
        if self.provider is not None and self.provider.url.startswith("http:"):
            logger.warning("BATON_JWKS_URL is not https: anyone on the network path can replace the keys.")
        if not len(self.ring) and self.provider is None and self._authenticate is None:
            raise ConfigurationError(
                "No client could get in: there is no API key and no identity provider. Run `baton keys create "
                "NAME --tenant TENANT --scope create --scope read --scope cancel`, or set BATON_JWKS_URL. "
                "BATON_ALLOW_ANONYMOUS=true turns access control off: anyone who can reach the pod can do everything."
            )

    def tasks(self) -> list[Coroutine[Any, Any, None]]:
        """Return what must run as long as the pod does."""
        if self.anonymous:
            return []
        return [self.ring.run()] + ([] if self.provider is None else [self.provider.run()])

    async def admit(
        self,
        method: str,
        headers: Mapping[str, str],
        cookies: Mapping[str, str],
        query: Mapping[str, str],
        request: Any = None,
    ) -> Principal:
        """Return the caller of a request. Without access control, credentials are ignored.

        `request` is what `authenticate` gets. What that raises is raised here.

        Raises:
            Unauthenticated: the request has no valid credential.
            Forbidden: a page of another site sends its cookie, or a change without access control.
            Unavailable: the credential cannot be checked just now.
        """
        if self.anonymous:
            credentials.require_allowed_page(method, headers, self._may_change)
            return ANONYMOUS
        if self._authenticate is not None and not self._is_own(credentials.look(headers, cookies, query)):
            credentials.require_own_page(method, headers, self._origin_allowed)
            caller = await _caller(self._authenticate(request))
            if caller is None or not self.admits(principal := caller.principal()):
                raise Unauthenticated("You are not signed in, or your session has ended. Sign in and try again.")
            return principal
        credential = credentials.find(method, headers, cookies, query, self._origin_allowed)
        value = credential.value
        if not value.isascii() or len(value) > credentials.MAX_CHARACTERS:
            raise Unauthenticated(_INVALID)
        if credentials.is_jwt(value):
            return await self._admit_token(credential)
        return await self._admit_key(credential)

    def admits(self, principal: Principal) -> bool:
        """Whether a principal's API key or session still works. Pods ask this while it follows a stream."""
        return (principal.key_id is None or principal.key_id in self.ring) and time.time() < principal.cut_at

    def _may_change(self, origin: str) -> bool:
        # With `*` a page may do what any other client may. With access control, its cookie would still be refused.
        return self._origin_allowed("*") or self._origin_allowed(origin)

    def _is_own(self, credential: Credential | None) -> bool:
        """Whether a credential was issued by Baton or by its identity provider. An application has tokens, too."""
        if credential is None:
            return False
        if not credentials.is_jwt(credential.value):
            return keys.parse(credential.value) is not None
        try:
            header = jwt.get_unverified_header(credential.value)
        except (jwt.PyJWTError, ValueError, RecursionError):
            return False
        if header.get("alg") == tokens.ALGORITHM:
            return self.tokens.knows(header.get("kid"))
        return self.provider is not None

    async def _admit_key(self, credential: Credential) -> Principal:
        parsed = keys.parse(credential.value)
        if parsed is None:
            raise Unauthenticated(_INVALID)
        if credential.place != "header":
            raise Unauthenticated("Send an API key only in the header `Authorization: Bearer …` or `X-Api-Key`.")
        key_id, secret = parsed
        key = await self.ring.find(key_id)
        if key is None or not key.has_secret(secret) or key.expired(datetime.datetime.now(datetime.UTC)):
            raise Unauthenticated(_INVALID)
        return Principal(key.tenant, key.scopes, f"key:{key.id}", key_id=key.id)

    async def _admit_token(self, credential: Credential) -> Principal:
        try:
            header = jwt.get_unverified_header(credential.value)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise Unauthenticated("The token is not valid.") from None
        if header.get("alg") == tokens.ALGORITHM:
            return self.tokens.check(credential.value, header.get("kid"))
        if self.provider is None:
            raise Unauthenticated("The token is not valid.")
        if credential.place == "query":
            raise Unauthenticated(
                "Only the token of one stream can be in the query. Send this one in the header "
                "`Authorization: Bearer …` or `X-Api-Key`."
            )
        return await self.provider.check(credential.value, header)


async def _caller(returned: object) -> Caller | None:
    """Return what an application's `authenticate` has returned.

    Raises:
        TypeError: it is not an `async` function, or returned something else.
    """
    if not inspect.isawaitable(returned):
        raise TypeError("authenticate must be defined with `async def`.")
    caller = await returned
    if caller is None or isinstance(caller, Caller):
        return caller
    raise TypeError(f"authenticate must return a baton.Caller or None, and not {type(caller).__name__}.")


def _provider(settings: Settings) -> IdentityProvider | None:
    if settings.jwks_url is None or settings.jwt_issuer is None or settings.jwt_audience is None:
        return None
    # It imports an HTTP client, which other pods do not need.
    from .provider import IdentityProvider

    return IdentityProvider(
        settings.jwks_url,
        issuer=settings.jwt_issuer,
        audience=settings.jwt_audience,
        tenant_claim=settings.jwt_tenant_claim,
        scope_claim=settings.jwt_scope_claim,
        lifetime_seconds=settings.jwt_max_lifetime_seconds,
    )
