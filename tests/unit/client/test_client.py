"""The client's calls: what is repeated, what is refused, and what belongs to whom. A transport plays the pods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx2
import orjson
import pytest

from baton import AnswerFailed, Client, ClientError, ServiceUnavailable

ID = UUID(int=1)
STREAM = {"id": str(ID), "status": "queued", "events_url": f"/v1/streams/{ID}/events"}
REFUSED = {"title": "No", "detail": "There is no such stream.", "code": "stream_not_found"}
Answer = Callable[[httpx2.Request], httpx2.Response]


def answer(status: int, content: Any = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _request: httpx2.Response(status, json=content, headers=named)


def lost(_request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ReadError("the connection is lost")


class Pods:
    """Give their answers in order, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        given = self._answers[min(len(self.requests), len(self._answers) - 1)]
        self.requests.append(request)
        return given(request)

    @property
    def keys(self) -> list[str]:
        return [request.headers.get("idempotency-key", "") for request in self.requests]

    def client(self, **given: Any) -> Client:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(self))
        return Client("http://pods.test/ai/", http=http, **given)


async def test_a_repeated_create_has_one_key_and_another_call_another() -> None:
    pods = Pods(lost, answer(503), answer(429, retry_after="0"), answer(201, STREAM))
    client = pods.client(token="secret")
    stream = await client.create({"q": "?"}, generator="agent", metadata={"chat": 1})
    assert (stream.id, stream.status, stream.ended) == (ID, "queued", False)
    assert len({*pods.keys}) == 1
    assert len(pods.keys[0]) == 32
    assert {request.content for request in pods.requests} == {
        orjson.dumps({"input": {"q": "?"}, "generator": "agent", "metadata": {"chat": 1}})
    }
    assert {request.headers["authorization"] for request in pods.requests} == {"Bearer secret"}
    assert str(pods.requests[0].url) == "http://pods.test/ai/v1/streams"
    await client.create(None)
    assert pods.keys[-1] != pods.keys[0]
    assert pods.requests[-1].content == b'{"input":null}'
    await client.create(1, idempotency_key="mine")
    assert pods.keys[-1] == "mine"


async def test_a_repeated_input_has_one_key() -> None:
    pods = Pods(answer(503), lost, answer(201, {"number": 7}))
    assert await pods.client().send_input(ID, {"type": "approval"}) == 7
    assert len({*pods.keys}) == 1
    assert pods.requests[0].url.path == f"/ai/v1/streams/{ID}/inputs"
    assert pods.requests[0].content == b'{"data":{"type":"approval"}}'


async def test_a_refusal_is_not_repeated_and_has_its_code() -> None:
    pods = Pods(answer(404, REFUSED))
    for call in (pods.client().get(ID), pods.client().cancel(str(ID)), pods.client().wait(ID)):
        with pytest.raises(ClientError, match=r"There is no such stream\.") as refused:
            await call
        assert (refused.value.code, refused.value.status) == ("stream_not_found", 404)
    assert len(pods.requests) == 3


async def test_a_fault_of_the_pod_is_not_repeated() -> None:
    pods = Pods(answer(500, {"detail": "Part of the answer is missing.", "code": "log_damaged"}))
    with pytest.raises(ClientError):
        await pods.client().get(ID)
    assert len(pods.requests) == 1


async def test_patience_ends_with_the_last_problem() -> None:
    busy = {"detail": "This part of the service is shutting down.", "code": "unavailable"}
    pods = Pods(answer(503, busy))
    with pytest.raises(ServiceUnavailable, match="shutting down") as error:
        await pods.client(patience_seconds=0.05).get(ID)
    assert (error.value.code, error.value.status) == ("unavailable", 503)
    with pytest.raises(ServiceUnavailable, match="the connection is lost") as error:
        await Pods(lost).client(patience_seconds=0).get(ID)
    assert (error.value.code, error.value.status) == (None, None)


async def test_a_pod_that_asks_for_more_than_the_patience_is_not_waited_for() -> None:
    pods = Pods(answer(429, {"detail": "Too fast.", "code": "create_rate_limited"}, retry_after="3600"))
    with pytest.raises(ServiceUnavailable, match="Too fast"):
        await pods.client().create("?")
    assert len(pods.requests) == 1


async def test_text_is_that_of_the_whole_answer() -> None:
    pods = Pods(answer(200, STREAM), answer(200, STREAM | {"status": "completed", "text": "whole"}))
    assert await pods.client().text(ID) == "whole"
    assert pods.requests[0].url.params["wait"] == "20.000"


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ({"status": "failed", "error": {"code": "bad", "message": "It broke."}}, "bad", "It broke."),
        ({"status": "cancelled", "error": None}, "cancelled", "The answer ended as cancelled."),
    ],
)
async def test_a_failed_answer_is_an_error_with_its_text(end: dict[str, Any], code: str, message: str) -> None:
    pods = Pods(answer(200, STREAM | {"text": "half"} | end))
    with pytest.raises(AnswerFailed) as failed:
        await pods.client().text(ID)
    assert (failed.value.code, str(failed.value), failed.value.text) == (code, message, "half")


async def test_a_wait_that_times_out_returns_the_stream_as_it_is() -> None:
    pods = Pods(answer(200, STREAM))
    stream = await pods.client().wait(ID, timeout_seconds=0)
    assert (stream.ended, len(pods.requests)) == (False, 1)
    assert "wait" not in pods.requests[0].url.params


async def test_what_is_no_id_becomes_no_address() -> None:
    pods = Pods(answer(200, STREAM))
    with pytest.raises(ValueError, match="badly formed"):
        await pods.client().cancel("../../v1/streams")
    assert pods.requests == []


async def test_only_its_own_http_client_is_closed() -> None:
    http = httpx2.AsyncClient()
    async with Client("http://pods.test", http=http):
        pass
    assert not http.is_closed
    await http.aclose()
    client = Client("http://pods.test")
    async with client:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        await client.get(ID)


async def test_a_page_that_is_not_json_is_named() -> None:
    pods = Pods(lambda _request: httpx2.Response(200, text="<p>Welcome"))
    with pytest.raises(ClientError, match=r"pods\.test is not JSON"):
        await pods.client().get(ID)


@pytest.mark.parametrize(
    "address", ["", "pods.test", "localhost:8000", "ftp://pods.test", "https://", "http://p.test?a=b"]
)
def test_an_address_that_cannot_be_called_is_refused_at_once(address: str) -> None:
    with pytest.raises(ValueError, match="base_url must look like https://host"):
        Client(address)


async def test_a_token_that_was_read_from_a_file_is_sent_without_its_newline() -> None:
    pods = Pods(answer(200, STREAM))
    await pods.client(token="secret\n").get(ID)
    assert pods.requests[0].headers["authorization"] == "Bearer secret"
