"""Every error that Baton raises on purpose.

    BatonError
    ├── ConfigurationError         a setting, a generator or the database is not as it must be
    │   ├── DatabaseUnreachable
    │   └── SchemaMismatch         `baton migrate` has not run, or this code is too old for the schema
    ├── RequestError               what a client asked for cannot be done
    │   ├── BadRequest             400
    │   ├── HeaderTimeout          408
    │   ├── BodyTimeout            408
    │   ├── HeaderTooLarge         431
    │   ├── InvalidRequest         400
    │   ├── MalformedCursor        400
    │   ├── CursorBeyondTail       409
    │   ├── AnswerRunning          409
    │   ├── ConversationChanged    409
    │   ├── ConversationGone       410
    │   ├── Unauthenticated        401
    │   ├── Forbidden              403
    │   ├── StreamNotFound         404
    │   ├── StreamExpired          410
    │   ├── LogDamaged             500
    │   ├── IdempotencyConflict    422
    │   ├── UnknownGenerator       422
    │   ├── UnknownModel           404
    │   ├── NotHere                404
    │   ├── WrongMethod            405
    │   ├── OldProtocol            400
    │   ├── RequestTooLarge        413
    │   ├── InputTooLarge          413
    │   ├── StillRunning           503
    │   ├── InternalError          500
    │   └── PassingError           trying again may help
    │       ├── Unavailable        503
    │       ├── CreateRateLimited     429
    │       ├── ReadRateLimited       429
    │       ├── TooManyQueries     429
    │       ├── TooManyStreams     429
    │       ├── TooManySubscribers 429
    │       ├── TooManyConnections 503
    │       ├── RequestMemoryFull         503
    │       └── PodFull            503
    ├── GenerationError            a generator could not go on; becomes the stream's terminal event
    │   └── InvalidEvent           it yielded something that is no event
    ├── FollowError                a client cannot follow a stream to its end
    ├── ConnectionCut              a pod ends a connection before its response has ended
    └── DemoError                  `baton demo` could not show what it wants to show

The message of each is a sentence for the person who has to act on it.
"""

from __future__ import annotations

from typing import ClassVar, Final


class BatonError(Exception):
    """The root of all errors here."""


class ConfigurationError(BatonError):
    """The process cannot run as it is configured; the command line prints the sentence and exits with 2."""


class DatabaseUnreachable(ConfigurationError):
    """No connection to the database could be made."""


class SchemaMismatch(ConfigurationError):
    """The database's schema is not the one that this code works with."""


class RequestError(BatonError):
    """A request that is answered with `application/problem+json` (RFC 9457).

    Of each class `codes` says what is to be done about it. The message is for the client, and may be shown to its
    user. `operator` is for the log: settings, other names, and causes that are nobody else's business.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, message: str, *, operator: str | None = None) -> None:
        super().__init__(message)
        self.operator = operator


class BadRequest(RequestError):
    """What came is not HTTP."""

    status = 400
    code = "bad_request"
    title = "The request cannot be read"


class HeaderTimeout(RequestError):
    """The head of the request took too long to arrive."""

    status = 408
    code = "header_timeout"
    title = "The head of the request came too slowly"


class BodyTimeout(RequestError):
    """The body of the request took too long to arrive."""

    status = 408
    code = "body_timeout"
    title = "The body of the request came too slowly"


class HeaderTooLarge(RequestError):
    """The head of the request has more bytes than the pod accepts."""

    status = 431
    code = "header_too_large"
    title = "The head of the request is too large"


class InvalidRequest(RequestError):
    """The body, a header or a parameter is not what the route takes."""

    status = 400
    code = "invalid_request"
    title = "The request is not valid"


class MalformedCursor(RequestError):
    """`Last-Event-ID` is not a sequence number."""

    status = 400
    code = "malformed_cursor"
    title = "The cursor is not a sequence number"


class Unauthenticated(RequestError):
    """There is no credential, or it is not valid."""

    status = 401
    code = "unauthenticated"
    title = "A valid credential is needed"


class Forbidden(RequestError):
    """The credential is valid, and does not allow this."""

    status = 403
    code = "forbidden"
    title = "The credential does not allow this"


class StreamNotFound(RequestError):
    """There is no such stream, or it is not the caller's."""

    status = 404
    code = "stream_not_found"
    title = "There is no such stream"


class StreamExpired(RequestError):
    """The stream is older than what is kept."""

    status = 410
    code = "stream_expired"
    title = "The stream has expired"


class CursorBeyondTail(RequestError):
    """The client claims to have events that the log does not hold."""

    status = 409
    code = "cursor_beyond_tail"
    title = "The cursor lies beyond the end of the log"


class AnswerRunning(RequestError):
    """The chat's last answer is not complete, so a message cannot be added to the conversation."""

    status = 409
    code = "answer_running"
    title = "The chat's last answer is still under way"


class ConversationChanged(RequestError):
    """The message does not fit the end of the stored conversation: another tab or client has continued it."""

    status = 409
    code = "conversation_changed"
    title = "The conversation has changed"


class ConversationGone(RequestError):
    """A message of the conversation was erased, has expired, or was never stored here."""

    status = 410
    code = "conversation_gone"
    title = "The conversation is not stored here"


class RequestTooLarge(RequestError):
    """The body has more bytes than the pod accepts."""

    status = 413
    code = "request_too_large"
    title = "The request is too large"


class InputTooLarge(RequestError):
    """A stream's input has more bytes than the pod accepts."""

    status = 413
    code = "input_too_large"
    title = "The input is too large"


class LogDamaged(RequestError):
    """The log of a stream has a gap, so no client can get the whole of it."""

    status = 500
    code = "log_damaged"
    title = "A part of the stream is missing"


class IdempotencyConflict(RequestError):
    """The same `Idempotency-Key` came with another body."""

    status = 422
    code = "idempotency_conflict"
    title = "The idempotency key was used for another request"


class UnknownGenerator(RequestError):
    """No worker offers a generator of that name."""

    status = 422
    code = "unknown_generator"
    title = "There is no such generator"


class UnknownModel(RequestError):
    """No generator has the name that a client of OpenAI's gave as the model."""

    status = 404
    code = "model_not_found"
    title = "There is no such model"


class NotHere(RequestError):
    """Baton has no such path; with OpenAI's SDKs, it is a part of their API that Baton does not have."""

    status = 404
    code = "not_found"
    title = "There is no such route"


class WrongMethod(RequestError):
    """The path exists, though not with this method; the header `Allow` has those that it takes."""

    status = 405
    code = "method_not_allowed"
    title = "The route does not take this method"


class OldProtocol(RequestError):
    """The stream cannot be had by HTTP/1.0, by which a client cannot tell a cut connection from the stream's end."""

    status = 400
    code = "http_1_1_required"
    title = "The stream needs HTTP/1.1"


class PassingError(RequestError):
    """What cannot be done just now, and may go otherwise after `retry_after_seconds`."""

    def __init__(self, message: str, retry_after_seconds: int = 1, *, operator: str | None = None) -> None:
        super().__init__(message, operator=operator)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(PassingError):
    """The database does not answer just now."""

    status = 503
    code = "unavailable"
    title = "The service cannot answer just now"


class CreateRateLimited(PassingError):
    """The caller creates more streams in a time than it may."""

    status = 429
    code = "create_rate_limited"
    title = "Streams are created too fast"


class ReadRateLimited(PassingError):
    """The caller reads more in a time than it may on one pod."""

    status = 429
    code = "read_rate_limited"
    title = "Streams are read too fast"


class TooManyQueries(PassingError):
    """The tenant's other requests use all of the pod's database connections that one tenant may have."""

    status = 429
    code = "too_many_queries"
    title = "Too many requests of one tenant are at work"


class TooManyStreams(PassingError):
    """The tenant has as many queued and running streams as it may."""

    status = 429
    code = "too_many_streams"
    title = "Too many streams are under way"


class TooManySubscribers(PassingError):
    """The tenant, or the stream, has as many subscribers on this pod as it may."""

    status = 429
    code = "too_many_subscribers"
    title = "Too many clients follow streams here"


class TooManyConnections(PassingError):
    """The pod has as many connections as it takes; others may have room."""

    status = 503
    code = "too_many_connections"
    title = "This pod has as many connections as it takes"


class PodFull(PassingError):
    """The pod has as many subscribers as it may; others may have room."""

    status = 503
    code = "pod_full"
    title = "This pod is full"


class RequestMemoryFull(PassingError):
    """The pod holds as many bytes of request bodies as it may; others may have room."""

    status = 503
    code = "request_memory_full"
    title = "Too many large requests come at once"


class StillRunning(RequestError):
    """What was created goes on, and its client cannot be told of it here. Asking again would create another one."""

    status = 503
    code = "still_running"
    title = "The answer goes on elsewhere"


class InternalError(RequestError):
    """The pod failed in a way that nobody foresaw."""

    status = 500
    code = "internal_error"
    title = "The pod failed to answer"


# What the user reads of a fault of a generator.
GENERATOR_FAULT: Final = "Something went wrong while this answer was generated. Try again."
# What the user reads of a fault of a pod.
POD_FAULT: Final = "Something went wrong. Try again; if that fails too, report it."


class GenerationError(BatonError):
    """Raise it in a generator to end the stream with status `failed` and this code and message.

    Both reach the client and its user, so neither may hold a secret. What only the operator should read is `operator`,
    which goes to the worker's log. What was yielded before stays in the stream.
    """

    def __init__(self, code: str, message: str, *, operator: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.operator = operator


class InvalidEvent(GenerationError):
    """A generator yielded something that is neither text nor an event. What it was is for its author alone."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_event", GENERATOR_FAULT, operator=message)

    def __str__(self) -> str:
        """What is wrong with it."""
        return self.operator or self.message


class FollowError(BatonError):
    """A client cannot follow a stream to its end: it is refused for good, or no pod answers any more."""


class ConnectionCut(BatonError):
    """A response is broken off on purpose: the server is to close the connection without ending the response."""


class DemoError(BatonError):
    """The demo could not show what it wants to show."""
