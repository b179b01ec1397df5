"""`baton input`: sends an input to a stream, through any pod."""

from __future__ import annotations

import asyncio
import secrets
import sys
from typing import Any

import httpx2
import orjson

from ..errors import ConfigurationError
from .addresses import pod_address, stream_id

# How often to try while no pod answers. All tries are one input.
_TRIES = 5


def run(stream: str, content: str, *, url: str, credential: str | None, key: str | None) -> int:
    """Send JSON to a stream, and print the number of the input; return 0, or 1 if it is refused or no pod answers.

    `content`: `-` reads the JSON from standard input. `key`: sending again with the same one sends nothing new.

    Raises:
        ConfigurationError: the id, the address or the JSON is malformed.
    """
    address = f"{pod_address(url)}/v1/streams/{stream_id(stream)}/inputs"
    data = _parsed(sys.stdin.read() if content == "-" else content)
    headers = {"content-type": "application/json", "idempotency-key": key or secrets.token_hex(16)}
    if credential:
        headers["authorization"] = f"Bearer {credential}"
    try:
        answer = asyncio.run(_sent(address, orjson.dumps({"data": data}), headers))
    except httpx2.HTTPError as error:
        sys.stderr.write(f"baton: No pod answers at {url}: {error!r}. It is not known whether the input was sent.\n")
        return 1
    if not answer.is_success:
        sys.stderr.write(f"baton: The input is refused: {answer.status_code} {_detail(answer)}\n")
        return 1
    sys.stdout.write(f"{answer.json()['number']}\n")
    return 0


async def _sent(address: str, body: bytes, headers: dict[str, str]) -> httpx2.Response:
    async with httpx2.AsyncClient(headers=headers) as http:
        for tries in range(1, _TRIES + 1):
            try:
                answer = await http.post(address, content=body)
                if answer.status_code < 500 or tries == _TRIES:
                    return answer
            except httpx2.TransportError:
                if tries == _TRIES:
                    raise
            await asyncio.sleep(tries / 4)
    raise AssertionError


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


def _detail(answer: httpx2.Response) -> str:
    try:
        return str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        return answer.reason_phrase
