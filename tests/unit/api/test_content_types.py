"""Content types: which are equal, which are refused, and what each makes of a stream."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.api import content_types
from baton.errors import InvalidRequest

EVENTS = 'application/json; profile="urn:baton:events"'


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (EVENTS, "events"),
        ("application/json;profile=urn:baton:events", "events"),
        ("APPLICATION/JSON; Charset=UTF-8; PROFILE=URN:BATON:EVENTS", "events"),
        ("application/json", "json"),
        ("application/json; charset=utf-8", "json"),
        ("application/json; profile=urn:other", "json"),
        ("text/plain", "text"),
        ("text/event-stream; charset=latin1", "text"),
        ("application/octet-stream", "bytes"),
        ("application/x-ndjson", "bytes"),
        ('image/png; profile="urn:baton:events"', "bytes"),
    ],
)
def test_the_content_type_decides_the_kind(raw: str, kind: str) -> None:
    assert content_types.parse(raw).kind == kind


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("text/plain", "TEXT/Plain"),
        ("text/plain", "text/plain; charset=UTF-8"),
        ("text/plain;a=1;b=2", 'text/plain; B="2" ;a=1;'),
        (EVENTS, "application/json;profile=URN:baton:EVENTS"),
    ],
)
def test_case_order_and_quotes_make_no_difference(one: str, other: str) -> None:
    assert content_types.parse(one) == content_types.parse(other)


def test_other_parameters_make_a_difference() -> None:
    assert content_types.parse("text/plain; charset=latin1") != content_types.parse("text/plain")
    assert content_types.parse("image/png; charset=utf-8") != content_types.parse("image/png")


@pytest.mark.parametrize(
    ("stream", "body", "accepted"),
    [
        (EVENTS, EVENTS, True),
        (EVENTS, "application/json", True),
        (EVENTS, "application/json; profile=urn:other", False),
        ("application/json", EVENTS, False),
        ("text/plain", "Text/Plain; charset=utf-8", True),
        ("text/plain", "text/plain; charset=latin1", False),
        ("text/plain", "text/html", False),
    ],
)
def test_a_body_is_of_the_streams_type_or_leaves_out_the_parameters(stream: str, body: str, accepted: bool) -> None:
    assert content_types.parse(stream).accepts(content_types.parse(body)) is accepted


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "text",
        "text/",
        "/plain",
        "text/plain, text/html",
        "text/plain; charset",
        "text/plain; charset=",
        'text/plain; a="1',
        'text/plain; a="1"b',
        'text/plain; a="\n"',
        "text/plain; a=1; A=2",
        "text/plain\r\nx: y",
        "text/plain\n",
        "téxt/plain",
        "text/" + "a" * 300,
    ],
)
def test_what_is_no_content_type_is_refused(raw: str) -> None:
    with pytest.raises(InvalidRequest):
        content_types.parse(raw)


@given(st.text(st.characters(max_codepoint=255), max_size=300))
def test_any_text_is_parsed_or_refused(raw: str) -> None:
    with contextlib.suppress(InvalidRequest):
        content_types.parse(raw)
