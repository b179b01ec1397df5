"""Encodings that subscribers share: a relay keeps few of them."""

from __future__ import annotations

from tests.support.cluster import Cluster, text
from tests.support.wire import Counting

from baton.dialects.native import START
from baton.dialects.protocol import Reader
from baton.pod.relay import ENCODED_BATCHES_KEPT


async def test_a_relay_keeps_the_encodings_of_its_newest_batches_only(cluster: Cluster) -> None:
    pod, author = await cluster.pod(), await cluster.author()
    relays, dialect = pod.shard.relays, Counting()
    subscriber = await relays.subscribe(author.id, 0)
    reader = Reader(dialect, START, 0)
    for number in range(3 * ENCODED_BATCHES_KEPT):
        await author.write(text(number))
        await subscriber.wait()
        reader.read(await subscriber.take())
    window = subscriber.relay.window_after(0)
    assert window is not None
    assert sum(batch.encodings is not None for batch in window) == ENCODED_BATCHES_KEPT
    # Who comes from its beginning gets the same all the same.
    assert Reader(dialect, START, 0).read(window) == b"".join(author.frames)
    assert sum(batch.encodings is not None for batch in window) == ENCODED_BATCHES_KEPT
    relays.unsubscribe(subscriber)
