"""NATS with accounts: an operator, an account and a user, each with a key and a JWT that the one before it signed.

The form is of https://github.com/nats-io/jwt, version 2.
"""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nkeys
import orjson


@dataclass(frozen=True, slots=True)
class Key:
    """A key of an operator, an account or a user."""

    kind: str
    seed: bytes = field(repr=False)

    @classmethod
    def of(cls, kind: str) -> Key:
        prefix = getattr(nkeys, f"PREFIX_BYTE_{kind.upper()}")
        return cls(kind, bytes(nkeys.encode_seed(secrets.token_bytes(32), prefix)))

    @property
    def public(self) -> str:
        public: bytes = nkeys.from_seed(bytearray(self.seed)).public_key
        return public.decode()

    def issue(self, subject: Key, **claims: Any) -> str:
        """Return a JWT about a key."""
        now = int(time.time())
        claims = {"type": subject.kind, "version": 2, **claims}
        content = {"jti": secrets.token_hex(16), "iat": now, "iss": self.public, "sub": subject.public, "nats": claims}
        signed = f"{_part({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{_part(content)}"
        signature = nkeys.from_seed(bytearray(self.seed)).sign(signed.encode())
        return f"{signed}.{_text(signature)}"


def accounts(folder: Path, *, publish: str, subscribe: str) -> tuple[Path, Path]:
    """Write the configuration of a server with one account, and the credentials of its user, who may use subjects."""
    operator, account, user = (Key.of(kind) for kind in ("operator", "account", "user"))
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "wildcards": True}
    configuration, credentials = folder / "nats.conf", folder / "baton.creds"
    account_jwt = operator.issue(account, limits=limits)
    configuration.write_text(
        f"operator: {operator.issue(operator)}\n"
        "resolver: MEMORY\n"
        f"resolver_preload: {{ {account.public}: {account_jwt} }}\n"
    )
    rights = {"pub": {"allow": [publish]}, "sub": {"allow": [subscribe]}, "subs": -1, "data": -1, "payload": -1}
    credentials.write_text(
        "-----BEGIN NATS USER JWT-----\n"
        f"{account.issue(user, **rights)}\n"
        "------END NATS USER JWT------\n\n"
        "-----BEGIN USER NKEY SEED-----\n"
        f"{user.seed.decode()}\n"
        "------END USER NKEY SEED------\n"
    )
    return configuration, credentials


def _part(content: Any) -> str:
    return _text(orjson.dumps(content))


def _text(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
