"""The console's page, and what it asks for: the database's numbers, and of no other tenant."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from starlette.routing import Route
from tests.support.access import TENANT, bearer, guarded_pod, make_key
from tests.support.cluster import Cluster, RunningPod, Tap, echo
from tests.support.follower import following
from tests.support.logbook import until

from baton import api
from baton.db import stream_creation, stream_ending, stream_lists
from baton.db.stream_creation import NewStream
from baton.errors import GenerationError
from baton.generators import GenerationRequest

QUICK = {"pod_heartbeat_seconds": 0.05}


async def get(cluster: Cluster, pod: RunningPod, path: str, **query: Any) -> Any:
    answer = await cluster.client.get(f"{pod.url}/console/{path}", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def fails(request: GenerationRequest, /) -> Any:
    yield "so far"
    raise GenerationError(str(request.input), "No more of it.")


async def test_pods_and_workers_match_the_database(cluster: Cluster) -> None:
    pod = await cluster.pod(pod_name="here", **QUICK)
    other = await cluster.pod(pod_name="there", **QUICK)
    worker = await cluster.worker({"replay": echo}, worker_name="w", worker_concurrency=7)
    await cluster.create(pod, generator="replay", input=["a"])
    await until(lambda: bool(pod.shard.sampler.points and other.shard.sampler.points))
    content = await get(cluster, pod, "overview")
    assert (content["pod"], content["anonymous"], content["tenant"]) == ("here", True, "")
    assert content["scopes"] == ["admin", "cancel", "create", "input", "produce", "read"]
    assert [(item["id"], item["name"], item["alive"]) for item in content["pods"]] == [
        (str(running.pod.id), running.name, True) for running in (pod, other)
    ]
    (found,) = content["workers"]
    row = await cluster.pool.fetchrow("SELECT id, name, concurrency, started_at FROM baton.worker")
    assert row is not None
    assert (found["id"], found["name"], found["concurrency"]) == (str(row["id"]), "w", 7)
    assert datetime.fromisoformat(found["started_at"]) == row["started_at"]
    assert worker.metrics.concurrency == found["concurrency"]
    assert [item for item in content["points"] if not item["seconds"] > 0] == []
    newest = content["points"][-1]["at"]
    later = await get(cluster, pod, "overview", since=newest)
    assert all(item["at"] > newest for item in later["points"])


async def test_a_silent_process_is_not_alive(cluster: Cluster) -> None:
    pod = await cluster.pod(**QUICK)
    await cluster.pool.execute(
        "INSERT INTO baton.pod (id, name, version, noted_at, state, listener, subscribers, connections, deliveries, "
        "watched, viewers) VALUES (gen_random_uuid(), 'dead', '1', clock_timestamp() - interval '1 min', 'ready', "
        "'listening', 5, 5, '{}', '{}', '{}')"
    )
    await cluster.pool.execute(
        "INSERT INTO baton.worker (name, generators, concurrency, heartbeat_at) "
        "VALUES ('silent', '{}', 1, clock_timestamp() - interval '1 min')"
    )
    content = await get(cluster, pod, "overview")
    assert {item["name"]: item["alive"] for item in content["pods"] if item["name"] == "dead"} == {"dead": False}
    assert [(item["alive"], item["silent_seconds"] >= 60) for item in content["workers"]] == [(False, True)]


async def test_the_numbers_of_streams_match_the_database(cluster: Cluster) -> None:
    pod = await cluster.pod(**QUICK)
    tap = Tap()
    await cluster.worker({"tap": tap, "replay": echo, "fails": fails})
    live = await cluster.create(pod, generator="tap")
    for generator, given in (("replay", ["a", "b"]), ("fails", "generator_error"), ("fails", "own_code")):
        stream_id = await cluster.create(pod, generator=generator, input=given)
        await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
    queued, _ = await stream_creation.create(cluster.pool, NewStream("nobody", None, {}, "fail"))
    async with following(cluster.client, pod.url, live) as here, following(cluster.client, pod.url, live):
        tap.let("one", "two")
        for _ in range(2):
            await here.next_event()

        async def shown() -> bool:
            content = await get(cluster, pod, "streams", id=live)
            return bool(content["data"][0]["viewers"] == 2)

        await until(shown)
        page = await get(cluster, pod, "streams")
        counts = (await get(cluster, pod, "overview"))["live"]
        tap.end()
    assert (counts["queued"], counts["running"]) == (1, 1)
    assert page["next"] is None
    rows = await cluster.pool.fetch("SELECT * FROM baton.stream ORDER BY id DESC")
    assert [item["id"] for item in page["data"]] == [str(row["id"]) for row in rows]
    for item, row in zip(page["data"], rows, strict=True):
        tail = await cluster.pool.fetchval("SELECT max(last_seq) FROM baton.batch WHERE stream_id = $1", row["id"])
        if item["id"] == live:
            assert (item["status"], item["events"], item["viewers"]) == ("running", 2, 2)
            continue
        assert (item["status"], item["events"], item["viewers"]) == (row["status"], tail or 0, 0)
        assert datetime.fromisoformat(item["created_at"]) == row["created_at"]
        if row["duration_seconds"] is not None:
            timings = item["timings"]
            assert timings["tokens"] == row["tokens"]
            assert timings["duration_seconds"] == pytest.approx(row["duration_seconds"], abs=1e-6)
            assert timings["time_to_first_token_seconds"] == pytest.approx(row["time_to_first_token_seconds"], abs=1e-6)
        assert (item["error"] or {}).get("code") == row["error_code"]
    errors = {item["error"]["code"]: item["error"] for item in page["data"] if item["error"]}
    assert errors["generator_error"]["doc_url"] == "/errors#generator_error"
    assert errors["own_code"] == {"code": "own_code", "message": "No more of it.", "doc_url": None}
    assert page["data"][0]["id"] == str(queued.id)


async def test_the_first_token_of_a_stream_is_shown_while_it_runs(cluster: Cluster) -> None:
    pod = await cluster.pod()
    tap = Tap()
    await cluster.worker({"tap": tap}, worker_heartbeat_seconds=0.05)
    stream_id = await cluster.create(pod, generator="tap")

    async def row() -> Any:
        return (await get(cluster, pod, "streams", id=stream_id))["data"][0]

    async def has_first() -> bool:
        return (await row())["time_to_first_token_seconds"] is not None

    await tap.started.wait()
    assert not await has_first()
    tap.let("one")
    await until(has_first)
    live = await row()
    assert (live["status"], live["timings"]) == ("running", None)
    tap.end()
    await cluster.client.get(f"{pod.url}/v1/streams/{stream_id}?wait=20")
    row_at_end = await cluster.pool.fetchrow("SELECT time_to_first_token_seconds AS first FROM baton.stream")
    assert row_at_end is not None
    assert row_at_end["first"] == live["time_to_first_token_seconds"]


async def test_streams_are_found_by_state_and_id_prefix(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    pod = await cluster.pod()
    # In the order of their ids, which those of one millisecond do not have from the beginning.
    made = sorted(
        [(await stream_creation.create(cluster.pool, NewStream("nobody", None, {}, "fail")))[0].id for _ in range(60)]
    )
    for stream_id in made[:3]:
        assert await stream_ending.end_any(cluster.pool, stream_id, stream_ending.QUEUE_TIMEOUT)
    newest = [str(item) for item in reversed(made)]

    async def ids(**query: Any) -> list[str]:
        return [item["id"] for item in (await get(cluster, pod, "streams", **query))["data"]]

    first = await get(cluster, pod, "streams")
    assert [item["id"] for item in first["data"]] == newest[:50]
    assert await ids(before=first["next"]) == newest[50:]
    assert await ids(id=newest[7]) == [newest[7]]
    assert await ids(id=newest[7][:-1].replace("-", "").upper()) == [newest[7]]
    assert await ids(id="ffff") == []
    assert await ids(status="failed") == newest[-3:]
    assert await ids(status="live") == newest[:50]
    assert await ids(status="running") == []
    # However rare it is, no more are looked at than that; then it tells where to go on.
    monkeypatch.setattr(stream_lists, "MAX_SCANNED", 58)
    short = await get(cluster, pod, "streams", status="failed", id="0")
    assert [item["id"] for item in short["data"]] == newest[-3:-2]
    assert await ids(status="failed", before=short["next"]) == newest[-2:]


async def test_an_invalid_query_is_refused(cluster: Cluster) -> None:
    pod = await cluster.pod()
    for query in ({"id": "x"}, {"id": "0" * 37}, {"status": "dead"}, {"before": "1"}, {"limit": "9"}):
        answer = await cluster.client.get(f"{pod.url}/console/streams", params=query)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), query


async def test_a_key_sees_the_streams_of_its_own_tenant_and_no_conversation(cluster: Cluster) -> None:
    _, admin = await make_key(cluster, "admin")
    pod = await guarded_pod(cluster, **QUICK)
    own, _ = await stream_creation.create(
        cluster.pool, NewStream("nobody", "secret", {"chat": "secret"}, "fail", tenant=TENANT)
    )
    await stream_creation.create(cluster.pool, NewStream("nobody", "theirs", {}, "fail", tenant="other"))
    answer = await cluster.client.get(f"{pod.url}/console/streams", headers=bearer(admin))
    assert [item["id"] for item in answer.json()["data"]] == [str(own.id)]
    assert "secret" not in answer.text
    content = (await cluster.client.get(f"{pod.url}/console/overview", headers=bearer(admin))).json()
    assert (content["tenant"], content["scopes"], content["anonymous"]) == (TENANT, ["admin"], False)
    assert content["live"]["queued"] == 1
    # What is not told by tenant is what /metrics tells, too.
    assert content["queue"]["streams"] == 2


async def test_browsers_cache_the_page_and_revalidate_it(cluster: Cluster) -> None:
    pod = await cluster.pod()
    kinds = {"console": "text/html", "assets/console.js": "text/javascript", "assets/baton.css": "text/css"}
    for path, kind in kinds.items():
        answer = await cluster.client.get(f"{pod.url}/{path}")
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert answer.headers["cache-control"] == "no-cache"
        known = {"if-none-match": f'"x", W/{answer.headers["etag"]}'}
        again = await cluster.client.get(f"{pod.url}/{path}", headers=known)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", answer.headers["etag"])
    policy = (await cluster.client.get(f"{pod.url}/console")).headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy


async def test_each_file_of_a_page_exists_and_nothing_is_inline(cluster: Cluster) -> None:
    pod = await cluster.pod(demo=True)
    for page in ("console", "demo"):
        html = (await cluster.client.get(f"{pod.url}/{page}")).text
        named = [part.partition('"')[0] for part in html.replace('href="', 'src="').split('src="')[1:]]
        files = [name for name in named if "." in name]
        assert len(files) == 3
        for name in files:
            assert (await cluster.client.get(f"{pod.url}/{name}")).status_code == 200, name
        assert "http" not in html.replace("http-equiv", "")
        for inline in ("<style", " style=", " onclick", "javascript:"):
            assert inline not in html
        assert html.count("<script") == html.count('<script type="module" src=')


async def test_no_other_file_is_served(cluster: Cluster) -> None:
    pod = await cluster.pod()
    for name in ("demo.js", "console.html", "..%2f__init__.py", "%2e%2e", "x.js"):
        answer = await cluster.client.get(f"{pod.url}/assets/{name}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), name


async def test_the_demo_page_exists_in_demo_mode_only(cluster: Cluster) -> None:
    pod, playing = await cluster.pod(), await cluster.pod(demo=True)
    for route in api.DEMO_ROUTES:
        assert isinstance(route, Route)
        method = "POST" if "POST" in (route.methods or ()) else "GET"
        path = route.path.replace("{name}", "demo.js").replace("{id}", str(UUID(int=7)))
        absent = await cluster.client.request(method, pod.url + path)
        assert (absent.status_code, absent.json()["code"]) == (404, "not_found"), path
        present = await cluster.client.request(method, playing.url + path)
        assert present.status_code == (403 if method == "POST" else 200)


@pytest.mark.parametrize("role", ["pod", "worker"])
async def test_only_the_demos_own_page_can_kill(cluster: Cluster, role: str) -> None:
    pod, nobody = await cluster.pod(demo=True), {"role": role, "name": "nobody"}
    host = pod.url.removeprefix("http://")
    rebound = f"evil.example:{host.rpartition(':')[2]}"
    for headers in (
        {},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": f"https://{host}"},
        {"origin": f"http://{rebound}", "host": rebound},
    ):
        answer = await cluster.client.post(f"{pod.url}/demo/kill", json=nobody, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), headers
    # None has this name: a real one dies in the test with a browser.
    answer = await cluster.client.post(f"{pod.url}/demo/kill", json=nobody, headers={"origin": pod.url})
    assert answer.status_code == 202


async def test_the_demo_names_the_worker_that_writes_a_stream(cluster: Cluster) -> None:
    pod, tap = await cluster.pod(demo=True), Tap()
    await cluster.worker({"replay": tap}, worker_name="worker-a")
    stream_id = await cluster.create(pod)

    async def writer() -> object:
        return (await cluster.client.get(f"{pod.url}/demo/streams/{stream_id}")).json()["worker"]

    async def is_named() -> bool:
        return await writer() == "worker-a"

    async def is_nobody() -> bool:
        return await writer() is None

    await until(is_named)
    tap.end()
    await until(is_nobody)
