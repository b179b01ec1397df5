"""Refused appends: the protocol's status and headers of each, and the code that says why a stream has ended."""

from __future__ import annotations

from typing import Any, get_args
from uuid import UUID

import orjson
import pytest

from baton.api import problems
from baton.api.durable_refusals import refusal
from baton.db.external_appends import AppendRequest, ProducerClaim, Refused, RefusedBecause
from baton.errors import RequestError, StreamClosed

STREAM_ID = UUID("01a21dcf-69fe-7719-9df3-338693b9f701")
ASKED = AppendRequest(STREAM_ID, [b"1"], producer=ProducerClaim("p", 1, 7), stream_seq="09")


def shown(error: RequestError) -> dict[str, Any]:
    found: dict[str, Any] = orjson.loads(problems.encoded(error, "/errors"))
    return found


@pytest.mark.parametrize(
    ("because", "status", "headers"),
    [
        ("not_found", 404, {}),
        (
            "closed",
            409,
            {
                "Stream-Closed": "true",
                "Stream-Next-Offset": "01a21dcf69fe_0000000004",
                "Producer-Expected-Seq": "7",
                "Producer-Received-Seq": "7",
            },
        ),
        ("fenced", 403, {"Producer-Epoch": "5"}),
        ("gap", 409, {"Producer-Expected-Seq": "5", "Producer-Received-Seq": "7"}),
        ("epoch_must_begin_at_0", 400, {}),
        ("stream_seq", 409, {}),
        ("too_large", 413, {}),
        ("too_many_producers", 422, {}),
    ],
)
def test_each_refusal_has_its_status_and_headers(because: Any, status: int, headers: dict[str, str]) -> None:
    error = refusal(ASKED, Refused(because, 4, number=5, reason="stop"))
    assert (error.status, error.headers) == (status, headers)
    assert problems.error_headers(error) == headers


def test_each_reason_has_a_refusal() -> None:
    for because in get_args(RefusedBecause):
        assert str(refusal(AppendRequest(STREAM_ID, []), Refused(because))).endswith(".")


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("cancelled", "cancelled"),
        ("unwatched", "unwatched"),
        ("producer_lost", "producer_lost"),
        ("max_duration", "max_duration"),
        ("log_rewound", "log_rewound"),
        ("stop", "stream_closed"),
        ("provider_error", "stream_closed"),
        ("my_own_code", "stream_closed"),
        ("", "stream_closed"),
    ],
)
def test_an_end_from_outside_is_the_code(reason: str, code: str) -> None:
    error = refusal(ASKED, Refused("closed", 4, reason=reason))
    assert isinstance(error, StreamClosed)
    content = shown(error)
    assert (content["code"], content["reason"], content["type"]) == (code, reason, f"/errors#{code}")
