"""Tokens of an identity provider, whose keys a server on loopback publishes: which are accepted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.support.cluster import ended
from tests.support.identity_provider import (
    ALL,
    AUDIENCE,
    EC,
    ED,
    ISSUER,
    NOW,
    OTHER_RSA,
    RSA,
    published,
    reply,
    settings,
    token,
)
from tests.support.logbook import DEADLINE_SECONDS, until
from tests.support.provider_server import ProviderServer, Reply

from baton.auth.provider import ALGORITHMS, IdentityProvider, public_keys
from baton.errors import ConfigurationError, Unauthenticated, Unavailable
from baton.settings import Settings


def provider(url: str, **given: Any) -> IdentityProvider:
    claims = {"tenant_claim": "tenant", "scope_claim": "scope"}
    wanted: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE, "lifetime_seconds": 3600} | claims | given
    return IdentityProvider(url, **wanted)


@pytest.fixture
async def idp() -> AsyncIterator[IdentityProvider]:
    async with ProviderServer(reply()) as server, running(server) as known:
        yield known


@contextlib.asynccontextmanager
async def running(server: ProviderServer, **given: Any) -> AsyncIterator[IdentityProvider]:
    """A provider at a server, that has begun to fetch the keys."""
    idp = provider(f"{server.url}/keys", **given)
    task = asyncio.create_task(idp.run())
    await until(lambda: idp.fetches == 1)
    try:
        yield idp
    finally:
        await ended(task)


async def checked(idp: IdentityProvider, text: str) -> Any:
    return await idp.check(text, jwt.get_unverified_header(text))


@pytest.mark.parametrize(
    ("kid", "algorithm", "key"),
    [
        *(("rsa", name, RSA) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
        ("rsa256", "RS256", RSA),
        ("ec", "ES256", EC),
        ("ed", "EdDSA", ED),
    ],
)
async def test_each_public_key_algorithm_is_accepted(idp: IdentityProvider, kid: str, algorithm: str, key: Any) -> None:
    principal = await checked(idp, token(kid, algorithm, key))
    assert (principal.tenant, principal.name, sorted(principal.scopes)) == ("acme", "subject:user 1", ["read"])
    assert (principal.stream_id, principal.view) == (None, "full")


WRONG: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "https://idp.test"},
    "no issuer": {"iss": None},
    "another audience": {"aud": ["others"]},
    "no audience": {"aud": None},
    "expired": {"exp": NOW - 60},
    "no end": {"exp": None},
    "an end beyond all numbers": {"exp": 10**400},
    "an end that is a list": {"exp": [NOW + 60]},
    "an end that is a text": {"exp": str(NOW + 60)},
    "an end that is a truth": {"exp": True},
    "an end that is no number": {"exp": math.nan},
    "an end that never comes": {"exp": math.inf},
    "an end in the year 10000": {"exp": 253_402_300_800, "iat": 253_402_300_000},
    "a beginning that is a text": {"iat": str(NOW)},
    "a beginning that is a truth": {"iat": True},
    "a beginning that is a list": {"iat": [NOW]},
    "a beginning before 1970": {"iat": -1},
    "a validity from a text on": {"nbf": str(NOW)},
    "a validity from a truth on": {"nbf": True},
    "a life that is too long": {"iat": NOW - 3000, "exp": NOW + 900},
    "a life that is too long from now on": {"exp": NOW + 40_000},
    "not yet": {"nbf": NOW + 86_400},
    "no subject": {"sub": None},
    "a subject for two lines of a log": {"sub": "a\nb"},
    "no tenant": {"tenant": None},
    "an empty tenant": {"tenant": ""},
    "a tenant that is a list": {"tenant": ["acme"]},
    "a tenant that is a number": {"tenant": 7},
    "a tenant with a NUL": {"tenant": "a\0"},
    "another key": {"key": OTHER_RSA},
    "an algorithm that the key is not for": {"kid": "rsa256", "algorithm": "RS512"},
    "a key for encryption": {"kid": "encryption"},
    "a key that is shared": {"kid": "shared", "algorithm": "HS256", "key": "secret" * 8},
    "a key of another kind": {"kid": "ec"},
}


@pytest.mark.parametrize("name", WRONG)
async def test_an_invalid_token_is_refused(idp: IdentityProvider, name: str) -> None:
    with pytest.raises(Unauthenticated):
        await checked(idp, token(**WRONG[name]))


async def test_a_token_can_live_up_to_the_limit(idp: IdentityProvider) -> None:
    for claims in ({"iat": NOW, "exp": NOW + 3600}, {"iat": NOW + 0.5, "exp": NOW + 1800.5}, {"exp": NOW + 3500}):
        assert (await checked(idp, token(**claims))).expires_at == claims["exp"]


async def test_a_public_key_cannot_be_used_as_a_secret(idp: IdentityProvider) -> None:
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head, claims, _ = token().split(".")
    for algorithm, secret in (("HS256", pem), ("HS256", pem.strip()), ("none", b"")):
        header = jwt.utils.base64url_encode(json.dumps({"alg": algorithm, "kid": "rsa"}).encode()).decode()
        signing = jwt.get_algorithm_by_name(algorithm)
        signature = signing.sign(f"{header}.{claims}".encode(), secret) if secret else b""
        forged = f"{header}.{claims}.{jwt.utils.base64url_encode(signature).decode()}"
        with pytest.raises(Unauthenticated):
            await checked(idp, forged)
    assert not {"none", "HS256", "HS384", "HS512"} & ALGORITHMS
    assert head


@pytest.mark.parametrize(
    ("path", "claims", "tenant"),
    [
        ("org", {"org": "acme"}, "acme"),
        ("a.b", {"a": {"b": "acme"}}, "acme"),
        ("a.b.c", {"a": {"b": {"c": "acme"}}}, "acme"),
        ("https://acme.test/tenant", {"https://acme.test/tenant": "acme"}, "acme"),
        ("a.b", {"a": "acme"}, None),
        ("a.b", {"a": {"c": "acme"}}, None),
    ],
)
async def test_the_tenant_is_read_from_its_claim(path: str, claims: dict[str, Any], tenant: str | None) -> None:
    async with ProviderServer(reply()) as server, running(server, tenant_claim=path) as idp:
        if tenant is None:
            with pytest.raises(Unauthenticated, match=f"claim '{path}'"):
                await checked(idp, token(**claims))
        else:
            assert (await checked(idp, token(**claims))).tenant == tenant


@pytest.mark.parametrize(
    ("scope", "understood"),
    [
        ("read create", ["create", "read"]),
        (["read", "admin", 7, None], ["admin", "read"]),
        ("reading", []),
        ("", []),
        (None, []),
        (7, []),
        ({"read": True}, []),
    ],
)
async def test_scopes_are_words_or_a_list(idp: IdentityProvider, scope: Any, understood: list[str]) -> None:
    assert sorted((await checked(idp, token(scope=scope))).scopes) == understood


async def test_a_flood_of_unknown_keys_is_one_fetch(idp: IdentityProvider) -> None:
    refused = await asyncio.gather(*(checked(idp, token(kid=f"k{n}")) for n in range(50)), return_exceptions=True)
    assert {type(error) for error in refused} == {Unauthenticated}
    assert idp.fetches == 1


async def test_a_new_key_is_fetched_on_first_use_and_an_old_one_removed() -> None:
    replies = [reply(published("rsa")), reply(published("other"))]
    async with ProviderServer(*replies) as server, running(server, pause_seconds=0) as idp:
        assert (await checked(idp, token("rsa"))).tenant == "acme"
        many = (checked(idp, token("other", key=OTHER_RSA)) for _ in range(20))
        assert len(await asyncio.gather(*many)) == 20
        assert idp.fetches == len(server.requests) == 2
        with pytest.raises(Unauthenticated, match="does not publish"):
            await checked(idp, token("rsa"))


@pytest.mark.parametrize(
    "wrong",
    [
        Reply(status=500),
        Reply(status=302, headers={"location": "http://127.0.0.1:1/"}),
        reply(b"{"),
        reply(b"[]"),
        reply(b'{"keys": []}'),
        reply(b'{"keys": 7}'),
        reply(b" " * (1 << 20) + ALL),
        Reply(ending="abort"),
    ],
)
async def test_a_silent_provider_is_not_a_refusal(wrong: Reply) -> None:
    async with ProviderServer(wrong) as server, running(server) as idp:
        for _ in range(3):
            with pytest.raises(Unavailable, match="identity provider does not answer"):
                await checked(idp, token())
        assert idp.fetches == 1


async def test_known_keys_work_while_the_provider_is_down() -> None:
    async with ProviderServer(reply(), Reply(status=503)) as server, running(server, pause_seconds=0) as idp:
        assert (await checked(idp, token())).tenant == "acme"
        with pytest.raises(Unavailable):
            await checked(idp, token("other", key=OTHER_RSA))
        assert (await checked(idp, token())).tenant == "acme"


async def test_the_wait_for_a_silent_provider_is_bounded() -> None:
    async with (
        ProviderServer(Reply(silent=True, ending="hang")) as server,
        running(server, fetch_seconds=0.2) as idp,
        asyncio.timeout(DEADLINE_SECONDS),
    ):
        with pytest.raises(Unavailable):
            await checked(idp, token())


def test_an_invalid_set_of_keys_is_refused_with_a_reason() -> None:
    for document in (b"", b"7", b'{"keys": [{"kid": "a", "kty": "oct", "k": "AAAA"}]}'):
        with pytest.raises(ValueError, match=r".+"):
            public_keys(document)


@pytest.mark.parametrize("lacking", ["jwt_issuer", "jwt_audience"])
def test_a_provider_needs_an_issuer_and_an_audience(lacking: str) -> None:
    given = settings("https://idp.test") | {lacking: None}
    with pytest.raises(ConfigurationError, match="BATON_JWKS_URL also needs BATON_JWT_ISSUER and BATON_JWT_AUDIENCE"):
        Settings.load(**given)
