"""When a signed token ends. Its claims of time are numbers (RFC 7519, NumericDate), and its life has a maximum.

The JWT library converts these claims with `int()`, which also takes `"1700000000"` and `true`, and bounds nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

from ..errors import Unauthenticated

# The end of the year 9999, beyond which the standard library has no date.
_LAST: Final = 253_402_300_799


def expiry(claims: Mapping[str, Any], *, max_seconds: float) -> float:
    """Return when a token expires, in seconds since 1970. Without `iat` its life is counted from now.

    Raises:
        Unauthenticated: `exp`, `nbf` or `iat` is no number of seconds, or the token lives longer than it may.
    """
    for name in ("exp", "nbf", "iat"):
        if name in claims and not _is_date(claims[name]):
            raise Unauthenticated(f"The token is not valid: its claim {name!r} must be a number of seconds since 1970.")
    expires = claims["exp"]
    if expires - claims.get("iat", time.time()) > max_seconds:
        raise Unauthenticated(f"The token is not valid: it lives longer than the {max_seconds:g} s that are allowed.")
    return float(expires)


def _is_date(value: object) -> bool:
    # NaN is between no two numbers, and an integer of any size can be compared without being converted.
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _LAST
