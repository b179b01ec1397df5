"""The arguments by which commands name a stream and the pods."""

from __future__ import annotations

import re
from typing import Final

from ..errors import ConfigurationError
from ..events import STREAM_ID

# A stream's id as the dialects write it.
_ID: Final = re.compile(f"(?:resp_|run_|chatcmpl-)?({STREAM_ID})")


def stream_id(stream: str) -> str:
    """Return the id in what names a stream.

    Raises:
        ConfigurationError: it is not the id of a stream.
    """
    found = _ID.fullmatch(stream)
    if found is None:
        raise ConfigurationError(f"{stream!r:.80} is not the id of a stream. An id looks like 019a5e2c-….")
    return found[1]


def pod_address(url: str) -> str:
    """Return the address of a pod without a slash at its end.

    Raises:
        ConfigurationError: it is not an address.
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigurationError(
            f"{url!r:.80} is not the address of a pod. An address looks like http://127.0.0.1:8000."
        )
    return url.rstrip("/")
