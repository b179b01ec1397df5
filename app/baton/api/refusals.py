"""The errors that kinds of routes answer, for their declarations."""

from __future__ import annotations

from typing import Final

from ..errors import (
    BodyTimeout,
    CreateRateLimited,
    CursorBeyondTail,
    Forbidden,
    IdempotencyConflict,
    InputTooLarge,
    InternalError,
    InvalidRequest,
    LogDamaged,
    OldProtocol,
    PodFull,
    RawContent,
    ReadRateLimited,
    RequestMemoryFull,
    RequestTooLarge,
    StreamExpired,
    StreamNotFound,
    TooManyQueries,
    TooManyStreams,
    TooManySubscribers,
    Unauthenticated,
    Unavailable,
)

# Every route with a credential that needs the database.
GUARDED: Final = (Unauthenticated, Forbidden, InternalError, Unavailable)
READING: Final = (*GUARDED, ReadRateLimited, TooManyQueries)
STREAM: Final = (*READING, StreamNotFound, StreamExpired)
# Reading the whole log of a stream.
WHOLE: Final = (*STREAM, LogDamaged, RawContent)
CREATING: Final = (
    *GUARDED,
    TooManyQueries,
    InvalidRequest,
    BodyTimeout,
    RequestTooLarge,
    RequestMemoryFull,
    InputTooLarge,
    IdempotencyConflict,
    CreateRateLimited,
    TooManyStreams,
)
JOINING: Final = (
    StreamNotFound,
    StreamExpired,
    LogDamaged,
    RawContent,
    InvalidRequest,
    CursorBeyondTail,
    OldProtocol,
    TooManySubscribers,
    PodFull,
)
FOLLOWING: Final = (*READING, *JOINING)
