"""What an application's `authenticate` may return. The error is for its developer: callers get 500."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from baton import Caller
from baton.auth import gate

ANN = Caller("ann")


async def returned(value: object) -> object:
    return value


async def test_a_caller_or_none_is_returned() -> None:
    assert await gate._caller(returned(ANN)) is ANN
    assert await gate._caller(returned(None)) is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: ANN, "authenticate must be defined with `async def`"),
        (lambda: returned("ann"), "must return a baton.Caller or None, and not str"),
        (lambda: returned({"tenant": "ann"}), "and not dict"),
        (lambda: returned(False), "and not bool"),
    ],
    ids=["plain function", "text", "dict", "bool"],
)
async def test_anything_else_is_named(value: Any, message: str) -> None:
    result: Awaitable[object] | object = value()
    with pytest.raises(TypeError, match=message):
        await gate._caller(result)
