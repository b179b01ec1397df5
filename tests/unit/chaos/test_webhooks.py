"""The receiver of chaos: which calls it accepts, and what it makes of them."""

from __future__ import annotations

import datetime
import time
from random import Random
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest
from standardwebhooks import Webhook

from baton.chaos.webhooks import Receiver, is_signed
from baton.webhook_addresses import key_of
from baton.worker.webhooks import signed_headers

STREAM = UUID(int=5)


def body_of(status: str = "completed", **others: Any) -> bytes:
    return orjson.dumps({"type": f"stream.{status}", "data": {"id": str(STREAM), "status": status, **others}})


def test_signatures_of_standard_webhooks_are_right_and_others_are_not() -> None:
    secret, body, now = Receiver(Random(1)).secret, body_of(), time.time()
    moment = datetime.datetime.fromtimestamp(int(now), datetime.UTC)
    signature = Webhook(secret).sign("msg_1", moment, body.decode())
    headers = {"webhook-id": "msg_1", "webhook-timestamp": str(int(now)), "webhook-signature": f"v1,bm8= {signature}"}
    assert is_signed(secret, headers, body, now)
    assert not is_signed(secret, headers, body + b" ", now)
    assert not is_signed(secret, headers | {"webhook-id": "msg_2"}, body, now)
    assert not is_signed(secret, headers, body, now + 1000)
    assert not is_signed(Receiver(Random(1)).secret, headers, body, now)
    assert not is_signed(secret, {}, body, now)


async def call(receiver: Receiver, body: bytes, **changed: str) -> int:
    """Call a receiver as a worker does."""
    headers = signed_headers([key_of(receiver.secret)], STREAM, int(time.time()), body) | changed
    async with httpx2.AsyncClient(trust_env=False) as http:
        return (await http.post(receiver.url, content=body, headers=headers)).status_code


def judged(receiver: Receiver, status: str = "completed", *, lost: bool = False) -> list[str]:
    return [item.detail for item in receiver.against(str(STREAM), status, lambda _at: lost)]


@pytest.fixture
def receiver() -> Receiver:
    made = Receiver(Random(1))
    made.reliable = True
    return made


async def test_repeated_calls_of_an_ended_stream_are_right(receiver: Receiver) -> None:
    async with receiver:
        assert [await call(receiver, body_of()) for _ in range(2)] == [204, 204]
    assert (receiver.complaints, judged(receiver)) == ([], [])
    assert receiver.counts == {"arrived": 1, "repeated": 1}


async def test_missing_wrong_and_different_calls_are_detected(receiver: Receiver) -> None:
    async with receiver:
        assert judged(receiver) == ["the stream is completed, and no call said so"]
        await call(receiver, body_of("failed"))
        assert len(judged(receiver)) == 2
        await call(receiver, body_of())
        assert judged(receiver) == [
            "the stream is completed, and a call said failed",
            "its 2 calls have different bodies",
        ]
        # A promotion lost the first end.
        assert judged(receiver, lost=True) == []
        assert receiver.complaints == []
        await call(receiver, body_of(), **{"webhook-signature": "v1,bm8="})
        await call(receiver, body_of("completed", id="other"))
    assert len(receiver.complaints) == 2


async def test_it_refuses_calls_and_loses_replies_until_it_is_reliable(receiver: Receiver) -> None:
    receiver.reliable = False
    answers = set()
    async with receiver:
        for _ in range(40):
            try:
                answers.add(await call(receiver, body_of()))
            except httpx2.RemoteProtocolError:
                answers.add(0)
        assert answers == {0, 204, 503}
