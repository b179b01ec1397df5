"""What an application says about a caller."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from baton import Caller
from baton.principal import SCOPES


def test_a_caller_is_a_user_unless_it_says_more() -> None:
    principal = Caller("acme").principal()
    assert (principal.tenant, principal.name, principal.stream_id) == ("acme", "app:acme", None)
    assert principal.scopes == SCOPES - {"admin", "produce"}
    named = Caller("acme", ["read"], "ann", datetime.fromtimestamp(7, UTC)).principal()
    assert named.scopes == {"read"}
    assert (named.name, named.cut_at) == ("app:ann", 7.0)


@pytest.mark.parametrize(
    "given",
    [
        {"tenant": ""},
        {"tenant": "a\nb"},
        {"tenant": None},
        {"tenant": "a", "scopes": ["write"]},
        {"tenant": "a", "scopes": "read"},
        {"tenant": "a", "name": "\0"},
        {"tenant": "a", "expires_at": datetime(2026, 1, 1)},
    ],
)
def test_what_cannot_be_a_caller_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"caller"):
        Caller(**given)
