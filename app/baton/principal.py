"""The caller of a request and what it is allowed to do."""

from __future__ import annotations

import math
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal, TypeAlias, get_args
from uuid import UUID

from .errors import Forbidden, Unauthenticated

AuthScope: TypeAlias = Literal["create", "read", "cancel", "admin", "produce", "input"]
View: TypeAlias = Literal["full", "answer"]

SCOPES: Final[frozenset[AuthScope]] = frozenset(get_args(AuthScope))


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential has been checked."""

    tenant: str  # the owner of the streams; streams of other tenants do not exist for this caller
    scopes: frozenset[AuthScope]
    name: str  # identifies the caller in counts and logs
    stream_id: UUID | None = None  # the only stream that exists for this caller
    view: View = "full"  # the part of a stream that it may see
    key_id: UUID | None = None  # the id of its API key, which may be revoked
    expires_at: float = math.inf  # when its credential expires, in seconds since 1970
    grace_seconds: float = math.inf  # how long it may read a stream after its end
    cut_at: float = math.inf  # when its connections are closed, in seconds since 1970

    def require(self, *scopes: AuthScope) -> None:
        """Raise Forbidden unless this caller has one of these scopes."""
        if self.scopes.isdisjoint(scopes):
            allowed = ", ".join(sorted(self.scopes)) or "nothing"
            raise Forbidden(f"This needs the scope {' or '.join(scopes)}. The credential allows: {allowed}.")

    def require_tenant(self) -> None:
        """Raise Forbidden if this caller may access only one stream."""
        if self.stream_id is not None:
            raise Forbidden("This request needs an API key: a token gives access to one stream only.")

    def require_view(self, view: View) -> None:
        """Raise Forbidden if this caller may not see the whole stream and `view` is `full`."""
        if view == "full" and self.view != "full":
            raise Forbidden(
                "The token gives access to the answer only. Request native events with `view=answer`, or plain text."
            )

    def require_in_time(self, ended_at: float | None) -> None:
        """Raise Unauthenticated if the grace period after a stream's end (in seconds since 1970) is over."""
        if ended_at is not None and time.time() > ended_at + self.grace_seconds:
            raise Unauthenticated("The token has expired, because its stream has ended.")

    def sees(self, tenant: str, stream_id: UUID) -> bool:
        """Whether a stream exists for this caller."""
        return tenant == self.tenant and self.stream_id in {None, stream_id}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sends a request, as the application that mounts a pod knows it: what `authenticate` returns.

    `tenant` owns the streams: a tenant for each user keeps their answers apart. `scopes` are those of
    [access](access.md); by default all that a user needs, without `produce` and `admin`. `name` identifies the caller
    in limits of rates and in logs; by default it is the tenant. At `expires_at` the caller's connections are closed,
    and the clients come back and are authenticated again.

    Raises:
        ValueError: a value cannot be used.
    """

    tenant: str
    scopes: Collection[str] = SCOPES - {"admin", "produce"}
    name: str = ""
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        if not is_name(self.tenant) or (self.name and not is_name(self.name)):
            raise ValueError("The tenant and the name of a caller have 1 to 200 printable characters.")
        if isinstance(self.scopes, str) or not SCOPES.issuperset(self.scopes):
            raise ValueError(f"The scopes of a caller are a collection of {', '.join(sorted(SCOPES))}.")
        if self.expires_at is not None and self.expires_at.utcoffset() is None:
            raise ValueError("The expires_at of a caller needs a time zone.")

    def principal(self) -> Principal:
        """Return what this caller may do."""
        cut_at = math.inf if self.expires_at is None else self.expires_at.timestamp()
        scopes = frozenset(scope for scope in SCOPES if scope in self.scopes)
        return Principal(self.tenant, scopes, f"app:{self.name or self.tenant}", cut_at=cut_at)


def is_name(name: object) -> bool:
    """Whether a value can name a tenant or a caller: 1 to 200 printable characters, safe in Postgres and in logs."""
    return isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable()


ANONYMOUS: Final = Principal("", SCOPES, "anonymous")
