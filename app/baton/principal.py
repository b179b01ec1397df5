"""Who makes a request, and what that is allowed to do."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args
from uuid import UUID

from .errors import Forbidden, Unauthenticated

AuthScope: TypeAlias = Literal["create", "read", "cancel", "admin"]
View: TypeAlias = Literal["full", "answer"]

SCOPES: Final[frozenset[AuthScope]] = frozenset(get_args(AuthScope))


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential has been checked."""

    tenant: str  # whose streams these are; another tenant's do not exist for this caller
    scopes: frozenset[AuthScope]
    name: str  # by which what it does is counted and logged
    stream_id: UUID | None = None  # the only stream that exists for this caller
    view: View = "full"  # all that it may see of a stream
    key_id: UUID | None = None  # of its API key, which may be revoked
    expires_at: float = math.inf  # when its credential does, in seconds since 1970
    grace_seconds: float = math.inf  # for so long after a stream's end it may still ask for it

    def require(self, scope: AuthScope) -> None:
        """Raise Forbidden unless this caller may do that."""
        if scope not in self.scopes:
            allowed = ", ".join(sorted(self.scopes)) or "nothing"
            raise Forbidden(f"This needs the scope {scope}, and the credential has: {allowed}.")

    def require_tenant(self) -> None:
        """Raise Forbidden if this caller is let at one stream only."""
        if self.stream_id is not None:
            raise Forbidden("A token of one stream is not enough for this.")

    def require_view(self, view: View) -> None:
        """Raise Forbidden if this caller may not see so much."""
        if view == "full" and self.view != "full":
            raise Forbidden(
                "The token shows the answer only: follow it as native events with `view=answer`, or as plain text."
            )

    def require_in_time(self, ended_at: float | None) -> None:
        """Raise Unauthenticated if a stream ended too long ago; `ended_at` in seconds since 1970."""
        if ended_at is not None and time.time() > ended_at + self.grace_seconds:
            raise Unauthenticated("The token has expired, since its stream has ended.")

    def sees(self, tenant: str, stream_id: UUID) -> bool:
        """Whether a stream exists for this caller."""
        return tenant == self.tenant and self.stream_id in {None, stream_id}


def is_name(name: object) -> bool:
    """Whether something can name a tenant or a caller: 1 to 200 printable characters, which Postgres and a log take."""
    return isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable()


ANONYMOUS: Final = Principal("", SCOPES, "anonymous")
