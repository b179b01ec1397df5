"""Every code that a client can be told: what has happened, and what is to be done about it, by whom.

A code never changes its meaning, and is never used again for another. docs/errors.md and the page that pods serve are
made from this. What happened comes from the class of an error in `errors`, or, for the end of a stream, from here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import WithJsonSchema
from typing_extensions import TypeAliasType

from .errors import RequestError


@dataclass(frozen=True, slots=True)
class Code:
    """One code; its texts may have `code` in them. Without a status it is how a stream ends."""

    code: str
    status: int | None
    title: str
    happened: str
    client: str
    operator: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What the client does about it, and what the operator does."""

    client: str
    operator: str


_NOTHING: Final = "Nothing."

# For each class of `RequestError`, by its code.
ADVICE: Final[dict[str, Advice]] = {
    "invalid_request": Advice(
        "Correct what the sentence names. The same request again would be refused again.",
        _NOTHING,
    ),
    "bad_request": Advice(
        "Send HTTP/1.1 with one `Host`, and JSON where JSON is asked for.",
        "If the client does: look for what changes its requests on the way.",
    ),
    "header_timeout": Advice(
        "Send the head of a request at once. On a poor connection, try again.",
        "`BATON_HEADER_TIMEOUT_SECONDS` is the limit. In numbers it is an attack, or a proxy that opens connections "
        "early.",
    ),
    "body_timeout": Advice(
        "Send the body without pauses. On a poor connection, try again.",
        "`BATON_BODY_TIMEOUT_SECONDS` is the limit.",
    ),
    "header_too_large": Advice(
        "Send fewer and shorter headers; cookies are the usual reason.",
        "`BATON_MAX_HEADER_BYTES` is the limit.",
    ),
    "input_too_large": Advice(
        "Send less, for instance fewer of the earlier messages.",
        "`BATON_MAX_INPUT_BYTES` is the limit.",
    ),
    "create_rate_limited": Advice(
        "Wait as many seconds as `Retry-After` says, and spread what you create.",
        "`BATON_CREATES_PER_SECOND` and `BATON_CREATES_BURST` are the limits, for each caller over all pods.",
    ),
    "read_rate_limited": Advice(
        "Wait as many seconds as `Retry-After` says. Follow a stream, or wait for its end with `?wait=`, instead of "
        "asking again and again; a list that looks at many rows counts as many reads.",
        "`BATON_READS_PER_SECOND` and `BATON_READS_BURST` are the limits, for each caller on each pod.",
    ),
    "too_many_queries": Advice(
        "Send fewer requests at once, and try again after as many seconds as `Retry-After` says.",
        "`BATON_TENANT_POOL_SHARE` is the part of a pod's `BATON_DATABASE_POOL_SIZE` connections that one tenant may "
        "use while others ask, too. Many refusals of one tenant suggest abuse; of all tenants, a slow database.",
    ),
    "too_many_streams": Advice(
        "Wait for some of your streams to end, or cancel those that nobody needs.",
        "`BATON_MAX_TENANT_STREAMS` is the limit; more workers have queued streams end sooner.",
    ),
    "too_many_subscribers": Advice(
        "Come back after as many seconds as `Retry-After` says; close connections that nobody watches.",
        "`BATON_MAX_STREAM_SUBSCRIBERS` and `BATON_MAX_TENANT_SUBSCRIBERS` are the limits, for each pod.",
    ),
    "too_many_connections": Advice(
        "Try again: another pod may take the connection.",
        "`BATON_MAX_CONNECTIONS` is the limit of each pod; add pods.",
    ),
    "pod_full": Advice(
        "Try again after as many seconds as `Retry-After` says: another pod may have room.",
        "`BATON_MAX_SUBSCRIBERS` is the limit of each pod; add pods.",
    ),
    "request_memory_full": Advice(
        "Send it again after as many seconds as `Retry-After` says. Smaller images go through sooner.",
        "`BATON_MAX_TOTAL_BODY_BYTES` is the limit of each pod. Raise it with the memory of the pod, or add pods.",
    ),
    "malformed_cursor": Advice(
        "Send the `id:` of the last event that was received, as it came, or no cursor to begin with the first event.",
        "If the client sends what it was given: look for a proxy that changes `Last-Event-ID`.",
    ),
    "unauthenticated": Advice(
        "Send a credential that is valid, or get a new one.",
        "If it should be valid: see that it has not expired or been revoked, and that a proxy passes it on.",
    ),
    "forbidden": Advice(
        "Use a credential that allows this; the sentence says what is missing.",
        "Give the credential the scope, if its owner is to have it.",
    ),
    "stream_not_found": Advice(
        "See that the id is whole and comes from this service. A stream that was erased, or is somebody else's, "
        "looks the same.",
        _NOTHING,
    ),
    "stream_expired": Advice(
        "Create it again, if the answer is still wanted.",
        "`BATON_RETENTION_DAYS` says for how long streams are kept.",
    ),
    "cursor_beyond_tail": Advice(
        "Discard what was received, and follow the stream again without a cursor.",
        "If this comes in numbers: the database has lost the end of its log, as in an asynchronous failover, or "
        "clients mix up the ids of different streams.",
    ),
    "answer_running": Advice(
        "Wait for the answer's end, or stop it with `POST …/{chat}/stop`; then send the message again.",
        _NOTHING,
    ),
    "conversation_changed": Advice(
        "Load the conversation again, and send the message after its last one.",
        _NOTHING,
    ),
    "conversation_gone": Advice(
        "Send all messages (`messages` in place of `message`), or begin a new chat.",
        "`BATON_RETENTION_DAYS` says for how long streams are kept.",
    ),
    "request_too_large": Advice(
        "Send less.",
        "`BATON_MAX_BODY_BYTES` is the limit.",
    ),
    "log_damaged": Advice(
        "Take what was received for all there is of this stream. Trying again does not help.",
        "Rows of `baton.batch` are missing. Find out who deleted them, or restore them.",
    ),
    "idempotency_conflict": Advice(
        "Use a new `Idempotency-Key` for each new request, and the same only to repeat one as it was.",
        _NOTHING,
    ),
    "unknown_generator": Advice(
        "Name a generator that is offered: `GET /v1/models` lists them.",
        "The pod's log lists those that are known. Start a worker that offers it, and see that `BATON_GENERATORS`, "
        "`BATON_ENABLED_GENERATORS` and `BATON_MODELS` are the same for pods and workers.",
    ),
    "model_not_found": Advice(
        "Name a model that `GET /v1/models` lists.",
        "The pod's log lists those that are known. `BATON_MODELS` gives generators further names.",
    ),
    "not_found": Advice(
        "See that the base URL and the path are right. `/openapi.json` has all paths.",
        "If the app is mounted into another one, or stands behind a proxy: see that the prefix is right.",
    ),
    "method_not_allowed": Advice(
        "Use a method that the header `Allow` names.",
        _NOTHING,
    ),
    "http_1_1_required": Advice(
        "Connect by HTTP/1.1 or newer.",
        "Have the proxy speak HTTP/1.1 to the pods: nginx needs `proxy_http_version 1.1;`.",
    ),
    "unavailable": Advice(
        "Try again after as many seconds as `Retry-After` says, then with growing pauses. A stream that is "
        "followed goes on after the last event that was received.",
        "The pod's log has the cause, by the request's id: it is leaving, it cannot reach the database, or it was "
        "never started. `baton doctor` looks at the database.",
    ),
    "still_running": Advice(
        "Do not create it again: it goes on. Get it by the id that the sentence has.",
        "Give pods time to leave: `BATON_DRAIN_SECONDS`, and what the platform grants.",
    ),
    "internal_error": Advice(
        "Try again once; if that fails too, report the request's id.",
        "The pod's log has the traceback, by the request's id. Report it to Baton's authors.",
    ),
}

# How streams end that fail, or that a dialect cannot follow to their end.
ENDS: Final[tuple[Code, ...]] = (
    Code(
        "worker_lost",
        None,
        "The worker went away",
        "The worker that generated the answer died, or lost the database, and the stream was not to be begun again or "
        "has been too often.",
        "Keep the part that there is, or create the stream again.",
        "Find out why workers die: out of memory, or killed sooner than `BATON_WORKER_DRAIN_SECONDS`. "
        "`BATON_ON_WORKER_LOST` "
        "and `BATON_MAX_ATTEMPTS` say whether others begin again.",
    ),
    Code(
        "reset",
        None,
        "The answer begins again",
        "Another worker begins the answer again, which the dialect cannot express. The stream itself goes on.",
        "Discard what was received, and get the stream anew by its id.",
        "As for `worker_lost`.",
    ),
    Code(
        "cancelled",
        None,
        "The answer was cancelled",
        "Somebody asked for the stream's end, or nobody watched it for as long as it allows.",
        "Keep the part that there is.",
        _NOTHING,
    ),
    Code(
        "queue_timeout",
        None,
        "No worker was free",
        "The stream waited for a worker for longer than it allows.",
        "Try again later.",
        "Run more workers, or raise `BATON_WORKER_CONCURRENCY` or `BATON_QUEUE_TIMEOUT_SECONDS`.",
    ),
    Code(
        "max_duration",
        None,
        "The answer took too long",
        "The generator ran for longer than the stream allows.",
        "Keep the part that there is, or ask for less.",
        "`BATON_MAX_DURATION_SECONDS` is the limit where a request names none.",
    ),
    Code(
        "idle_timeout",
        None,
        "The generator was silent",
        "The generator yielded nothing for longer than the stream allows.",
        "Try again.",
        "`BATON_IDLE_TIMEOUT_SECONDS` is the limit where a request names none. See whether the generator hangs.",
    ),
    Code(
        "generator_error",
        None,
        "The generator failed",
        "The generator raised an exception that it did not mean for the client.",
        "Try again once; if that fails too, report the stream's id.",
        "The worker's log has the traceback, by the stream's id.",
    ),
    Code(
        "invalid_event",
        None,
        "The generator yielded no event",
        "The generator yielded something that is neither text nor an event.",
        "Report the stream's id.",
        "The worker's log says what was yielded. Correct the generator; `baton.Generator` describes all events.",
    ),
    Code(
        "storage_rejected",
        None,
        "The database refused an event",
        "An event could not be written to the log, whatever was tried.",
        "Keep the part that there is; report the stream's id.",
        "The worker's log has the database's error, by the stream's id.",
    ),
    Code(
        "log_rewound",
        None,
        "The database lost the log's end",
        "A failover or a restore of the database has lost events that clients may have received.",
        "Discard what was received, and create the stream again.",
        "Have the standby confirm commits (`synchronous_standby_names`) if such a loss is not acceptable. "
        "`docs/failover.md` says what to check.",
    ),
    Code(
        "event_too_large",
        None,
        "An event is too large",
        "The generator yielded an event of more bytes than one may have.",
        "Keep the part that there is, and ask for less at once.",
        "`BATON_MAX_EVENT_BYTES` is the limit; see what the generator puts into one event.",
    ),
    Code(
        "too_many_events",
        None,
        "The answer has too many events",
        "The generator yielded more events than a stream may have.",
        "Keep the part that there is, and ask for a shorter answer.",
        "`BATON_MAX_STREAM_EVENTS` is the limit; see whether the generator ever ends.",
    ),
    Code(
        "stream_too_large",
        None,
        "The answer is too large",
        "The events of the stream together have more bytes than they may.",
        "Keep the part that there is, and ask for a shorter answer.",
        "`BATON_MAX_STREAM_BYTES` is the limit; see whether the generator ever ends.",
    ),
    Code(
        "invalid_input",
        None,
        "The generator cannot take this input",
        "The `input` lacks something that the generator needs, or has something that it does not take.",
        "Correct what the sentence names.",
        _NOTHING,
    ),
    Code(
        "provider_not_configured",
        None,
        "No model is named",
        "Neither the input nor the settings say which model to ask for.",
        'Put "model" into the input.',
        "Set `BATON_OPENAI_MODEL` or `BATON_ANTHROPIC_MODEL`.",
    ),
    Code(
        "provider_invalid_request",
        None,
        "The provider did not accept the request",
        "The model provider refused what the input asks for.",
        "Correct what the sentence names.",
        _NOTHING,
    ),
    Code(
        "provider_context_length",
        None,
        "The input is too long for the model",
        "The model takes fewer tokens than the conversation has.",
        "Send less: a shorter conversation, or smaller files.",
        "Name a model with a larger context, or have the generator shorten the conversation.",
    ),
    Code(
        "provider_content_filter",
        None,
        "The provider's content filter refused",
        "The model provider does not answer what the input asks.",
        "Ask in another way.",
        "See the provider's settings of content filters.",
    ),
    Code(
        "provider_auth_failed",
        None,
        "The provider refused the credentials",
        "The model provider does not let this service, or this use of it, in.",
        "Report it; trying again does not help.",
        "See that the provider's key is valid, and may use the model.",
    ),
    Code(
        "provider_rate_limited",
        None,
        "The provider limits requests",
        "The model provider was asked too often, or for too much.",
        "Try again later; the sentence may say when.",
        "Ask the provider for more, or let fewer streams run at once.",
    ),
    Code(
        "provider_timeout",
        None,
        "The provider did not answer in time",
        "The model provider was silent for longer than is allowed.",
        "Try again.",
        "`BATON_PROVIDER_TIMEOUT_SECONDS` is the limit.",
    ),
    Code(
        "provider_unreachable",
        None,
        "The provider cannot be reached",
        "No connection to the model provider could be made.",
        "Try again later.",
        "See that workers can reach the provider, or `BATON_OPENAI_BASE_URL` or `BATON_ANTHROPIC_BASE_URL`.",
    ),
    Code(
        "provider_cut_off",
        None,
        "The provider broke off",
        "The model provider's answer ended before it was complete.",
        "Keep the part that there is, or try again.",
        "See whether something between the workers and the provider cuts long connections.",
    ),
    Code(
        "provider_error",
        None,
        "The provider failed",
        "The model provider failed, or sent something that cannot be read.",
        "Try again.",
        "See the provider's status page; the worker's log has the stream's id.",
    ),
    Code(
        "other",
        None,
        "The generator gave no code",
        "A generator ended the stream with a code that is none: codes are 1 to 64 of `a-z`, `0-9`, `_`, `.` and `-`.",
        "Read the sentence.",
        "Correct the generator: `GenerationError(code, message)`.",
    ),
)


def _errors(kind: type[RequestError] = RequestError) -> Iterator[type[RequestError]]:
    for error in kind.__subclasses__():
        if "code" in vars(error):
            yield error
        yield from _errors(error)


def _described(error: type[RequestError]) -> Code:
    advice = ADVICE.get(error.code, Advice("Do as the sentence says.", _NOTHING))
    happened = inspect.cleandoc(error.__doc__ or "").replace("\n", " ")
    return Code(error.code, error.status, error.title, happened, advice.client, advice.operator)


def _one_of(codes: tuple[Code, ...], description: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": [code.code for code in codes], "description": description})


# All that a request can be refused with, and all that a stream can end with.
REFUSALS: Final = tuple(_described(error) for error in _errors())

# The same as types, which a client of the OpenAPI document can branch on. A later release may have further codes.
RefusalCode = TypeAliasType("RefusalCode", Annotated[str, _one_of(REFUSALS, "Why a request is refused.")])
EndCode = TypeAliasType("EndCode", Annotated[str, _one_of(ENDS, "Why a stream failed, or cannot be followed.")])
