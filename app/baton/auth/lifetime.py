"""When a signed token expires. Its times must be numbers (RFC 7519, NumericDate), and its lifetime has a maximum.

The JWT library converts these claims with `int()`, which also accepts `"1700000000"` and `true`, and has no maximum.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from ..errors import Unauthenticated

# The end of the year 9999, the last of the standard library's dates.
_LAST: Final = 253_402_300_799


def expiry(claims: Mapping[str, Any], *, max_seconds: float) -> float:
    """Return when a token expires, in seconds since 1970. Without `iat` the lifetime starts now.

    Raises:
        Unauthenticated: `exp`, `nbf` or `iat` is not a number of seconds, or the lifetime is too long.
    """
    for name in ("exp", "nbf", "iat"):
        if name in claims and not _is_date(claims[name]):
            raise Unauthenticated(f"The token is not valid: its claim {name!r} must be a number of seconds since 1970.")
    expires = claims["exp"]
    if expires - claims.get("iat", time.time()) > max_seconds:
        raise Unauthenticated(f"The token is not valid: its lifetime is longer than {max_seconds:g} s.")
    return float(expires)


def _is_date(value: object) -> bool:
    # This excludes NaN, and compares integers of any size without converting them.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST
