"""The log of a pod that is asked by somebody hostile: one line for each record."""

from __future__ import annotations

import json

import httpx2
from tests.support.log_record import PARENT, one_harmless_line
from tests.support.logbook import connected
from tests.support.processes import SERVES, environment, running


async def test_a_hostile_request_is_one_line_in_the_log_of_a_pod(dsn: str) -> None:
    given = {"BATON_DATABASE_URL": dsn, "BATON_ALLOW_ANONYMOUS": "true", "BATON_DATABASE_TIMEOUT_SECONDS": "1"}
    async with running("serve", env=environment(BATON_PORT="0", **given)) as pod, connected(dsn) as connection:
        url = (await pod.said(SERVES))[2]
        async with connection.transaction(), httpx2.AsyncClient(timeout=20, trust_env=False) as client:
            await connection.execute("LOCK TABLE baton.stream IN ACCESS EXCLUSIVE MODE")
            path = "/v1/ai-sdk/chat/a%0A%E2%80%A8forged%1B%5B31m/stream"
            known = {"x-request-id": "hostile", "traceparent": str(PARENT)}
            answer = await client.get(url + path, headers=known)
            assert answer.status_code == 503
        read = json.loads((await pod.said("forged")).string)
        assert read["message"].startswith(
            "GET /v1/ai-sdk/chat/a\n\u2028forged\x1b[31m/stream: the database does not answer"
        )
        assert (read["severity"], read["request_id"], read["trace_id"]) == ("WARNING", "hostile", PARENT.trace_id)
        assert read["pod"] == answer.headers["x-baton-pod"]
        assert all(one_harmless_line(line) for line in pod.lines)
