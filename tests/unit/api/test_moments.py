"""Times in requests."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from baton.api.validation import Moment

ADAPTER: TypeAdapter[object] = TypeAdapter(Moment)


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "2026-12-24T18:00:00", 5])
def test_a_time_that_the_database_cannot_keep_is_refused(value: object) -> None:
    with pytest.raises(ValidationError, match="it must be a time with its zone"):
        ADAPTER.validate_python(value)


def test_any_other_time_is_accepted() -> None:
    for value in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59+14:00"):
        ADAPTER.validate_python(value)
