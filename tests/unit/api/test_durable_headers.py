"""The headers of writing requests of the Durable Streams protocol."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.api import durable_headers as headers
from baton.db.external_appends import ProducerClaim
from baton.errors import InvalidRequest

LATIN = st.text(st.characters(max_codepoint=255), max_size=40)


def test_a_lifetime_is_seconds_or_a_time() -> None:
    assert headers.lifetime(None, None) == (None, None)
    assert headers.lifetime("0", None) == (0, None)
    assert headers.lifetime("3600", None) == (3600, None)
    noon = datetime(2030, 1, 31, 12, tzinfo=UTC)
    for text in ("2030-01-31T12:00:00Z", "2030-01-31t12:00:00.000z", "2030-01-31T14:00:00+02:00"):
        assert headers.lifetime(None, text) == (None, noon)
    with pytest.raises(InvalidRequest, match="not both"):
        headers.lifetime("1", "2030-01-31T12:00:00Z")


@pytest.mark.parametrize("raw", ["", "-1", "+60", "00060", "60.5", "1e3", " 60", "abc", "٣", "9" * 10, "9" * 400])
def test_a_ttl_is_a_strict_number(raw: str) -> None:
    with pytest.raises(InvalidRequest, match="Stream-TTL"):
        headers.lifetime(raw, None)


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "not-a-timestamp",
        "2030-01-31",
        "2030-01-31T12:00:00",
        "2030-02-31T12:00:00Z",
        "2030-01-31T25:00:00Z",
        "2030-01-31T12:00:00+99:00",
        "0001-01-01T00:00:00+14:00",
        "20300131T120000Z",
        "2030-W05-4T12:00:00Z",
    ],
)
def test_a_time_is_as_in_rfc_3339(raw: str) -> None:
    with pytest.raises(InvalidRequest, match="Stream-Expires-At"):
        headers.lifetime(None, raw)


def test_a_producer_has_three_headers_or_none() -> None:
    assert headers.claim(None, None, None) is None
    assert headers.claim("p", "0", "7") == ProducerClaim("p", 0, 7)
    assert headers.claim("p", str(2**53 - 1), "0") == ProducerClaim("p", 2**53 - 1, 0)
    for given_ in (("p", None, None), (None, "0", None), (None, None, "0"), ("p", "0", None), (None, "0", "0")):
        with pytest.raises(InvalidRequest, match="together"):
            headers.claim(*given_)


@pytest.mark.parametrize("raw", ["", "-1", "+1", "1abc", "0x1", "1e3", "1.0", " 1", "²", "٣", str(2**53), "9" * 400])
def test_the_numbers_of_a_producer_are_strict(raw: str) -> None:
    with pytest.raises(InvalidRequest, match="Producer-Epoch"):
        headers.claim("p", raw, "0")
    with pytest.raises(InvalidRequest, match="Producer-Seq"):
        headers.claim("p", "0", raw)


def test_names_are_neither_empty_nor_long() -> None:
    for name in ("", "x" * 256):
        with pytest.raises(InvalidRequest, match="Producer-Id"):
            headers.claim(name, "0", "0")
        with pytest.raises(InvalidRequest, match="Stream-Seq"):
            headers.stream_seq(name)
    assert headers.stream_seq(None) is None
    assert headers.stream_seq("é") == "é"


def test_only_true_closes() -> None:
    assert all(map(headers.closes, ("true", "True", " true ")))
    assert not any(map(headers.closes, (None, "", "false", "1", "yes", "true, true")))


@given(LATIN, LATIN, LATIN)
def test_any_header_is_read_or_refused(one: str, two: str, three: str) -> None:
    with contextlib.suppress(InvalidRequest):
        headers.claim(one, two, three)
    with contextlib.suppress(InvalidRequest):
        headers.lifetime(one, None)
    with contextlib.suppress(InvalidRequest):
        headers.lifetime(None, three)
