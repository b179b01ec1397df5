"""W3C's `traceparent`: what is one, and what is none."""

from __future__ import annotations

import pytest

from baton.observability.traceparent import MAX_CHARACTERS, TraceParent, given, parse

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_a_current_traceparent_is_kept_unchanged(flags: str, sampled: bool) -> None:
    value = f"00-{TRACE}-{SPAN}-{flags}"
    found = parse(value)
    assert found is not None
    assert (found, found.sampled, str(found)) == (TraceParent(TRACE, SPAN, flags), sampled, value)
    assert len(value) == MAX_CHARACTERS


@pytest.mark.parametrize("more", ["", "-what-the-future-brings"])
def test_known_fields_of_a_later_version_are_read(more: str) -> None:
    assert parse(f"cc-{TRACE}-{SPAN}-ff{more}") == TraceParent(TRACE, SPAN, "01")


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        "00",
        f"00-{TRACE}-{SPAN}",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"cc-{TRACE}-{SPAN}-01more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-0x",
        f"00-{TRACE}-{SPAN}-01\n",
        f" 00-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}-{SPAN}-01",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
    ],
)
def test_any_other_traceparent_is_ignored(value: str | None) -> None:
    assert parse(value) is None


def test_two_traceparents_are_ignored() -> None:
    value = f"00-{TRACE}-{SPAN}-01"
    assert given([value]) == parse(value)
    assert given([]) is given([value, value]) is None
