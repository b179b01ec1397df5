"""Bodies of producers as lines of the log: exact, one line each, or refused by name."""

from __future__ import annotations

import base64
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.api import durable_bodies, json_text
from baton.api.durable_bodies import Messages, messages
from baton.errors import InvalidRequest
from baton.outcome import Outcome

LINE_ENDS = ("\n", "\r", "\x85", "\u2028", "\u2029")
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def decoded(line: bytes) -> bytes:
    content = orjson.loads(line)
    return content.encode() if isinstance(content, str) else base64.b64decode(content["b64"])


@given(st.binary(min_size=1) | st.text(min_size=1).map(str.encode))
def test_text_and_bytes_are_exact(body: bytes) -> None:
    for kind in ("text", "bytes"):
        found = messages(kind, body)
        assert len(found.lines) == 1
        assert len(found.lines[0].decode().splitlines()) == 1
        assert decoded(found.lines[0]) == body


def test_text_with_every_line_end_is_one_line() -> None:
    body = "a".join(LINE_ENDS).encode()
    [line] = messages("text", body).lines
    assert len(line.decode().splitlines()) == 1
    assert orjson.loads(line) == body.decode()


@given(st.lists(VALUES, max_size=6), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_an_array_has_one_message_for_each_element(values: list[Any], indent: Any, ascii_only: bool) -> None:
    body = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    lines = messages("json", body).lines
    assert [json.loads(line) for line in lines] == values
    assert all(len(line.decode().splitlines()) == 1 for line in lines)


@given(VALUES.filter(lambda value: not isinstance(value, list)))
def test_another_value_is_one_message(value: Any) -> None:
    [line] = messages("json", json.dumps(value, indent=1).encode()).lines
    assert json.loads(line) == value


@pytest.mark.parametrize(
    "text",
    ["1.10", "12345678901234567890123", "1E+2", "-0", '"\\u0041"', '{"b":1,"a":2,"b":3}', '"\\ud83d"', "[]", "[[]]"],
)
def test_json_keeps_its_digits_names_and_escapes(text: str) -> None:
    assert messages("json", f"[{text}]".encode()).lines == [text.encode()]


def test_brackets_commas_and_quotes_in_strings_split_nothing() -> None:
    texts = [r'"a,b"', r'"]["', r'"\"],[\""', r'"\\"', '{"x,": [1, [2, "]"]]}', r'"\\\","']
    assert [line.decode() for line in messages("json", f"[{' ,'.join(texts)}]".encode()).lines] == texts


@pytest.mark.parametrize(
    "body", [b" ", b"[1,]", b"[1", b"nope", b"1 2", b"NaN", b"\xff", b'"\n"', b"\xef\xbb\xbf1", b"{'a':1}", b"[1][2]"]
)
def test_what_is_not_json_is_refused(body: bytes) -> None:
    for kind in ("json", "events"):
        with pytest.raises(InvalidRequest, match="not JSON"):
            messages(kind, body)


def test_an_empty_array_has_no_messages() -> None:
    assert messages("json", b" [ \n ] ") == Messages([])
    assert messages("events", b"[]") == Messages([])


@given(st.binary(max_size=200) | st.text(st.sampled_from('[]{},:"\\ntu0123 \n'), max_size=60).map(str.encode))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    for kind in ("json", "events"):
        try:
            found = messages(kind, body)
        except InvalidRequest:
            continue
        for line in found.lines:
            orjson.loads(line)


@pytest.mark.timeout(30)  # quadratic work would take hours
@pytest.mark.parametrize(
    ("head", "middle", "tail"),
    [(b'["', b"\\\\", b'"]'), (b'["', b'\\"', b'"]'), (b"[", b"[],", b"0]"), (b"[", b"{},", b"0]")],
    ids=["escaped", "quoted", "arrays", "objects"],
)
def test_hostile_json_takes_linear_time(head: bytes, middle: bytes, tail: bytes) -> None:
    count = 200_000
    assert len(json_text.messages(head + middle * count + tail)) == (1 if head == b'["' else count + 1)


def test_nesting_has_no_limit_of_its_own() -> None:
    deep = b"[" * 500 + b"]" * 500
    assert messages("json", deep).lines == [deep[1:-1]]


def test_events_are_encoded_as_a_generators() -> None:
    body = (
        b'[{"delta":"Hi\xe2\x80\xa8","type":"text"},{"type":"usage","output_tokens":3},{"type":"reasoning","delta":""}]'
    )
    found = messages("events", body)
    assert found.lines == [
        b'{"type":"text","delta":"Hi\\u2028"}',
        b'{"type":"usage","output_tokens":3}',
        b'{"type":"reasoning","delta":""}',
    ]
    assert (found.tokens, found.outcome) == (2, None)
    assert messages("events", b'{"type":"custom","name":"x"}').lines == [b'{"type":"custom","name":"x"}']


def test_the_last_message_can_end_the_stream() -> None:
    text = b'{"type":"text","delta":"x"}'
    assert messages("events", b"[" + text + b',{"type":"finish","finish_reason":"LENGTH"}]') == (
        [text],
        1,
        Outcome.completed("length"),
    )
    assert messages("events", b'{"type":"finish"}') == ([], 0, durable_bodies.CLOSED)
    failed = messages("events", b'{"type":"error","code":"rate_limited","message":"Later."}')
    assert failed == ([], 0, Outcome.failed("rate_limited", "Later."))


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'[{"type":"finish"},{"type":"text","delta":"x"}]', "last"),
        (b'[{"type":"error","code":"c","message":"m"},{"type":"finish"}]', "last"),
        (b'{"type":"finish","finish_reason":1}', "finish_reason"),
        (b'{"type":"error","code":"c"}', "message"),
        (b'{"type":"error","code":1,"message":"m"}', "code"),
        (b'{"type":"error","code":"log_rewound","message":"m"}', "Only Baton itself"),
        (b'{"type":"done","status":"completed"}', "Only Baton itself"),
        (b'{"type":"reset"}', "Only Baton itself"),
        (b'{"type":"resumed"}', "Only Baton itself"),
        (b'{"type":"state","state":1}', "Only Baton itself"),
        (b'{"type":"continue","after":0}', "Only Baton itself"),
        (b'{"type":"text"}', "delta"),
        (b'{"type":"text","delta":1}', "delta"),
        (b'{"type":"tool_call","index":0,"run_by":"x"}', "run_by"),
        (b'{"type":"tool_call","index":0,"run_by":[]}', "run_by"),
        (b'{"type":"tool_call","index":0,"run_by":{}}', "run_by"),
        (b'{"type":"nope"}', "type must be"),
        (b'{"type":["text"]}', "type must be"),
        (b'{"delta":"x"}', "type must be"),
        (b'"text"', "JSON object"),
        (b"[[]]", "JSON object"),
        (b"null", "JSON object"),
        (b'[{"type":"text","delta":"x"},1]', "JSON object"),
        (b'{"type":"usage","output_tokens":-1}', "negative"),
    ],
)
def test_a_message_that_is_no_event_is_refused_by_name(body: bytes, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        messages("events", body)
