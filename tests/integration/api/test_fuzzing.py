"""No request makes a pod fail, or keeps anything of it for good."""

from __future__ import annotations

import asyncio
import gc
import random

import pytest
from tests.integration.api.fuzzing import all_back, fuzzer
from tests.support.cluster import Cluster

# Hypothesis draws in a thread. Meanwhile the pod, in this process, uses `random`, and Hypothesis blames the strategy.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")


@pytest.mark.slow
async def test_some_requests_of_each_kind(cluster: Cluster) -> None:
    fuzzed = await fuzzer(cluster)
    await asyncio.to_thread(fuzzed.of_the_document, 2, 1)
    await asyncio.to_thread(fuzzed.of_bytes, 80, 1)
    await all_back(fuzzed)
    assert fuzzed.sent > 130


@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_twenty_thousand_requests(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    before = asyncio.all_tasks()
    number = random.randrange(2**32)
    fuzzed = await fuzzer(cluster)
    with capsys.disabled():
        print(f"\nFuzzing with the seed {number} …")  # noqa: T201
        await asyncio.to_thread(fuzzed.of_the_document, 220, number)
        print(f"{fuzzed.sent:,} requests of the document")  # noqa: T201
        while fuzzed.sent < 20_000:
            await asyncio.to_thread(fuzzed.of_bytes, 20_000 - fuzzed.sent, number + fuzzed.sent)
        print(f"{fuzzed.sent:,} requests: {dict(sorted(fuzzed.answers.items()))}")  # noqa: T201
    await all_back(fuzzed)
    await cluster.__aexit__(None, None, None)
    assert asyncio.all_tasks() == before
    gc.collect()
