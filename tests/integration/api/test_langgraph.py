"""LangGraph's routes: threads that remember, runs that are followed anywhere, and interrupts that are answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx2
import pytest
from tests.support.access import bearer, guarded_pod, make_key, signed
from tests.support.cluster import Cluster, RunningPod
from tests.support.logbook import until
from tests.support.wire import frames

import baton
from baton.generators import GenerationRequest
from baton.generators.conversation import messages
from baton.generators.protocol import Yielded

MODES = ["messages-tuple", "values", "updates", "custom"]
CALL = {"type": "tool_call", "index": 0, "id": "c", "name": "add", "arguments_delta": '{"a":1}'}
GATE = asyncio.Event()


@baton.continues
async def agent(request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    """Do what the last message says."""
    yield {"type": "continue", "after": request.so_far.seq}
    said = messages(request.input)
    last = said[-1]["content"]
    if last == "tool":
        yield "Let me see."
        yield CALL
        yield {"type": "tool_result", "id": "c", "result": {"sum": 2}}
        yield "It is 2."
    elif last == "client tool":
        yield CALL | {"run_by": "client"}
    elif last == "fail":
        yield "Hm"
        raise baton.GenerationError("broken", "It broke.")
    elif last in {"ask", "approve"} and request.run == 1:
        yield "Well."
        reason = {"type": "approval", "calls": ["c"]} if last == "approve" else {"question": "really?"}
        if last == "approve":
            yield CALL
            yield {"type": "tool_approval", "id": "c"}
        yield {"type": "wait", "for": reason}
    elif last == "ask twice" and request.run <= 2:
        yield {"type": "wait", "for": {"question": request.run}}
    elif last in {"ask", "approve", "ask twice"}:
        yield f"You said {await request.receive(0)}."
    elif last == "slow":
        yield "Slow"
        await GATE.wait()
        yield "ly."
    else:
        yield {"type": "custom", "name": "progress", "data": len(said)}
        yield f"{len(said)} "
        yield "messages."


def human(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "human", "content": text, **fields}


class Client:
    """A client of LangGraph's API on a pod."""

    def __init__(self, cluster: Cluster, pod: RunningPod) -> None:
        self._client = cluster.client
        self.url = f"{pod.url}/v1/langgraph"

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        return await self._client.get(f"{self.url}{path}", headers=headers)

    async def post(self, path: str, content: Any = None) -> httpx2.Response:
        return await self._client.post(f"{self.url}{path}", json=content)

    async def run(self, text: str | None, how: str = "stream", thread: str = "t", **fields: Any) -> httpx2.Response:
        given = {"input": {"messages": [human(text)]}} if text is not None else {}
        body = {"assistant_id": "agent", "stream_mode": MODES, **given, **fields}
        return await self.post(f"/threads/{thread}/runs" + (f"/{how}" if how else ""), body)


@pytest.fixture
async def clients(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> list[Client]:
    # An event belongs to the loop of the test that has waited for it.
    monkeypatch.setitem(globals(), "GATE", asyncio.Event())
    await cluster.worker({"agent": agent})
    return [Client(cluster, await cluster.pod()) for _ in range(2)]


def events(body: bytes) -> list[tuple[str, Any]]:
    """The events of a run, and their data."""
    found = []
    for block in frames(body):
        fields = dict(line.split(": ", 1) for line in block.decode().split("\n") if not line.startswith(":"))
        if "event" in fields:
            found.append((fields["event"], httpx2.Response(200, content=fields["data"]).json()))
    return found


def numbered(body: bytes) -> list[bytes]:
    """The frames with a number."""
    return [frame for frame in frames(body) if frame.startswith(b"id: ")]


def texts(values: Any) -> list[tuple[str, str]]:
    return [(message["type"], message["content"]) for message in values["messages"]]


async def test_a_thread_remembers_what_its_runs_have_said(clients: list[Client]) -> None:
    one, two = clients
    first = events((await one.run("hi")).content)
    assert [event for event, _ in first] == [
        *("metadata", "values", "custom", "messages", "messages", "messages", "updates", "values", "end")
    ]
    second = await two.run("again", "wait")
    assert texts(second.json()) == [
        *[("human", "hi"), ("ai", "1 messages."), ("human", "again"), ("ai", "3 messages.")]
    ]
    names = [message["id"] for message in second.json()["messages"]]
    assert names[:2] == [message["id"] for message in first[-2][1]["messages"]]
    state = (await one.get("/threads/t/state")).json()
    assert state["values"] == second.json()
    assert (state["next"], state["tasks"]) == ([], [])
    assert (await one.post("/threads/t/history", {"limit": 5})).json() == [state]
    conversation = await two._client.get(two.url.replace("langgraph", "conversations/t"))
    assert [message["content"] for message in conversation.json()["messages"]] == [
        *("hi", "1 messages.", "again", "3 messages.")
    ]


async def test_a_run_is_followed_on_any_pod_from_any_frame_in_any_modes(clients: list[Client]) -> None:
    one, two = clients
    answer = await one.run("tool")
    whole = numbered(answer.content)
    location = answer.headers["location"]
    assert location.startswith(answer.headers["content-location"] + "/stream?stream_mode=")
    for after in range(len(whole)):
        rest = await two.get(location, **{"Last-Event-ID": str(after)})
        assert numbered(rest.content) == whole[after:]
        assert rest.headers["location"] == location
    assert numbered((await two.get(location, **{"Last-Event-ID": "-1"})).content) == whole
    values = await two.get(f"{answer.headers['content-location']}/stream?stream_mode=values")
    wanted = [frame for frame in whole if b"event: messages" not in frame and b"event: updates" not in frame]
    assert numbered(values.content) == wanted
    beyond = await two.get(location, **{"Last-Event-ID": "99"})
    assert (beyond.status_code, beyond.json()["code"]) == (409, "cursor_beyond_tail")


async def test_a_question_ends_a_run_and_its_answer_begins_another(cluster: Cluster, clients: list[Client]) -> None:
    one, two = clients
    asked = await one.run("ask")
    last = events(asked.content)[-3:]
    assert [event for event, _ in last] == ["updates", "values", "end"]
    (interrupt,) = last[0][1]["__interrupt__"]
    assert interrupt["value"] == {"question": "really?"}
    assert (await two.get("/threads/t")).json()["status"] == "interrupted"
    state = (await two.get("/threads/t/state")).json()
    assert state["tasks"][0]["interrupts"] == state["interrupts"] == [interrupt]
    refused = await two.run("another")
    assert (refused.status_code, refused.json()["code"]) == (409, "answer_running")

    resumed = await two.run(None, command={"resume": "yes"})
    found = events(resumed.content)
    assert [event for event, _ in found] == ["metadata", "values", "messages", "messages", "updates", "values", "end"]
    run = resumed.headers["content-location"].rpartition("/")[2]
    assert found[0][1]["run_id"] == run != asked.headers["content-location"].rpartition("/")[2]
    assert texts(found[-2][1]) == [("human", "ask"), ("ai", "Well."), ("ai", "You said yes.")]
    # Each run stays what it was.
    assert numbered((await one.get(asked.headers["location"])).content) == numbered(asked.content)
    assert numbered((await one.get(resumed.headers["location"])).content) == numbered(resumed.content)
    assert [item["status"] for item in (await one.get("/threads/t/runs")).json()] == ["success"]
    assert (await one.get(asked.headers["content-location"])).json()["status"] == "interrupted"
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 1
    again = await one.run(None, command={"resume": "no"})
    assert (again.status_code, again.json()["code"]) == (409, "nothing_to_resume")


async def test_of_two_answers_one_is_taken(clients: list[Client]) -> None:
    asked = events((await clients[0].run("ask")).content)
    name = asked[-2][1]["__interrupt__"][0]["id"]
    answers = await asyncio.gather(
        clients[0].run(None, "wait", command={"resume": "yes"}),
        clients[1].run(None, "wait", command={"resume": {name: "no"}}),
    )
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 409]
    assert len(texts((await clients[0].get("/threads/t/state")).json()["values"])) == 3


async def test_an_answer_that_names_its_question_answers_no_other(clients: list[Client]) -> None:
    one, other = clients

    async def asked(client: Client, resume: Any = None) -> tuple[str, str]:
        fields: dict[str, Any] = {} if resume is None else {"command": {"resume": resume}}
        answer = await client.run("ask twice" if resume is None else None, "wait", **fields)
        assert answer.status_code == 200, answer.text
        return answer.headers["content-location"], answer.json()["__interrupt__"][0]["id"]

    _, first = await asked(one)
    run, second = await asked(one, {first: "yes"})
    assert second != first
    # The same answer again, whose response was lost, gets the run that it has begun. Another one is too late.
    assert await asked(other, {first: "yes"}) == (run, second)
    for resume, code in (({first: "no"}, "answer_running"), ({"0" * 32 + ".3": "yes"}, "nothing_to_resume")):
        refused = await one.run(None, "wait", command={"resume": resume})
        assert (refused.status_code, refused.json()["code"]) == (409, code)
    answer = await one.run(None, "wait", command={"resume": {second: "maybe"}})
    assert texts(answer.json())[-1] == ("ai", "You said yes.")


async def test_decisions_answer_a_question_about_tool_calls(clients: list[Client]) -> None:
    one, _ = clients
    asked = events((await one.run("approve")).content)
    (interrupt,) = asked[-2][1]["__interrupt__"]
    assert interrupt["value"]["action_requests"] == [{"name": "add", "args": {"a": 1}}]
    refused = await one.run(None, command={"resume": "yes"})
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    answer = await one.run(None, "wait", command={"resume": {"decisions": [{"type": "reject", "message": "no"}]}})
    assert "'approved': False, 'reason': 'no'" in texts(answer.json())[-1][1]


async def test_a_client_runs_its_tools(clients: list[Client]) -> None:
    one, _ = clients
    asked = (await one.run("client tool", "wait")).json()["messages"][-1]
    assert asked["tool_calls"] == [{"name": "add", "args": {"a": 1}, "id": "c", "type": "tool_call"}]
    result = {"type": "tool", "tool_call_id": "c", "content": "2"}
    answer = await one.run(None, "wait", input={"messages": [asked, result]})
    assert [kind for kind, _ in texts(answer.json())] == ["human", "ai", "tool", "ai"]


async def test_a_run_fails_with_its_error(clients: list[Client]) -> None:
    one, _ = clients
    error = {"error": "broken", "message": "It broke."}
    assert events((await one.run("fail")).content)[-1] == ("error", error)
    assert (await one.run("fail", "wait")).json() == {"__error__": error}
    thread = (await one.get("/threads/t")).json()
    assert (thread["status"], thread["values"]["messages"][-1]["content"]) == ("error", "Hm")


async def test_a_run_is_cancelled_and_interrupted(cluster: Cluster, clients: list[Client]) -> None:
    one, two = clients
    run = (await one.run("slow", "")).json()
    assert run["status"] in {"pending", "running"}
    path = f"/threads/t/runs/{run['run_id']}"
    await until(lambda: _says(two, path))
    refused = await two.run("hi")
    assert (refused.status_code, refused.json()["code"]) == (409, "answer_running")
    interrupting = await two.run("hi", "wait", multitask_strategy="interrupt")
    assert texts(interrupting.json()) == [*[("human", "slow"), ("ai", "Slow"), ("human", "hi"), ("ai", "3 messages.")]]
    assert (await one.get(path)).json()["status"] == "interrupted"
    slow = (await one.run("slow", "")).json()["run_id"]
    cancelled = await two.post(f"/threads/t/runs/{slow}/cancel?wait=1")
    assert texts(cancelled.json())[4] == ("human", "slow")
    joined = (await one.get(f"/threads/t/runs/{slow}/join")).json()
    assert joined["__error__"]["error"] == "cancelled"
    assert events((await one.get(f"/threads/t/runs/{slow}/stream")).content)[-1][0] == "error"
    assert (await one.post(f"/threads/t/runs/{slow}/cancel")).status_code == 202


async def _says(client: Client, path: str) -> bool:
    return bool((await client.get(path)).json()["status"] == "running")


async def test_what_is_not_supported_is_named(clients: list[Client]) -> None:
    one, _ = clients
    unsupported: list[dict[str, Any]] = [
        {"checkpoint_id": "x"},
        {"interrupt_before": ["a"]},
        {"stream_mode": ["debug"]},
        {"multitask_strategy": "enqueue"},
        {"command": {"goto": "node"}},
    ]
    for fields in unsupported:
        answer = await one.run("hi", **fields)
        assert (answer.status_code, answer.json()["code"]) == (501, "langgraph_not_supported"), fields
    for path in ["/threads/t/commands", "/threads/t/stream/events", "/store/items", "/threads/search", "/runs/batch"]:
        answer = await one.post(path, {})
        assert (answer.status_code, answer.json()["code"]) == (501, "langgraph_not_supported"), path
    assert (await one.get("/nowhere")).json()["code"] == "not_found"
    unknown = await one.run("hi", assistant_id="nobody")
    assert (unknown.status_code, unknown.json()["code"]) == (422, "unknown_generator")


async def test_threads_and_assistants(clients: list[Client]) -> None:
    one, _ = clients
    assert [item["assistant_id"] for item in (await one.post("/assistants/search", {})).json()].count("agent") == 1
    assert (await one.get("/assistants/agent")).json()["graph_id"] == "agent"
    assert (await one.get("/assistants/nobody")).status_code == 404
    thread = (await one.post("/threads", {})).json()["thread_id"]
    assert (await one.get(f"/threads/{thread}")).json()["status"] == "idle"
    assert (await one.post(f"/threads/{thread}/history")).json() == []
    await one.run("hi", "wait", thread=thread)
    assert (await one.post("/threads", {"thread_id": thread})).status_code == 409
    assert (await one.post("/threads", {"thread_id": thread, "if_exists": "do_nothing"})).status_code == 200
    alone = await one.post("/runs/wait", {"assistant_id": "agent", "input": {"messages": "hi"}})
    assert texts(alone.json()) == [("human", "hi"), ("ai", "1 messages.")]


async def test_who_may_not_cancel_cannot_bind_a_run_to_a_connection(cluster: Cluster) -> None:
    _, key = await make_key(cluster, "create", "read")
    pod = await guarded_pod(cluster)
    body = {"assistant_id": "agent", "input": {"messages": "hi"}, "on_disconnect": "cancel"}
    url = f"{pod.url}/v1/langgraph/threads/t/runs/stream"
    answer = await cluster.client.post(url, json=body, headers=bearer(key))
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert await cluster.pool.fetchval("SELECT count(*) FROM baton.stream") == 0


async def test_the_holder_of_a_streams_token_sees_its_own_question_only(cluster: Cluster) -> None:
    """Also while somebody else, who may see the whole thread, follows the same stream on the same pod."""
    await cluster.worker({"agent": agent})
    _, key = await make_key(cluster)
    pod = await guarded_pod(cluster)
    native = f"{pod.url}/v1/streams"
    digits = ""
    for text in ("first", "second"):
        new = {"generator": "agent", "input": {"messages": [human(text)]}, "metadata": {"chat": "t"}}
        created = (await cluster.client.post(native, json=new, headers=bearer(key))).json()
        digits = created["id"]
        await cluster.client.get(f"{native}/{digits}/events", headers=bearer(key))
    url = f"{pod.url}/v1/langgraph/threads/t/runs/{digits}/join"
    answers = await asyncio.gather(
        cluster.client.get(url, headers=bearer(key)), cluster.client.get(url, headers=bearer(signed(UUID(digits))))
    )
    shown = [[text for kind, text in texts(answer.json()) if kind == "human"] for answer in answers]
    assert shown == [["first", "second"], ["second"]]


async def test_a_repeated_request_with_a_key_gets_its_run_again(cluster: Cluster, clients: list[Client]) -> None:
    client, other = clients

    async def send(path: str, **fields: Any) -> httpx2.Response:
        body = {"assistant_id": "agent", "input": {"messages": [human("hello", id="m")]}, **fields}
        return await cluster.client.post(f"{client.url}{path}", json=body, headers={"idempotency-key": path})

    for path in ("/threads/t/runs/wait", "/runs/wait"):
        first, again = await send(path), await send(path)
        assert again.status_code == 200, again.text
        assert again.headers["content-location"] == first.headers["content-location"]
        assert texts(again.json()) == texts(first.json())
        # The thread of the run is that of the first request, so the address leads to it.
        joined = await other.get(first.headers["location"])
        assert texts(joined.json()) == texts(first.json())
    changed = await send("/runs/wait", config={"tags": ["other"]})
    assert (changed.status_code, changed.json()["code"]) == (422, "idempotency_conflict")


async def test_a_repeated_request_with_a_key_does_not_interrupt_its_run(
    cluster: Cluster, clients: list[Client]
) -> None:
    body = {"assistant_id": "agent", "input": {"messages": [human("slow")]}, "multitask_strategy": "interrupt"}
    runs = [
        await cluster.client.post(f"{client.url}/threads/t/runs", json=body, headers={"idempotency-key": "k"})
        for client in clients
    ]
    assert runs[0].json()["run_id"] == runs[1].json()["run_id"]
    GATE.set()
    joined = await clients[0].get(f"{runs[0].headers['content-location']}/join")
    assert texts(joined.json())[-1] == ("ai", "Slowly.")


async def test_runs_are_listed_in_pages_by_status(clients: list[Client]) -> None:
    client = clients[0]
    for text in ("one", "fail", "fail", "two"):
        await client.run(text, "wait")

    async def listed(query: str) -> list[str]:
        return [run["run_id"] for run in (await client.get(f"/threads/t/runs?{query}")).json()]

    everything = await listed("limit=100")
    assert await listed("limit=2") + await listed("limit=2&offset=2") == everything
    good = await listed("status=success")
    assert good == [everything[0], everything[3]]
    assert await listed("status=success&limit=1") + await listed("status=success&limit=1&offset=1") == good
    refused = await client.get(f"/threads/t/runs?offset={10**19}")
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
