"""Tokens of one stream: what is accepted, and what is not, however well it is made."""

from __future__ import annotations

import base64
import json
import math
import time
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from pydantic import SecretStr
from tests.support.access import SECRETS, TENANT, signed

from baton.auth.gate import Gate
from baton.auth.tokens import TokenSigner, Wish
from baton.errors import Forbidden, Unauthenticated
from baton.principal import SCOPES, Principal
from baton.settings import Settings

STREAM = uuid4()
SERVER = Principal(TENANT, SCOPES, "key")


def signer(*kids: str, **given: Any) -> TokenSigner:
    keys = {kid: SecretStr(SECRETS[kid]) for kid in kids}
    return TokenSigner(keys, **{"lifetime_seconds": 86_400, "grace_seconds": 900} | given)


def checked(token: str, *kids: str) -> Principal:
    return signer(*kids or ("new", "old")).check(token, jwt.get_unverified_header(token).get("kid"))


def issued(maker: TokenSigner, principal: Principal = SERVER, **wish: Any) -> str:
    made = maker.issue(principal, STREAM, Wish(**wish))
    assert made is not None
    return made[0]


def test_an_issued_token_belongs_to_its_subject() -> None:
    principal = checked(issued(signer("new"), view="answer", scopes=frozenset({"read"})))
    assert (principal.tenant, principal.stream_id, principal.view) == (TENANT, STREAM, "answer")
    assert (sorted(principal.scopes), principal.grace_seconds) == (["read"], 900)
    assert time.time() + 86_300 < principal.expires_at < time.time() + 86_500


def test_replacing_a_secret_fails_no_token() -> None:
    before = issued(signer("old"))
    announced, turned = signer("old", "new"), signer("new", "old")
    for token in (before, issued(announced), issued(turned)):
        for stage in (announced, turned):
            assert stage.check(token, jwt.get_unverified_header(token)["kid"]).stream_id == STREAM
    assert jwt.get_unverified_header(issued(announced))["kid"] == "old"
    assert jwt.get_unverified_header(issued(turned))["kid"] == "new"
    with pytest.raises(Unauthenticated, match="key that is unknown here"):
        checked(before, "new")


def test_no_tokens_are_issued_without_a_secret() -> None:
    assert signer().issue(SERVER, STREAM, Wish()) is None
    with pytest.raises(Unauthenticated):
        signer().check(signed(STREAM), "new")


def test_a_token_never_allows_more_than_its_issuer() -> None:
    reader = Principal(TENANT, frozenset({"read"}), "key")
    with pytest.raises(Forbidden):
        signer("new").issue(reader, STREAM, Wish(frozenset({"cancel"})))
    assert checked(issued(signer("new"), reader)).scopes == {"read"}
    assert signer("new").issue(Principal(TENANT, frozenset({"create", "admin"}), "key"), STREAM, Wish()) is None


NOW = int(time.time())
WRONG_CLAIMS: dict[str, dict[str, Any]] = {
    "another issuer": {"iss": "other"},
    "another audience": {"aud": "other"},
    "no audience": {"aud": None},
    "no issuer": {"iss": None},
    "no end": {"exp": None},
    "no beginning": {"iat": None},
    "no stream": {"sub": None},
    "no id of a stream": {"sub": "me"},
    "a number for a stream": {"sub": 7},
    "no tenant": {"tenant": None},
    "an empty tenant": {"tenant": ""},
    "a tenant with a NUL": {"tenant": "a\0"},
    "half a character for a tenant": {"tenant": "\ud83d"},
    "a tenant that is none": {"tenant": ["acme"]},
    "no scope": {"scope": None},
    "scopes in a list": {"scope": ["read"]},
    "another scope": {"scope": "read create"},
    "no view": {"view": None},
    "an unknown view": {"view": "all"},
    "a view that is none": {"view": ["full"]},
    "expired": {"exp": NOW - 60},
    "not begun": {"iat": NOW + 3600, "exp": NOW + 7200},
    "not before": {"nbf": NOW + 3600},
    "longer than a day": {"exp": NOW + 86_500, "iat": NOW},
    "for ever": {"exp": 1e300},
    "infinite": {"exp": math.inf},
    "no number": {"exp": "never"},
    "a number that is a text": {"exp": str(NOW + 60)},
    "a truth": {"exp": True},
    "a list": {"exp": [NOW + 60]},
    "not a number": {"exp": math.nan},
    "begun at a text": {"iat": str(NOW)},
    "begun at a truth": {"iat": True, "exp": 80_000},
    "begun at a list": {"iat": [NOW]},
    "not before a text": {"nbf": str(NOW)},
    "not before a list": {"nbf": [NOW]},
}


@pytest.mark.parametrize("name", WRONG_CLAIMS)
def test_wrong_claims_are_refused(name: str) -> None:
    assert checked(signed(STREAM)).stream_id == STREAM
    with pytest.raises(Unauthenticated):
        checked(signed(STREAM, **WRONG_CLAIMS[name]))


def part(content: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")


def forged() -> dict[str, str]:
    head, claims, signature = signed(STREAM).split(".")
    other = signed(uuid4()).split(".")[1]
    secret = SECRETS["new"]
    nested = base64.urlsafe_b64encode(b'{"a":' + b"[" * 4000).decode().rstrip("=")
    return {
        "alg none": f"{part({'alg': 'none', 'kid': 'new'})}.{claims}.",
        "alg None with a signature": f"{part({'alg': 'None', 'kid': 'new'})}.{claims}.{signature}",
        "no alg": f"{part({'kid': 'new'})}.{claims}.{signature}",
        "alg that is no text": f"{part({'alg': ['HS256'], 'kid': 'new'})}.{claims}.{signature}",
        "other claims": f"{head}.{other}.{signature}",
        "no signature": f"{head}.{claims}.",
        "HS512": jwt.encode(jwt.decode(signed(STREAM), options={"verify_signature": False}), secret * 2, "HS512"),
        "kid that is no text": f"{part({'alg': 'HS256', 'kid': ['new']})}.{claims}.{signature}",
        "kid of nobody": signed(STREAM, kid="never"),
        "no kid": f"{part({'alg': 'HS256'})}.{claims}.{signature}",
        "not base64": "!.!.!",
        "empty parts": "..",
        "nested": f"{nested}.{claims}.{signature}",
        "a list for a header": f"{part([])}.{claims}.{signature}",
        "critical": f"{part({'alg': 'HS256', 'kid': 'new', 'crit': ['x'], 'x': 1})}.{claims}.{signature}",
        "long": f"{head}.{claims}.{signature * 300}",
    }


PROVIDER = {"jwks_url": "http://127.0.0.1:1/", "jwt_issuer": "them", "jwt_audience": "baton"}


@pytest.mark.parametrize("provider", [{}, PROVIDER], ids=["alone", "beside an identity provider"])
@pytest.mark.parametrize("name", forged())
async def test_forged_tokens_are_refused(name: str, provider: dict[str, str]) -> None:
    gate = Gate(Settings.load(token_keys=f"new={SECRETS['new']}", **provider), list)
    token = forged()[name]
    with pytest.raises(Unauthenticated):
        await gate.admit("GET", {"authorization": f"Bearer {token}"}, {}, {})
    good = await gate.admit("GET", {"authorization": f"Bearer {signed(STREAM)}"}, {}, {})
    assert good.stream_id == STREAM


def test_a_stream_that_has_ended_is_forgotten_after_the_grace() -> None:
    principal = checked(signed(STREAM))
    principal.require_in_time(None)
    principal.require_in_time(time.time() - 890)
    with pytest.raises(Unauthenticated, match="its stream has ended"):
        principal.require_in_time(time.time() - 901)
    SERVER.require_in_time(0)


@pytest.mark.parametrize(
    "value",
    ["secret", "a=short", f"a={'x' * 31}", f"a b={'x' * 32}", f"a={'x' * 32},a={'y' * 32}", f"a={'x' * 31} ", "=" * 40],
)
def test_invalid_secrets_are_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_TOKEN_KEYS", value)
    with pytest.raises(Exception, match="BATON_TOKEN_KEYS") as caught:
        Settings.load()
    assert "xxx" not in str(caught.value)


def test_a_secret_may_have_equals_signs_and_is_not_shown() -> None:
    loaded = Settings.load(token_keys=f" a={'x' * 31}== , b={'y' * 32},")
    assert [(kid, key.get_secret_value()) for kid, key in loaded.token_keys.items()] == [
        ("a", "x" * 31 + "=="),
        ("b", "y" * 32),
    ]
    assert "xxx" not in repr(loaded)


def test_stream_ids_can_have_any_uuid_form() -> None:
    assert checked(signed(STREAM.hex)).stream_id == UUID(STREAM.hex)
