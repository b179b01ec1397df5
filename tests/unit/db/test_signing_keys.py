"""Signatures of notifications: only what these keys signed, for this channel and history, is genuine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.db import signing_keys
from baton.db.notifications import SIGNATURE_BYTES, committed_at, is_signed, sign, unpack
from baton.db.signing_keys import GREATEST_ID, SigningKeys

HERE = SigningKeys({1: b"a" * 32, 2: b"b" * 32}, "0123abcd/00000001")
CHANNEL = "baton_events"


@given(st.text(), st.from_regex(r"\A[0-9]{13}\Z"))
def test_a_signed_payload_is_genuine_only_on_its_channel(text: str, stamp: str) -> None:
    payload = sign(HERE, CHANNEL, text, stamp)
    assert is_signed(HERE, CHANNEL, payload)
    assert not is_signed(HERE, "baton_kill", payload)
    assert not is_signed(SigningKeys(HERE.secrets, "0123abcd/00000002"), CHANNEL, payload)
    assert not is_signed(SigningKeys({2: b"a" * 32}, HERE.history), CHANNEL, payload)
    assert not is_signed(SigningKeys({1: b"b" * 32}, HERE.history), CHANNEL, payload)
    assert committed_at(payload) == int(stamp) / 1000


@given(st.data())
def test_a_signed_payload_that_was_changed_is_not_genuine(data: st.DataObject) -> None:
    payload = sign(HERE, CHANNEL, data.draw(st.text(max_size=40)), "1764000000125")
    at = data.draw(st.integers(0, len(payload)))
    cut = data.draw(st.integers(at, len(payload)))
    changed = payload[:at] + data.draw(st.text(max_size=5)) + payload[cut:]
    # The key id is not signed: another spelling of the same number changes nothing.
    assert changed.replace("\n#0", "\n#") == payload or not is_signed(HERE, CHANNEL, changed)


@given(st.data())
def test_no_line_of_a_signed_text_can_be_moved_into_the_stamp(data: st.DataObject) -> None:
    lines = data.draw(st.lists(st.text(max_size=5), min_size=2, max_size=4))
    text, _, trailer = sign(HERE, CHANNEL, "\n".join(lines), "1764000000125").rpartition("\n#")
    moved = "\n".join(lines[:1])
    assert not is_signed(HERE, CHANNEL, f"{text[len(moved) + 1 :]}\n#{trailer}\n{moved}")


@given(st.text())
def test_an_unsigned_payload_is_not_genuine(payload: str) -> None:
    assert not is_signed(HERE, CHANNEL, payload)
    assert not is_signed(signing_keys.NONE, CHANNEL, payload)


@pytest.mark.parametrize(
    "signature", ["#2:", "#:x", "#-1:x", "#\u0662:x", "#99999999999999999999:x", "#2", "#2:\u0662", "#"]
)
def test_a_malformed_signature_is_none(signature: str) -> None:
    assert not is_signed(HERE, CHANNEL, f"text\n{signature}\n@1764000000125")


def test_no_signature_is_longer_than_the_reserved_bytes() -> None:
    longest = sign(SigningKeys({GREATEST_ID: b"x" * 32}, "x"), CHANNEL, "", "1")
    assert len(longest.encode()) == SIGNATURE_BYTES + len("\n@1")


def test_a_reader_of_the_previous_release_stops_at_the_signature() -> None:
    payload = sign(HERE, CHANNEL, f"{'0' * 32} 1 2 -", "1764000000125")
    assert [item.last_seq for item in unpack(payload, {"0" * 32})] == [2]
