"""Who makes a request, and what that is allowed to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias
from uuid import UUID

from .errors import Forbidden

AuthScope: TypeAlias = Literal["create", "read", "cancel", "admin"]

SCOPES: Final[frozenset[AuthScope]] = frozenset({"create", "read", "cancel", "admin"})


@dataclass(frozen=True, slots=True)
class Principal:
    """A caller whose credential has been checked."""

    tenant: str  # whose streams these are; another tenant's do not exist for this caller
    scopes: frozenset[AuthScope]
    name: str  # by which what it does is counted and logged
    stream_id: UUID | None = None  # the only stream that exists for this caller

    def require(self, scope: AuthScope) -> None:
        """Raise Forbidden unless this caller may do that."""
        if scope not in self.scopes:
            allowed = ", ".join(sorted(self.scopes)) or "nothing"
            raise Forbidden(f"This needs the scope {scope}, and the credential has: {allowed}.")

    def require_tenant(self) -> None:
        """Raise Forbidden if this caller is let at one stream only."""
        if self.stream_id is not None:
            raise Forbidden("A token of one stream is not enough for this.")

    def sees(self, tenant: str, stream_id: UUID) -> bool:
        """Whether a stream exists for this caller."""
        return tenant == self.tenant and self.stream_id in {None, stream_id}


ANONYMOUS: Final = Principal("", SCOPES, "anonymous")
