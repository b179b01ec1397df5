"""`baton input`: sends an input to a stream, through any pod."""

from __future__ import annotations

import asyncio
import sys
from typing import Any, Final

import orjson

from ..client import Client
from ..errors import ClientError, ConfigurationError
from .addresses import pod_address, stream_id

# How long to try while no pod answers. All tries are one input.
_PATIENCE_SECONDS: Final = 3.0


def run(stream: str, content: str, *, url: str, credential: str | None, key: str | None) -> int:
    """Send JSON to a stream, and print the number of the input; return 0, or 1 if it is refused or no pod answers.

    `content`: `-` reads the JSON from standard input. `key`: sending again with the same one sends nothing new.

    Raises:
        ConfigurationError: the id, the address or the JSON is malformed.
    """
    address, target = pod_address(url), stream_id(stream)
    data = _parsed(sys.stdin.read() if content == "-" else content)

    async def send() -> int:
        async with Client(address, token=credential or None, patience_seconds=_PATIENCE_SECONDS) as client:
            return await client.send_input(target, data, idempotency_key=key)

    try:
        number = asyncio.run(send())
    except ClientError as error:
        if error.status is None:
            sys.stderr.write(f"baton: No pod answers at {url}: {error}. It is not known whether the input was sent.\n")
        else:
            sys.stderr.write(f"baton: The input is refused: {error.status} {error}\n")
        return 1
    sys.stdout.write(f"{number}\n")
    return 0


def _parsed(content: str) -> Any:
    try:
        data = orjson.loads(content)
    except ValueError as error:
        raise ConfigurationError(
            f"{content!r:.80} is not JSON: {error}. A text is written with quotes: '\"go on\"'."
        ) from None
    if data is None:
        raise ConfigurationError("null cannot be sent: it stands for no input.")
    return data
