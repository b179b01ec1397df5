"""Signals, in a process where a mounted pod handles them before the server does."""

from __future__ import annotations

import pytest
from tests.support.cluster import Cluster
from tests.support.follower import following

from baton.app import create_app

pytestmark = pytest.mark.usefixtures("signal_handlers")


async def test_an_application_can_leave_without_a_signal(cluster: Cluster) -> None:
    pod = await cluster.pod()
    author = await cluster.author()
    await author.write_texts([1])
    app = pod.app
    async with following(cluster.client, pod.url, author.id) as follower:
        await follower.next_event()
        app.leave()  # type: ignore[attr-defined]
        await follower.rest()
        assert follower.comments[-1].startswith(b": baton\nretry: ")
    await app.drain()  # type: ignore[attr-defined]
    assert (await cluster.client.get(f"{pod.url}/readyz")).status_code == 503


async def test_leave_does_nothing_outside_the_lifespan(cluster: Cluster) -> None:
    app = create_app(cluster.settings())
    app.leave()
    await app.drain()
