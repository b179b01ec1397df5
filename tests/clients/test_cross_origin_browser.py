"""A page of another origin in a real browser: it follows a pod that allows it, and gets nothing of any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from tests.clients.test_browser import CHROMIUM, START_SECONDS, browser
from tests.support.cluster import Cluster, echo
from tests.support.logbook import until
from tests.support.serving import served

PAGE = """<!doctype html><script type="module">
async function fetched(pod) {
  const headers = { "Content-Type": "application/json", "Idempotency-Key": "k", "X-Request-Id": "page-1",
                    "X-CSRF-Token": "t", "sentry-trace": "1-1" };
  const body = JSON.stringify({ input: ["a", "b", "c"] });
  const answer = await fetch(pod + "/v1/streams", { method: "POST", headers, body, credentials: "include" });
  const created = await answer.json();
  const events = pod + created.events_url;
  await fetch(pod + answer.headers.get("Location") + "?wait=20");  // event 1 must be there to continue after it
  const streamed = await fetch(events, { headers: { "Last-Event-ID": "1" } });
  const lost = await fetch(pod + "/v1/streams/x", { headers: { Authorization: "Bearer none" } });
  return {
    events,
    requestId: answer.headers.get("X-Request-Id"),
    location: answer.headers.get("Location"),
    streamed: await streamed.text(),
    lost: (await lost.json()).code,
  };
}

function followed(events) {
  return new Promise((resolve, reject) => {
    const source = new EventSource(events, { withCredentials: true });
    let text = "";
    source.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.type === "text") text += event.delta;
      if (event.type === "done") { source.close(); resolve(text); }
    };
    source.onerror = () => { source.close(); reject(new Error("refused")); };
  });
}

async function tried(action) {
  try { return await action(); } catch (error) { return String(error); }
}

const [allowing, refusing, stream] = PODS;
const result = {};
result.allowed = await tried(() => fetched(allowing));
result.followed = await tried(() => followed(result.allowed.events));
result.refused = await tried(() => fetched(refusing));
result.unfollowed = await tried(() => followed(refusing + stream));
result.unread = await tried(async () => (await fetch(refusing + "/healthz")).text());
await fetch("/report", { method: "POST", body: JSON.stringify(result) });
</script>"""


class Site:
    """The page, and what it reports."""

    def __init__(self) -> None:
        self.pods: list[str] = []
        self.report: dict[str, Any] = {}
        self.app = Starlette(routes=[Route("/page", self.page), Route("/report", self.take, methods=["POST"])])

    async def page(self, _request: Request) -> Response:
        return HTMLResponse(PAGE.replace("PODS", json.dumps(self.pods)))

    async def take(self, request: Request) -> Response:
        self.report = await request.json()
        return Response()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: CORS was not tried in a browser")
async def test_a_page_of_an_allowed_origin_follows_a_stream(cluster: Cluster, tmp_path: Path) -> None:
    await cluster.worker({"replay": echo}, flush_interval_milliseconds=5)
    site = Site()
    async with served(site.app) as origin:
        allowing = await cluster.pod(allowed_origins=origin, allowed_headers="x-csrf-token")
        refusing = await cluster.pod(allowed_origins="https://another.example.com")
        stream_id = await cluster.create(refusing, input=["secret"])
        site.pods = [allowing.url, refusing.url, f"/v1/streams/{stream_id}/events"]
        async with browser(tmp_path / "profile", f"{origin}/page"):
            await until(lambda: bool(site.report), START_SECONDS)
    allowed = site.report["allowed"]
    assert isinstance(allowed, dict), allowed
    assert allowed["requestId"] == "page-1"
    assert allowed["location"].startswith("/v1/streams/")
    assert '"delta":"b"' in allowed["streamed"]
    assert '"delta":"a"' not in allowed["streamed"]
    assert allowed["lost"] == "stream_not_found"
    assert site.report["followed"] == "abc"
    assert site.report["refused"] == site.report["unread"] == "TypeError: Failed to fetch"
    assert site.report["unfollowed"] == "Error: refused"
