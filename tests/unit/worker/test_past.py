"""What earlier runs left of a stream."""

from __future__ import annotations

from baton.generators import SoFar
from baton.worker.past import Past


def test_the_size_of_what_is_continued_is_in_bytes() -> None:
    assert Past(0, ['{"type":"text","delta":"\u00e9"}'], SoFar()).size_bytes == 28
