"""Requests that nobody would think of, against a pod in this process: of the API's document, and of bytes.

Hypothesis runs in a thread, and the pod in the loop. Each request goes through a socket, as those of clients do.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks
from starlette.routing import Route
from tests.support.cluster import Cluster, RunningPod, echo
from tests.support.logbook import until

from baton import api
from baton.api.openapi_document import ALTERNATIVES, document
from baton.api.problems import SECURITY_HEADERS
from baton.api.routing import EVENTS
from baton.codes import ENDS, REFUSALS
from baton.generators.replay import build

# Nothing could be wrong with a request for these, and it takes seconds to find that out.
_RUN = "threads/{thread}/runs/{run}"
UNREFUSABLE = {"/v1/models", "/v1/models/{name}", "/v1/ai-sdk/chat/{chat}/stop"}
UNREFUSABLE |= {"/healthz", "/readyz", "/metrics", "/openapi.json", "/errors", "/console", "/assets/{name}"}
UNREFUSABLE |= {"/client.js", "/client/{file}", "/v1/ag-ui/{generator}/runs/{run}/stop"}
UNREFUSABLE |= {"/v1/messages/count_tokens", "/v1/messages/batches"}
UNREFUSABLE |= {
    f"/v1/langgraph/{path}"
    for path in ("info", "assistants/{assistant}", "threads/{thread}", "threads/{thread}/state", _RUN)
}
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]
Asked = tuple[str, str, list[tuple[bytes, bytes]], bytes]
CODES = {code.code for code in (*REFUSALS, *ENDS)}
WHOLE_SECONDS = 30  # for one request, whose stream takes less than one


@dataclass
class Fuzzer:
    """Sends requests to one pod, and counts them by what they were answered."""

    pod: RunningPod
    ids: dict[str, list[str]]  # of streams that exist, in the forms that paths have them in
    answers: Counter[int] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        return self.answers.total()

    def judge(self, status: int, headers: Any, body: bytes, what: str) -> None:
        """Hold an answer to what is true of all."""
        self.answers[status] += 1
        # 501 names what is not supported.
        assert status < 500 or status == 501, (what, status, body[:500])
        assert headers.get("x-baton-pod") == self.pod.name, what
        assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", headers["x-request-id"]), what
        for name in SECURITY_HEADERS:
            assert headers.get(name), (what, name)
        if status >= 400 and body:
            content = orjson.loads(body)
            error = content.get("error") or content
            code = error["details"]["error_code"] if "details" in error else error["code"]
            assert code in CODES, (what, body)

    def of_the_document(self, examples: int, number: int) -> None:
        """Send what the document allows, and what it does not, and hold the answers to it."""
        described, judge_events = with_alternatives(document(api.ROUTES) | {"servers": [{"url": "/"}]})
        schema = schemathesis.openapi.from_dict(described)
        with requests.Session() as session:
            session.trust_env = False

            def send(case: Any) -> None:
                response = case.call(base_url=self.pod.url, session=session, timeout=WHOLE_SECONDS)
                what = f"{case.method} {case.formatted_path} {case.query} {case.headers} {case.body!r:.2000}"
                headers = {name: values[0] for name, values in response.headers.items()}
                self.judge(response.status_code, headers, response.content, what)
                case.validate_response(response, checks=CHECKS)
                if headers.get("content-type", "").startswith(EVENTS):
                    judge_events(case.method, case.operation.path, str(response.status_code), response.content)

            for result in schema.get_all_operations():
                operation: Any = result.ok()  # type: ignore[union-attr]
                known = [{name[1:-1]: item} for name in self.ids for item in self.ids[name] if name in operation.path]
                modes = [(GenerationMode.POSITIVE, parameters) for parameters in (None, *known)]
                if operation.path not in UNREFUSABLE:
                    modes.append((GenerationMode.NEGATIVE, None))
                for mode, parameters in modes:
                    strategy = operation.as_strategy(generation_mode=mode, path_parameters=parameters)
                    self._run(send, strategy, max(1, 2 * examples // len(modes)), number)

    def of_bytes(self, examples: int, number: int) -> None:
        """Send any method, path, query, headers and body that HTTP allows, most of them near to what routes take."""
        with httpx2.Client(timeout=WHOLE_SECONDS, trust_env=False) as client:

            def send(asked: Asked) -> None:
                method, path, headers, body = asked
                answer = client.request(method, self.pod.url + path, headers=headers, content=body)
                self.judge(answer.status_code, answer.headers, answer.content, f"{asked!r:.3000}")

            self._run(send, self._requests(), examples, number)

    def _requests(self) -> st.SearchStrategy[Asked]:
        """Most of them by a method that the path has, and of what is there."""
        routes = [route for route in api.ROUTES if isinstance(route, Route)]
        part = st.one_of(st.text(max_size=20).map(lambda text: quote(text, safe="")), TOKENS)

        @st.composite
        def asked(draw: st.DrawFn) -> Asked:
            route = draw(st.sampled_from(routes))
            filled = route.path
            for name in re.findall(r"{[\w:]+}", route.path):
                known = self.ids.get(name.replace(":any", ""), ["x"])
                inside = draw(st.one_of(st.sampled_from(known), st.sampled_from(known), st.sampled_from(known), part))
                filled = filled.replace(name, inside, 1)
            path = draw(st.one_of(*[st.just(filled)] * 9, STRAY))
            method = draw(st.one_of(*[st.sampled_from(sorted(route.methods or ()))] * 4, METHODS))
            query = draw(QUERIES)
            body = draw(BODIES) if method in {"POST", "PUT", "PATCH"} else b""
            return method, f"{path}?{query}" if query else path, draw(HEADERS), body

        return asked()

    def _run(self, send: Callable[[Any], None], strategy: st.SearchStrategy[Any], examples: int, number: int) -> None:
        @seed(number)
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        )
        @given(strategy)
        def run(asked: Any) -> None:
            send(asked)

        run()


async def fuzzer(cluster: Cluster) -> Fuzzer:
    """Start a pod and a worker, and give them some streams to be asked for."""
    speedy = cluster.settings(replay_speed=1000)
    await cluster.worker({"replay": build(speedy), "echo": echo}, flush_interval_milliseconds=1)
    pod = await cluster.pod()
    ended = await cluster.create(
        pod, input={"messages": [{"role": "user", "content": "hello"}]}, metadata={"chat": "c"}
    )
    failed = await cluster.create(pod, generator="echo", input=[{"type": "nonsense"}])
    cancelled = await cluster.create(pod, generator="echo", input=[])
    erased = await cluster.create(pod, generator="echo", input=["a"])
    for stream_id in (ended, failed, cancelled, erased):
        await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
    await cluster.client.delete(f"{pod.url}/v1/streams/{erased}")
    ids, run = [ended, failed], f"run_{ended.replace('-', '')}"
    known = {"{id}": ids, "{path}": ids, "{chat}": ["c", run], "{name}": ["replay"]}
    doors = {"{thread}": ["c"], "{run}": [ended, run], "{generator}": ["replay"], "{version}": ["v3", "v4"]}
    return Fuzzer(pod, {**known, **doors})


async def all_back(fuzzed: Fuzzer) -> None:
    """Wait until the pod holds nothing of a request any more: no connection, no relay, nothing of the pool."""
    pod = fuzzed.pod.pod

    def held() -> list[int]:
        (shard,) = pod.shards
        in_use = shard.pool.get_size() - shard.pool.get_idle_size()
        return [len(pod.streams), len(shard.relays._relays), pod.subscriber_limits.subscribers, in_use]

    await until(lambda: not any(held()))


def with_alternatives(described: dict[str, Any]) -> tuple[dict[str, Any], Callable[[str, str, str, bytes], None]]:
    """Put the answers of further forms among the others, and take the types of events out, which are no bodies'.

    Return what holds the data of each event to those types, too.
    """
    described = copy.deepcopy(described)
    validators: dict[tuple[str, str, str], Any] = {}
    for path, item in described["paths"].items():
        for method, operation in item.items():
            responses = operation["responses"]
            for alternative in operation.pop(ALTERNATIVES, []):
                for status, response in alternative["responses"].items():
                    content = _either(responses.get(status, {}).get("content", {}), response.get("content", {}))
                    responses[status] = response | responses.get(status, {}) | ({"content": content} if content else {})
            for status, response in responses.items():
                if schema := response.get("content", {}).get(EVENTS, {}).pop("schema", None):
                    whole = schema | {"components": described["components"]}
                    validators[method.upper(), path, status] = Draft202012Validator(whole)

    def judge(method: str, path: str, status: str, body: bytes) -> None:
        for block in body.decode().split("\n\n"):
            data = [line.removeprefix("data: ") for line in block.split("\n") if line.startswith("data: ")]
            if data and data != ["[DONE]"]:
                validators[method, path, status].validate(orjson.loads("\n".join(data)))

    return described, judge


def _either(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The types of bodies of both; of a media type that both have, either."""
    both = {
        media: {"schema": {"anyOf": [one[media]["schema"], other[media]["schema"]]}} for media in one.keys() & other
    }
    return one | other | both


def dumps(content: Any) -> bytes:
    """As JSON that may have what orjson refuses to write: escaped lone surrogates, and NaN."""
    return json.dumps(content).encode()


METHODS = st.sampled_from(["GET", "GET", "GET", "POST", "POST", "HEAD", "OPTIONS", "DELETE", "PUT", "PATCH", "TRACE"])
NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20).map(str), st.floats().map(str), st.sampled_from(["1e999", "-0", "0x1", "1_0", "٣"])
)
TOKENS = st.sampled_from(
    [
        *(
            "%00",
            "%0a",
            "%0d%0aX:%20y",
            "%1b[31m",
            "%ff",
            "%ed%a0%80",
            "%e2%80%a8",
            "..",
            "%2e%2e",
            "%2f",
            "run_",
            "resp_",
        ),
        *("true", "null", "stream", "events", "replay", "c", "a" * 3000),
    ]
)
# Paths that no route has, now and then.
STRAY = st.lists(TOKENS, max_size=4).map(lambda parts: "/" + "/".join(parts))
NAMES = st.sampled_from(
    [
        *(
            "wait",
            "limit",
            "before",
            "status",
            "metadata.chat",
            "metadata[chat]",
            "metadata.",
            "metadata",
            "view",
            "batch_window_ms",
            "snapshot",
        ),
        *("last_event_id", "lastEventId", "startIndex", "stream", "starting_after", "after", "order", "token", ""),
        *("offset", "live", "cursor", "replay", "stream_mode", "cancel_on_disconnect", "action", "chatId"),
    ]
)
TEXTS = st.text(max_size=30).map(lambda text: quote(text, safe=""))
# A client that waits is no use here.
WORDS = st.sampled_from(["answer", "asc", "queued", "completed", "-1", "now", "sse", "long-poll"])
VALUES = st.one_of(TEXTS, NUMBERS.map(quote), TOKENS, WORDS)
QUERIES = st.lists(st.builds(lambda name, value: f"{name}={value}", NAMES, VALUES), max_size=4).map("&".join)
FIELD = st.binary(max_size=40).map(lambda value: re.sub(rb"[\x00-\x08\x0a-\x1f\x7f]", b"", value).strip(b" \t"))
HEADERS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(
                [
                    *(b"last-event-id", b"idempotency-key", b"accept", b"content-type", b"x-request-id", b"origin"),
                    *(
                        b"authorization",
                        b"cookie",
                        b"x-forwarded-for",
                        b"x-forwarded-proto",
                        b"access-control-request-method",
                    ),
                ]
            ),
            st.one_of(
                FIELD,
                NUMBERS.map(lambda number: number.encode()),
                st.sampled_from(
                    [
                        *(
                            b"text/event-stream",
                            b"text/plain",
                            b"application/problem+json",
                            b"*/*;q=0",
                            b"Bearer x",
                            b"null",
                        ),
                        *(b"for=1.2.3.4, x", b"https://evil.example", b"a=b; a=c", b"1" * 5000),
                    ]
                ),
            ),
        ),
        st.tuples(st.from_regex(rb"\Ax-[a-z0-9!#$%&'*+.^_`|~-]{1,30}\Z"), FIELD),
    ),
    max_size=5,
)
JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=()), max_size=20),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=5,
)
MESSAGES = st.lists(
    st.one_of(
        JSON,
        st.fixed_dictionaries(
            {"role": st.sampled_from(["user", "system", "assistant", "tool"])},
            optional={
                "content": st.one_of(st.text(max_size=20), JSON),
                "parts": st.one_of(JSON, st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": st.text()}))),
                "tool_calls": JSON,
            },
        ),
    ),
    max_size=3,
)
REQUESTS = st.fixed_dictionaries(
    {},
    optional={
        "input": st.one_of(JSON, st.text(max_size=20), MESSAGES),
        "messages": MESSAGES,
        "generator": st.one_of(st.sampled_from(["replay", "echo"]), JSON),
        "model": st.one_of(st.sampled_from(["replay", "echo"]), JSON),
        "metadata": st.one_of(JSON, st.dictionaries(st.text(max_size=8), JSON, max_size=3)),
        "stream": st.one_of(st.booleans(), JSON),
        "background": st.one_of(st.booleans(), JSON),
        "id": st.one_of(st.text(max_size=20), JSON),
        "n": JSON,
        "assistant_id": st.one_of(st.sampled_from(["replay", "echo"]), JSON),
        "command": st.one_of(JSON, st.fixed_dictionaries({"resume": JSON})),
        "stream_mode": st.one_of(st.sampled_from(["values", "messages-tuple"]), JSON),
        "threadId": st.one_of(st.text(max_size=8), JSON),
        "runId": st.one_of(st.text(max_size=8), JSON),
        "resume": JSON,
        "stream_options": JSON,
        "on_worker_lost": st.sampled_from(["continue", "retry", "fail", 1]),
        "max_duration_seconds": st.one_of(st.floats(), JSON),
        "idle_timeout_seconds": JSON,
        "cancel_when_unwatched_seconds": JSON,
    },
)
BODIES = st.one_of(
    st.just(b""),
    st.binary(max_size=60),
    JSON.map(dumps),
    REQUESTS.map(dumps),
    REQUESTS.map(dumps),
    REQUESTS.map(dumps),
)
