"""Checks of bodies and queries by pydantic models: the types of fields, and errors in sentences."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, WithJsonSchema

from ..errors import InvalidRequest

# Writing a sentence about each of 100,000 errors would keep a pod busy for a second.
_MAX_ERRORS_LISTED: Final = 20

Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00]*$")]
Text = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400, allow_inf_nan=False)]
Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")
# Any JSON but null.
JsonValue = Annotated[Any, WithJsonSchema({"not": {"type": "null"}})]
# Only the first wrong item is reported, and the rest are not checked: a body has room for 500,000.
Items = Annotated[list[Item], Field(fail_fast=True)]


def _moment(value: Any) -> datetime:
    """Read a time as RFC 3339 writes it. A time without a zone could be meant in any."""
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is not None:
            moment.astimezone(UTC)  # the database keeps it so, and years end
    except (TypeError, ValueError, OverflowError):
        moment = None
    if moment is None or moment.tzinfo is None:
        raise ValueError("it must be a time with its zone, such as 2026-12-24T18:00:00Z")
    return moment


Moment = Annotated[datetime, BeforeValidator(_moment)]


def at_most(entries: int) -> BeforeValidator:
    """Refuse an object with more entries before any of them is checked."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > entries:
            raise ValueError(f"it may have at most {entries} entries")
        return value

    return BeforeValidator(check)


def storable(value: Any) -> Any:
    """Refuse values that can be parsed but not stored: deep nesting, and integers of more than 64 bits.

    Raises:
        ValueError: it cannot be stored as JSON.
    """
    try:
        # This leaves room for the levels that answers put around the value.
        orjson.dumps([[[[[[value]]]]]])
    except TypeError as error:
        raise ValueError(f"cannot be stored as JSON: {error}") from None
    return value


def validated(model: type[Model], content: Any) -> Model:
    """Check a body or a query.

    Raises:
        InvalidRequest: something is wrong; the message has each error.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        if error.error_count() > _MAX_ERRORS_LISTED:
            raise InvalidRequest(f"The request has {error.error_count()} invalid values.") from None
        found = [f"{'.'.join(map(str, item['loc'])) or 'body'}: {_sentence(item)}" for item in error.errors()]
        raise InvalidRequest("; ".join(found)[:1000] + ".") from None


def _sentence(error: Any) -> str:
    if error["type"] in {"model_type", "model_attributes_type"}:
        return "it must be a JSON object"
    message: str = error["msg"]
    return message.removeprefix("Value error, ")
