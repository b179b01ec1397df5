"""What all dialects share: encodings that are made once, and texts that grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.support.wire import Counting, batches

from baton.dialects.native import START
from baton.dialects.protocol import Chain, Reader


def test_a_batch_is_encoded_once_for_all_clients_that_get_all_of_it() -> None:
    dialect, found = Counting(), batches(["a", "b", "c", "d"], [2])
    bodies = {Reader(dialect, START, 0).read(found) for _ in range(5)}
    assert (len(bodies), dialect.encoded) == (1, 2)
    # One who comes back into the middle of a batch has this one made for itself, and shares the rest.
    (whole,) = bodies
    assert whole.endswith(Reader(dialect, START, 1).read(found))
    assert dialect.encoded == 3


@given(st.lists(st.text(max_size=3)))
def test_a_chain_holds_the_text_so_far_at_each_link(parts: list[str]) -> None:
    chains = [Chain()]
    for part in parts:
        chains.append(chains[-1].plus(part))
    assert [str(chain) for chain in chains] == ["".join(parts[:count]) for count in range(len(parts) + 1)]
