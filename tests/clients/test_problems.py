"""What pages of the AI SDK can tell their users of errors, by the code in the documentation."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from bench.packages import INSTALL_SECONDS
from tests.clients.node import Node
from tests.support.cluster import Cluster

from baton.errors import GENERATOR_FAULT, GenerationError
from baton.generators import GenerationRequest
from baton.generators.protocol import Yielded

pytestmark = pytest.mark.timeout(INSTALL_SECONDS + 60)


async def tired(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield "Hm"
    raise GenerationError("tired", "The model is tired.")


async def faulty(_request: GenerationRequest) -> AsyncGenerator[Yielded, None]:
    yield "Hm"
    raise RuntimeError("secret")


@pytest.mark.parametrize("version", ["5", "6", "7"])
async def test_a_page_reads_a_code_and_a_message_from_each_error(cluster: Cluster, node: Node, version: str) -> None:
    pod = await cluster.pod(max_input_bytes=2000)
    await cluster.worker({"replay": tired, "tired": tired, "faulty": faulty})
    cases: list[dict[str, Any]] = [
        {"model": "tired"},
        {"model": "faulty"},
        {"model": "nosuch"},
        {"model": "tired", "body": {"picture": "x" * 3000}},
    ]
    if version == "7":
        cases.append({"model": "nosuch", "workflow": True})
    api = f"{pod.url}/v1/ai-sdk/chat"
    async with node.running("problems.mjs", version, api, json.dumps(cases), url=pod.url) as script:
        said = await script.rest()
    found = [(each["code"], each["text"]) for each in said]
    unknown = ("unknown_generator", "There is no generator called 'nosuch'.")
    assert found[:3] == [("tired", "The model is tired."), ("generator_error", GENERATOR_FAULT), unknown]
    assert found[3][0] == "input_too_large"
    assert found[3][1].startswith("The conversation is larger than 2000 bytes and cannot be sent.")
    assert found[4:] == [unknown] * (version == "7")
    assert said[0]["metadata"]["error"] == {"code": "tired", "message": "The model is tired."}
    assert said[0]["metadata"]["status"] == "failed"
