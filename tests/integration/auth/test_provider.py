"""Tokens of an identity provider at a pod: what their owners may do."""

from __future__ import annotations

from tests.support.access import SECRETS, bearer, make_key, signed
from tests.support.cluster import Cluster
from tests.support.identity_provider import NOW, reply, settings, token
from tests.support.provider_server import ProviderServer, Reply


async def test_while_the_provider_is_down_a_pod_starts_and_accepts_keys(cluster: Cluster) -> None:
    _, text = await make_key(cluster)
    async with ProviderServer(Reply(status=500)) as server:
        pod = await cluster.pod(allow_anonymous=False, **settings(server.url))
        answer = await cluster.client.get(f"{pod.url}/v1/streams", headers=bearer(text))
        assert answer.status_code == 200
        refused = await cluster.client.get(f"{pod.url}/v1/streams", headers=bearer(token()))
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        author = await cluster.author()
        url = f"{pod.url}/v1/streams/{author.id}/events"
        assert (await cluster.client.get(url, headers=bearer(token()))).status_code == 200


async def test_users_create_and_follow_streams_of_their_tenant(cluster: Cluster) -> None:
    async with ProviderServer(reply()) as server:
        pod = await cluster.pod(allow_anonymous=False, token_keys=f"new={SECRETS['new']}", **settings(server.url))
        user = bearer(token(scope="create read cancel"))
        created = await cluster.client.post(f"{pod.url}/v1/streams", json={"input": 1}, headers=user)
        assert created.status_code == 201, created.text
        url = f"{pod.url}/v1/streams/{created.json()['id']}"
        ways: list[tuple[dict[str, str], str, int]] = [
            (user, "", 200),
            ({"cookie": f"baton_token={token()}"}, "", 200),
            ({}, f"?token={token()}", 401),
            (bearer(token(tenant="other")), "", 404),
            (bearer(token(scope="openid")), "", 403),
            (bearer(created.json()["token"]), "", 200),
            (bearer(signed(created.json()["id"])), "", 200),
        ]
        for headers, query, status in ways:
            assert (await cluster.client.get(url + query, headers=headers)).status_code == status, (headers, query)


async def test_the_longest_life_of_its_tokens_is_a_setting(cluster: Cluster) -> None:
    async with ProviderServer(reply()) as server:
        for seconds, status in ((None, 200), (600, 401)):
            pod = await cluster.pod(allow_anonymous=False, jwt_max_lifetime_seconds=seconds, **settings(server.url))
            long = bearer(token(iat=NOW, exp=NOW + 86_400 if seconds is None else NOW + 601))
            assert (await cluster.client.get(f"{pod.url}/v1/streams", headers=long)).status_code == status
