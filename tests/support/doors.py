"""The doors of other protocols: how a client of each creates an answer, and how it returns to one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

Json = dict[str, Any]

THREAD: Final = "c"


@dataclass(frozen=True, slots=True)
class Door:
    """A way in. `body` has `{name}` for the generator, which `creating` fills in; `follow` is for an existing stream.

    `failed` is what a client takes for an error. It takes any other clean end for the end of the answer.
    """

    path: str
    body: Json
    follow: tuple[str, str] | None
    failed: bytes

    def creating(self, name: str = "replay", said: str = "?") -> tuple[str, Json]:
        """Return the path and the body that create an answer."""
        return self.path.replace("{name}", name), _filled(self.body, {"{name}": name, "{said}": said})

    def following(self, stream_id: UUID) -> tuple[str, str]:
        """Return the method and the path that follow a stream of the thread `THREAD`."""
        assert self.follow is not None
        method, path = self.follow
        return method, path.format(id=stream_id, hex=stream_id.hex)

    def shows(self, body: bytes, *, clean: bool) -> str:
        """Return what a client makes of a connection that has ended."""
        if re.search(self.failed, body):
            return "failed"
        return "complete" if clean else "cut"


def _filled(value: Any, given: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(item, given) for name, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, given) for item in value]
    return given.get(value, value) if isinstance(value, str) else value


_SAID: Final = [{"role": "user", "content": "{said}"}]
_GRAPH: Final = "/v1/langgraph"
_RUN: Final = {"assistant_id": "{name}", "input": {"messages": _SAID}, "stream_mode": ["messages-tuple", "values"]}
_AG_UI: Final = {"threadId": THREAD, "runId": "r", "messages": [{"id": "m", "role": "user", "content": "{said}"}]}

DOORS: Final[dict[str, Door]] = {
    "anthropic": Door(
        "/v1/messages",
        {"model": "{name}", "max_tokens": 9, "messages": _SAID, "stream": True},
        None,
        rb"event: error\n",
    ),
    "langgraph": Door(
        f"{_GRAPH}/threads/{THREAD}/runs/stream",
        _RUN,
        ("GET", f"{_GRAPH}/threads/{THREAD}/runs/{{id}}/stream?stream_mode=messages-tuple"),
        rb"event: error\n",
    ),
    "langgraph.result": Door(
        f"{_GRAPH}/threads/{THREAD}/runs/wait",
        _RUN,
        ("GET", f"{_GRAPH}/threads/{THREAD}/runs/{{id}}/join"),
        rb'"__error__"',
    ),
    "agui": Door(
        "/v1/ag-ui/{name}", _AG_UI, ("POST", "/v1/ag-ui/replay/runs/run_{hex}/connect"), rb'"type":"RUN_ERROR"'
    ),
    **{
        f"aisdk.{version}": Door(
            f"/v1/ai-sdk/{version}/chat",
            {"id": THREAD, "model": "{name}", "messages": _SAID},
            ("GET", f"/v1/ai-sdk/{version}/chat?chatId={THREAD}"),
            rb"(?m)^3:",
        )
        for version in ("v3", "v4")
    },
}
