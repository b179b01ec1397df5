"""The errors that Baton raises on purpose.

    BatonError
    ├── ConfigurationError         a setting, a generator or the database is wrong
    │   ├── DatabaseUnreachable
    │   └── SchemaMismatch         `baton migrate` has not run, or this code is too old for the schema
    ├── RequestError               a client's request cannot be met
    │   ├── BadRequest             400
    │   ├── HeaderTimeout          408
    │   ├── BodyTimeout            408
    │   ├── HeaderTooLarge         431
    │   ├── InvalidRequest         400
    │   ├── MalformedCursor        400
    │   ├── CursorBeyondTail       409
    │   ├── PathTaken              409
    │   ├── NotAppendable          409
    │   ├── ContentTypeMismatch    409
    │   ├── StreamClosed           409
    │   ├── StreamSeqConflict      409
    │   ├── ProducerGap            409
    │   ├── ProducerFenced         403
    │   ├── ForksNotSupported      501
    │   ├── SubscriptionsNotSupported 501
    │   ├── TokenCountNotSupported 501
    │   ├── MessageBatchesNotSupported 501
    │   ├── LangGraphNotSupported  501
    │   ├── NothingToResume        409
    │   ├── OffsetGone             410
    │   ├── MessagesMissing        410
    │   ├── RawContent             409
    │   ├── StreamEnded            409
    │   ├── InboxFull              409
    │   ├── AnswerRunning          409
    │   ├── ConversationChanged    409
    │   ├── ConversationGone       410
    │   ├── PreviousResponseNotFound 400
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
    │   ├── MessageTooLarge        413
    │   ├── StreamFull             413
    │   ├── TooManyProducers       422
    │   ├── ReservedGenerator      422
    │   ├── StillRunning           503
    │   ├── InternalError          500
    │   └── PassingError           a retry may help
    │       ├── Unavailable        503
    │       ├── OlderCodeRunning   503
    │       ├── CreateRateLimited  429
    │       ├── ReadRateLimited    429
    │       ├── AppendRateLimited  429
    │       ├── TooManyQueries     429
    │       ├── TooManyStreams     429
    │       ├── TooManySubscribers 429
    │       ├── TooManyConnections 503
    │       ├── RequestMemoryFull  503
    │       └── PodFull            503
    ├── GenerationError            a generator failed; becomes the stream's terminal event
    │   └── InvalidEvent           it yielded something other than an event
    ├── StepError                  a generator's step cannot be run or kept
    ├── FollowError                a client cannot follow a stream to its end
    ├── ClientError                a client's call is refused
    │   └── ServiceUnavailable     no pod has answered it in time
    ├── AnswerFailed               the stream that a client waits for has failed or was cancelled
    ├── ConnectionCut              a pod ends a connection before its response has ended
    └── DemoError                  a step of `baton demo` failed

Each message is a sentence for the person who has to act on it.
"""

from __future__ import annotations

from typing import ClassVar, Final


class BatonError(Exception):
    """The base of all of Baton's errors."""


class ConfigurationError(BatonError):
    """The process cannot run with its configuration. The command line prints the message and exits with 2."""


class DatabaseUnreachable(ConfigurationError):
    """The database cannot be reached."""


class SchemaMismatch(ConfigurationError):
    """The database's schema does not fit this code."""


class RequestError(BatonError):
    """A request that gets `application/problem+json` (RFC 9457) as its response.

    `codes` has advice for each class. The message is for the client, which may show it to its user. `operator` is for
    the log: settings, other names, and causes that clients must not see. `headers` are further headers of the response.
    """

    status: ClassVar[int]
    code: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, message: str, *, operator: str | None = None) -> None:
        super().__init__(message)
        self.operator = operator
        self.headers: dict[str, str] = {}


class BadRequest(RequestError):
    """The request is not valid HTTP."""

    status = 400
    code = "bad_request"
    title = "The request cannot be read"


class HeaderTimeout(RequestError):
    """The header of the request took too long to arrive."""

    status = 408
    code = "header_timeout"
    title = "The header of the request arrived too slowly"


class BodyTimeout(RequestError):
    """The body of the request took too long to arrive."""

    status = 408
    code = "body_timeout"
    title = "The body of the request arrived too slowly"


class HeaderTooLarge(RequestError):
    """The header of the request has more bytes than the pod accepts."""

    status = 431
    code = "header_too_large"
    title = "The header of the request is too large"


class InvalidRequest(RequestError):
    """The route does not accept the body, a header or a parameter."""

    status = 400
    code = "invalid_request"
    title = "The request is not valid"


class MalformedCursor(RequestError):
    """`Last-Event-ID` is not a sequence number."""

    status = 400
    code = "malformed_cursor"
    title = "The cursor is not a sequence number"


class Unauthenticated(RequestError):
    """The request has no credential, or an invalid one."""

    status = 401
    code = "unauthenticated"
    title = "A valid credential is needed"


class Forbidden(RequestError):
    """The credential is valid but does not allow this."""

    status = 403
    code = "forbidden"
    title = "The credential does not allow this"


class StreamNotFound(RequestError):
    """The stream does not exist, or it belongs to another tenant."""

    status = 404
    code = "stream_not_found"
    title = "There is no such stream"


class StreamExpired(RequestError):
    """The stream is older than the retention period."""

    status = 410
    code = "stream_expired"
    title = "The stream has expired"


class CursorBeyondTail(RequestError):
    """The cursor is higher than the last event in the log."""

    status = 409
    code = "cursor_beyond_tail"
    title = "The cursor lies beyond the end of the log"


class PathTaken(RequestError):
    """The path names a stream with another configuration, or has the form of a stream's id."""

    status = 409
    code = "path_taken"
    title = "The path is taken"


class NotAppendable(RequestError):
    """The stream is written by a generator, so no producer can append to it."""

    status = 409
    code = "not_appendable"
    title = "The stream is written by a generator"


class ContentTypeMismatch(RequestError):
    """The body has another content type than the stream."""

    status = 409
    code = "content_type_mismatch"
    title = "The content type is not the stream's"


class StreamClosed(RequestError):
    """The stream is closed, so nothing can be appended to it.

    The `reason` in the answer says how it ended. If it is not the producer that closed it, that is also the `code`.
    """

    status = 409
    code = "stream_closed"
    title = "The stream is closed"

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class StreamSeqConflict(RequestError):
    """`Stream-Seq` does not come after the one of the stream's last append, byte by byte."""

    status = 409
    code = "stream_seq_conflict"
    title = "Stream-Seq is not in order"


class ProducerGap(RequestError):
    """The producer left out a number: an append before this one has not arrived."""

    status = 409
    code = "producer_gap"
    title = "An append of the producer is missing"


class ProducerFenced(RequestError):
    """Another process has taken over as this producer, with a higher epoch."""

    status = 403
    code = "producer_fenced"
    title = "The producer has been replaced"


class ForksNotSupported(RequestError):
    """The request creates a fork of a stream, which Baton does not support."""

    status = 501
    code = "forks_not_supported"
    title = "Forks are not supported"


class SubscriptionsNotSupported(RequestError):
    """The path belongs to the subscriptions of the Durable Streams protocol, which Baton does not support."""

    status = 501
    code = "subscriptions_not_supported"
    title = "Subscriptions are not supported"


class TokenCountNotSupported(RequestError):
    """A client of Anthropic's API asks for the number of tokens of a request."""

    status = 501
    code = "token_count_not_supported"
    title = "Tokens cannot be counted"


class MessageBatchesNotSupported(RequestError):
    """A client of Anthropic's API asks for batches of messages."""

    status = 501
    code = "message_batches_not_supported"
    title = "There are no batches of messages"


class LangGraphNotSupported(RequestError):
    """The request is for a part of LangGraph's API, or asks for something in it, that Baton does not support."""

    status = 501
    code = "langgraph_not_supported"
    title = "This part of LangGraph's API is not supported"


class NothingToResume(RequestError):
    """A command is to resume a thread that waits for no answer."""

    status = 409
    code = "nothing_to_resume"
    title = "The thread waits for no answer"


class OffsetGone(RequestError):
    """The offset is of another stream. A stream that the address had before was deleted or has expired."""

    status = 410
    code = "offset_gone"
    title = "The offset is of another stream"


class MessagesMissing(RequestError):
    """Messages of the stream are missing, so no client can get all of it. Other APIs say `log_damaged`."""

    status = 410
    code = "messages_missing"
    title = "Messages of the stream are missing"


class RawContent(RequestError):
    """The stream has text, bytes or JSON that are not Baton's events, so only the Durable Streams protocol reads it."""

    status = 409
    code = "raw_content"
    title = "The stream has no events"


class StreamEnded(RequestError):
    """The stream has ended, so nothing can be sent to its generator."""

    status = 409
    code = "stream_ended"
    title = "The stream has ended"


class InboxFull(RequestError):
    """The stream has as many inputs, or as many bytes of them, as a stream may have."""

    status = 409
    code = "inbox_full"
    title = "The stream takes no more inputs"


class AnswerRunning(RequestError):
    """The chat's last answer is still running, so no message can be added to the conversation."""

    status = 409
    code = "answer_running"
    title = "The chat's last answer is still running"


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


class PreviousResponseNotFound(RequestError):
    """The Response in `previous_response_id` was erased, has expired, or never existed for this caller."""

    status = 400
    code = "previous_response_not_found"
    title = "There is no such previous response"


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


class MessageTooLarge(RequestError):
    """A message of an append, or an input of a stream, has more bytes than an event may have."""

    status = 413
    code = "message_too_large"
    title = "The message is too large"


class StreamFull(RequestError):
    """The stream has as many bytes or events as a stream may have."""

    status = 413
    code = "stream_full"
    title = "The stream has no room"


class TooManyProducers(RequestError):
    """The stream has as many producers as it may have, and this append names another one."""

    status = 422
    code = "too_many_producers"
    title = "The stream has too many producers"


class ReservedGenerator(RequestError):
    """The name `external` is for streams that are written over HTTP, and cannot be used here."""

    status = 422
    code = "reserved_generator"
    title = "The name of the generator is reserved"


class LogDamaged(RequestError):
    """The log of the stream has a gap, so no client can get all of it."""

    status = 500
    code = "log_damaged"
    title = "Part of the stream is missing"


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
    """No generator has the name that the client gave as the model."""

    status = 404
    code = "model_not_found"
    title = "There is no such model"


class NotHere(RequestError):
    """Baton has no such path. With an OpenAI SDK, the call is a part of OpenAI's API that Baton does not have."""

    status = 404
    code = "not_found"
    title = "There is no such route"


class WrongMethod(RequestError):
    """The path exists but not with this method. The header `Allow` lists the methods that it takes."""

    status = 405
    code = "method_not_allowed"
    title = "The route does not take this method"


class OldProtocol(RequestError):
    """The stream is not available over HTTP/1.0, where a cut connection looks like the stream's end."""

    status = 400
    code = "http_1_1_required"
    title = "The stream needs HTTP/1.1"


class PassingError(RequestError):
    """The request cannot be met at the moment; a retry after `retry_after_seconds` may succeed."""

    def __init__(self, message: str, retry_after_seconds: int = 1, *, operator: str | None = None) -> None:
        super().__init__(message, operator=operator)
        self.retry_after_seconds = retry_after_seconds


class Unavailable(PassingError):
    """The pod cannot serve the request at the moment, often because the database does not answer."""

    status = 503
    code = "unavailable"
    title = "The service is unavailable at the moment"


class OlderCodeRunning(PassingError):
    """Processes of an older release still run, which do not know external streams, or streams that start later."""

    status = 503
    code = "older_code_running"
    title = "Processes of an older release still run"


class CreateRateLimited(PassingError):
    """The caller creates streams faster than its limit allows."""

    status = 429
    code = "create_rate_limited"
    title = "Streams are created too fast"


class ReadRateLimited(PassingError):
    """The caller reads faster than its limit on one pod allows."""

    status = 429
    code = "read_rate_limited"
    title = "Streams are read too fast"


class AppendRateLimited(PassingError):
    """The caller appends faster than its limit on one pod allows."""

    status = 429
    code = "append_rate_limited"
    title = "Messages are appended too fast"


class TooManyQueries(PassingError):
    """Other requests of the tenant use its whole share of the pod's database connections."""

    status = 429
    code = "too_many_queries"
    title = "Too many requests of one tenant are in progress"


class TooManyStreams(PassingError):
    """The tenant has reached its limit of streams that have not ended."""

    status = 429
    code = "too_many_streams"
    title = "Too many streams have not ended"


class TooManySubscribers(PassingError):
    """The tenant or the stream has reached its limit of subscribers on this pod."""

    status = 429
    code = "too_many_subscribers"
    title = "Too many clients follow streams here"


class TooManyConnections(PassingError):
    """The pod has reached its limit of connections; other pods may have room."""

    status = 503
    code = "too_many_connections"
    title = "This pod has too many connections"


class PodFull(PassingError):
    """The pod has reached its limit of subscribers; other pods may have room."""

    status = 503
    code = "pod_full"
    title = "This pod is full"


class RequestMemoryFull(PassingError):
    """The pod has reached its limit of request bodies in memory; other pods may have room."""

    status = 503
    code = "request_memory_full"
    title = "Too many large requests at once"


class StillRunning(RequestError):
    """The stream was created and continues, but this pod cannot follow it. A repeated create makes another one."""

    status = 503
    code = "still_running"
    title = "The answer continues on another pod"


class InternalError(RequestError):
    """The pod failed unexpectedly."""

    status = 500
    code = "internal_error"
    title = "The pod failed to answer"


# What a user reads when a generator fails.
GENERATOR_FAULT: Final = "Something went wrong while this answer was generated. Try again."
# What a user reads when a pod fails.
POD_FAULT: Final = "Something went wrong. Try again; if that fails too, report it."


class GenerationError(BatonError):
    """Raise it in a generator to end the stream with status `failed` and this code and message.

    The client and its user see both, so neither may contain a secret. `operator` goes to the worker's log only. The
    stream keeps the events yielded before.
    """

    def __init__(self, code: str, message: str, *, operator: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.operator = operator


class InvalidEvent(GenerationError):
    """A generator yielded something that is neither text nor an event. Only the log says what it was."""

    def __init__(self, message: str) -> None:
        super().__init__("invalid_event", GENERATOR_FAULT, operator=message)

    def __str__(self) -> str:
        """Return what is wrong with the event."""
        return self.operator or self.message


class StepError(BatonError):
    """A generator asks for a step that cannot be run, or whose result cannot be kept. Only the log says why."""


class FollowError(BatonError):
    """A client cannot follow a stream to its end: the stream is refused for good, or no pod answers.

    `code` is that of the refusal; None if there was none.
    """

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class ClientError(BatonError):
    """A pod refused a client's call for good.

    `status` is that of the response, and `code` says why. A response that is not Baton's own has no code.
    """

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


class ServiceUnavailable(ClientError):
    """No pod has met a client's call in time. `code` and `status` are those of the last response, or None."""


class AnswerFailed(BatonError):
    """The stream that a client waits for has failed or was cancelled. `text` is its text until then."""

    def __init__(self, code: str, message: str, *, text: str) -> None:
        super().__init__(message)
        self.code = code
        self.text = text


class ConnectionCut(BatonError):
    """A pod cuts a response on purpose: the server must close the connection without ending the response."""


class DemoError(BatonError):
    """A step of the demo failed."""
