"""What an identity provider publishes, and tokens of one."""

from __future__ import annotations

import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from tests.support.provider_server import Reply

ISSUER, AUDIENCE = "https://idp.test/", "baton-pods"
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def published(*kids: str) -> bytes:
    every: dict[str, dict[str, Any]] = {
        "rsa": json.loads(RSAAlgorithm.to_jwk(RSA.public_key())),
        "rsa256": json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"alg": "RS256"},
        "other": json.loads(RSAAlgorithm.to_jwk(OTHER_RSA.public_key())),
        "ec": json.loads(ECAlgorithm.to_jwk(EC.public_key())),
        "ed": json.loads(OKPAlgorithm.to_jwk(ED.public_key())),
        "encryption": json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"use": "enc"},
        "shared": {"kty": "oct", "k": "c2VjcmV0" * 8, "alg": "HS256"},
        "unknown": {"kty": "PQ", "x": "1"},
        "unsigned": json.loads(RSAAlgorithm.to_jwk(RSA.public_key())) | {"alg": "none"},
    }
    return json.dumps({"keys": [every[kid] | {"kid": kid} for kid in kids] + ["no key", {"kty": "RSA"}]}).encode()


ALL = published("rsa", "rsa256", "ec", "ed", "encryption", "shared", "unknown", "unsigned")


def reply(document: bytes = ALL, **given: Any) -> Reply:
    return Reply([document], content_type="application/json", **given)


def token(kid: str = "rsa", algorithm: str = "RS256", key: Any = RSA, **changes: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "user 1",
        "exp": now + 60,
        "tenant": "acme",
        "scope": "openid read",
    }
    claims = {name: value for name, value in (claims | changes).items() if value is not None}
    return jwt.encode(claims, key, algorithm, {"kid": kid})


NOW = int(time.time())


def settings(url: str) -> dict[str, Any]:
    return {"jwks_url": f"{url}/keys", "jwt_issuer": ISSUER, "jwt_audience": AUDIENCE}
