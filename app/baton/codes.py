"""Every error code that a client can get: what happened, and what the client and the operator do about it.

A code never changes its meaning and is never reused. docs/errors.md and the page that pods serve are generated from
this module. For a refused request, the docstring of its class in `errors` says what happened; for the end of a stream,
this module does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import WithJsonSchema
from typing_extensions import TypeAliasType

from .errors import RequestError


@dataclass(frozen=True, slots=True)
class Code:
    """One code. Its texts may contain `code` in Markdown. A code without a status ends a stream."""

    code: str
    status: int | None
    title: str
    happened: str
    client: str
    operator: str


@dataclass(frozen=True, slots=True)
class Advice:
    """What the client and the operator do about an error."""

    client: str
    operator: str


_NOTHING: Final = "Nothing."

# Advice for each class of `RequestError`, by its code.
ADVICE: Final[dict[str, Advice]] = {
    "invalid_request": Advice(
        "Correct what the message names. The same request would be refused again.",
        _NOTHING,
    ),
    "bad_request": Advice(
        "Send HTTP/1.1 with one `Host`, and JSON where the route takes JSON.",
        "If the client does so, look for a proxy that changes its requests.",
    ),
    "header_timeout": Advice(
        "Send the whole header of a request at once. On a poor connection, try again.",
        "`BATON_HEADER_TIMEOUT_SECONDS` is the limit. Many of these suggest an attack, or a proxy that connects early.",
    ),
    "body_timeout": Advice(
        "Send the body without pauses. On a poor connection, try again.",
        "`BATON_BODY_TIMEOUT_SECONDS` is the limit.",
    ),
    "header_too_large": Advice(
        "Send fewer and shorter headers. Cookies are the usual cause.",
        "`BATON_MAX_HEADER_BYTES` is the limit.",
    ),
    "input_too_large": Advice(
        "Send less, for instance fewer of the earlier messages.",
        "`BATON_MAX_INPUT_BYTES` is the limit.",
    ),
    "create_rate_limited": Advice(
        "Wait for the seconds in `Retry-After`, and create streams more evenly.",
        "`BATON_CREATES_PER_SECOND` and `BATON_CREATES_BURST` are the limits, for each caller on all pods together.",
    ),
    "read_rate_limited": Advice(
        "Wait for the seconds in `Retry-After`. Follow a stream, or wait for its end with `?wait=`. Do not poll. "
        "A list that scans many rows counts as many reads.",
        "`BATON_READS_PER_SECOND` and `BATON_READS_BURST` are the limits, for each caller on each pod.",
    ),
    "append_rate_limited": Advice(
        "Wait for the seconds in `Retry-After`. Put several messages into one append, as the protocol's clients do.",
        "`BATON_APPENDS_PER_SECOND` and `BATON_APPENDS_BURST` are the limits, for each caller on each pod. The token "
        "of a stream is a caller of its own.",
    ),
    "too_many_queries": Advice(
        "Send fewer requests at once, and try again after the seconds in `Retry-After`.",
        "`BATON_TENANT_POOL_SHARE` is the share of a pod's `BATON_DATABASE_POOL_SIZE` connections that one tenant may "
        "use while other tenants wait. Many refusals of one tenant suggest abuse; of all tenants, a slow database.",
    ),
    "too_many_streams": Advice(
        "Wait until some of your streams end, or cancel streams that you do not need.",
        "`BATON_MAX_TENANT_STREAMS` is the limit. More workers end queued streams sooner.",
    ),
    "too_many_subscribers": Advice(
        "Try again after the seconds in `Retry-After`. Close connections that have no viewer.",
        "`BATON_MAX_STREAM_SUBSCRIBERS` and `BATON_MAX_TENANT_SUBSCRIBERS` are the limits of each pod.",
    ),
    "too_many_connections": Advice(
        "Try again: another pod may accept the connection.",
        "`BATON_MAX_CONNECTIONS` is the limit of each pod. Add pods.",
    ),
    "pod_full": Advice(
        "Try again after the seconds in `Retry-After`: another pod may have room.",
        "`BATON_MAX_SUBSCRIBERS` is the limit of each pod. Add pods.",
    ),
    "request_memory_full": Advice(
        "Repeat the request after the seconds in `Retry-After`. Smaller images get through sooner.",
        "`BATON_MAX_TOTAL_BODY_BYTES` is the limit of each pod. Raise it and the pod's memory together, or add pods.",
    ),
    "malformed_cursor": Advice(
        "Send the `id:` of the last received event unchanged, or no cursor to begin with the first event.",
        "If the client sends it unchanged, look for a proxy that changes `Last-Event-ID`.",
    ),
    "unauthenticated": Advice(
        "Send a valid credential, or get a new one.",
        "If it should be valid, check that it has not expired or been revoked, and that every proxy passes it on.",
    ),
    "forbidden": Advice(
        "Use a credential that allows this. The message says what is missing.",
        "If its owner should have the scope, add it to the credential.",
    ),
    "stream_not_found": Advice(
        "Check that the id is complete and comes from this service. An erased stream, or a stream of another tenant, "
        "gets the same response.",
        _NOTHING,
    ),
    "stream_expired": Advice(
        "Create the stream again if you still need the answer.",
        "`BATON_RETENTION_DAYS` is the retention period.",
    ),
    "cursor_beyond_tail": Advice(
        "Discard the received events, and follow the stream again without a cursor.",
        "Many of these mean that the database lost the end of its log, as in an asynchronous failover, or that clients "
        "mix up the ids of different streams.",
    ),
    "path_taken": Advice(
        "Append to the stream that is there, create one with another path, or repeat the create with the content type, "
        "the lifetime and the `Stream-Closed` of the existing stream.",
        _NOTHING,
    ),
    "not_appendable": Advice(
        "Create a stream of your own with `PUT`, or with the generator `external`, and append to that one.",
        _NOTHING,
    ),
    "content_type_mismatch": Advice(
        "Send the body with the stream's `Content-Type`. `HEAD` returns it.",
        _NOTHING,
    ),
    "stream_closed": Advice(
        "Append nothing more. If the `reason` is not one of yours, stop generating: the stream was cancelled, or ended "
        "by a timeout. `Stream-Next-Offset` is its end.",
        _NOTHING,
    ),
    "stream_seq_conflict": Advice(
        "Use a higher `Stream-Seq` for each append. They are compared byte by byte, so pad numbers with zeros.",
        "Many of these suggest two producers that write the same stream without `Producer-Id`.",
    ),
    "producer_gap": Advice(
        "Send the append with the number in `Producer-Expected-Seq` first, then the ones after it.",
        _NOTHING,
    ),
    "producer_fenced": Advice(
        "Stop appending: another process is this producer now. To take over from it, use an epoch above the one in "
        "`Producer-Epoch`.",
        _NOTHING,
    ),
    "forks_not_supported": Advice(
        "Create a stream without `Stream-Forked-From`, and append a copy of what it is to begin with.",
        _NOTHING,
    ),
    "subscriptions_not_supported": Advice(
        "Follow each stream with `live=sse` or `live=long-poll`.",
        _NOTHING,
    ),
    "token_count_not_supported": Advice(
        "Send the message, and read its `usage`.",
        _NOTHING,
    ),
    "message_batches_not_supported": Advice(
        "Send each message by itself. Streams wait in the queue until a worker is free.",
        _NOTHING,
    ),
    "langgraph_not_supported": Advice(
        "Use what the message names, or leave out what it names. The page about clients lists what is supported.",
        _NOTHING,
    ),
    "nothing_to_resume": Advice(
        "Read the thread's state: its `tasks` have the questions that wait for an answer. Send a message to continue "
        "the thread without one.",
        _NOTHING,
    ),
    "older_code_running": Advice(
        "Try again after the seconds in `Retry-After`.",
        "The pod's log names the processes. Update all pods and workers to this release.",
    ),
    "offset_gone": Advice(
        "Discard what was read, and read the stream again from its beginning (`offset=-1`).",
        _NOTHING,
    ),
    "messages_missing": Advice(
        "Keep the messages that were read: the rest of the stream is lost. A retry does not help.",
        "Rows of `baton.batch` are missing. Find out what deleted them, or restore them.",
    ),
    "raw_content": Advice(
        "Read the stream at the address `/v1/stream/…` that the message names, with a client of the Durable Streams "
        "protocol.",
        "A stream that all dialects show is created with the content type `application/json; "
        'profile="urn:baton:events"`.',
    ),
    "answer_running": Advice(
        "Wait until the answer ends, or stop it with `POST …/{chat}/stop`. Then send the message again.",
        _NOTHING,
    ),
    "conversation_changed": Advice(
        "Load the conversation again, and send the message after its last message.",
        _NOTHING,
    ),
    "conversation_gone": Advice(
        "Send all messages (`messages` in place of `message`), or start a new chat.",
        "`BATON_RETENTION_DAYS` is the retention period.",
    ),
    "previous_response_not_found": Advice(
        "Send the conversation itself as `input`, or begin a new one.",
        "`BATON_RETENTION_DAYS` is the retention period.",
    ),
    "request_too_large": Advice(
        "Send a smaller body.",
        "`BATON_MAX_BODY_BYTES` is the limit.",
    ),
    "stream_ended": Advice(
        "Send nothing more to this stream. To continue the conversation, create a new one.",
        _NOTHING,
    ),
    "inbox_full": Advice(
        "Send nothing more to this stream. Put several messages into one input.",
        "A stream takes 10,000 inputs, and `BATON_MAX_INPUT_BYTES` of them. Check whether a client repeats itself.",
    ),
    "message_too_large": Advice(
        "Send the message in parts.",
        "`BATON_MAX_EVENT_BYTES` is the limit, as the message is stored: bytes that are not text take a third more.",
    ),
    "stream_full": Advice(
        "Close the stream, and continue in a new one.",
        "`BATON_MAX_EXTERNAL_BYTES` and `BATON_MAX_STREAM_EVENTS` are the limits. Check whether a producer repeats "
        "itself.",
    ),
    "too_many_producers": Advice(
        "Keep one `Producer-Id` for all appends of a producer, and raise its `Producer-Epoch` when it starts again.",
        _NOTHING,
    ),
    "reserved_generator": Advice(
        "Name a generator that `GET /v1/models` lists. Create a stream that you write yourself with "
        '`POST /v1/streams` and `{"generator": "external"}`.',
        _NOTHING,
    ),
    "log_damaged": Advice(
        "Keep the received events: the rest of the stream is lost. A retry does not help.",
        "Rows of `baton.batch` are missing. Find out what deleted them, or restore them.",
    ),
    "idempotency_conflict": Advice(
        "Use a new `Idempotency-Key` for each new request. Repeat a key only with the same body.",
        _NOTHING,
    ),
    "unknown_generator": Advice(
        "Name an offered generator: `GET /v1/models` lists them.",
        "The pod's log lists the known generators. Start a worker that offers this one, and check that "
        "`BATON_GENERATORS`, `BATON_ENABLED_GENERATORS` and `BATON_MODELS` are the same for pods and workers.",
    ),
    "model_not_found": Advice(
        "Name a model that `GET /v1/models` lists.",
        "The pod's log lists the known models. `BATON_MODELS` gives generators additional names.",
    ),
    "not_found": Advice(
        "Check the base URL and the path. `/openapi.json` has all paths.",
        "If Baton is mounted in another application, or runs behind a proxy, check the prefix.",
    ),
    "method_not_allowed": Advice(
        "Use a method in the header `Allow`.",
        _NOTHING,
    ),
    "http_1_1_required": Advice(
        "Connect with HTTP/1.1 or newer.",
        "Make the proxy speak HTTP/1.1 to the pods. nginx needs `proxy_http_version 1.1;`.",
    ),
    "unavailable": Advice(
        "Try again after the seconds in `Retry-After`, then with growing pauses. A followed stream continues after "
        "the last received event.",
        "The pod's log has the cause, by the request's id: the pod is leaving, cannot reach the database, or has not "
        "started. `baton doctor` examines the database.",
    ),
    "still_running": Advice(
        "Do not create the answer again: it continues. Get it by the id in the message.",
        "Give pods time to leave: `BATON_DRAIN_SECONDS`, and the platform's grace period.",
    ),
    "internal_error": Advice(
        "Try again once. If that fails too, report the request's id.",
        "The pod's log has the traceback, by the request's id. Report it to Baton's authors.",
    ),
}

# How a stream ends that fails, or that a dialect cannot follow to its end.
ENDS: Final[tuple[Code, ...]] = (
    Code(
        "worker_lost",
        None,
        "The worker was lost",
        "The worker that generated the answer died or lost the database. No other worker could continue the answer, "
        "and it may not restart, or was tried too often.",
        "Keep the partial answer, or create the stream again.",
        "Find out why workers die: out of memory, or killed before `BATON_WORKER_DRAIN_SECONDS`. "
        "`BATON_ON_WORKER_LOST` and `BATON_MAX_ATTEMPTS` control whether another worker continues or restarts the "
        "stream.",
    ),
    Code(
        "worker_left",
        None,
        "The worker left",
        "The worker that generated the answer was deployed or stopped, and no other worker could continue the answer.",
        "Create the stream again: nothing is wrong with the request.",
        "A generator that can continue, or a `BATON_WORKER_DRAIN_SECONDS` that is longer than the answers, avoids it. "
        "`BATON_ON_WORKER_LOST` controls whether another worker restarts the stream.",
    ),
    Code(
        "reset",
        None,
        "The answer starts again",
        "A worker starts the answer again, which the dialect cannot express. The stream itself continues.",
        "Discard the partial answer, and get the stream by its id.",
        "See `worker_lost` and `worker_left`. A generator that continued, but not as it began, restarts too: the "
        "worker's log has the stream's id.",
    ),
    Code(
        "cancelled",
        None,
        "The answer was cancelled",
        "A client cancelled the stream, or it had no viewer for longer than it allows.",
        "Keep the partial answer.",
        _NOTHING,
    ),
    Code(
        "unwatched",
        None,
        "Nobody watched the answer",
        "The stream had no viewer for longer than it allows, so it was cancelled.",
        "Keep the partial answer, or create the stream again.",
        "`BATON_CANCEL_WHEN_UNWATCHED_SECONDS` is the limit if the request sets none.",
    ),
    Code(
        "producer_lost",
        None,
        "The producer was lost",
        "The program that wrote the answer over HTTP died or went silent for longer than the stream allows.",
        "Keep the partial answer, or ask again.",
        "Find out why the producer dies. One that is silent on purpose holds `GET /v1/streams/{id}/end` as a sign of "
        "life. `BATON_IDLE_TIMEOUT_SECONDS` is the limit if the stream sets none.",
    ),
    Code(
        "queue_timeout",
        None,
        "No worker was free",
        "The stream waited for a worker longer than it allows.",
        "Try again later.",
        "Run more workers, or raise `BATON_WORKER_CONCURRENCY` or `BATON_QUEUE_TIMEOUT_SECONDS`.",
    ),
    Code(
        "wait_timeout",
        None,
        "Nobody answered in time",
        "The stream waited for an input, such as an approval, and none came in time.",
        "Ask again.",
        "`BATON_MAX_WAIT_SECONDS` is the limit if the generator sets none. Its clients need the scope `input`.",
    ),
    Code(
        "max_duration",
        None,
        "The answer took too long",
        "The generator ran longer than the stream allows.",
        "Keep the partial answer, or ask for less.",
        "`BATON_MAX_DURATION_SECONDS` is the limit if the request sets none.",
    ),
    Code(
        "idle_timeout",
        None,
        "The generator was silent",
        "The generator yielded nothing for longer than the stream allows.",
        "Try again.",
        "`BATON_IDLE_TIMEOUT_SECONDS` is the limit if the request sets none. Check whether the generator hangs.",
    ),
    Code(
        "generator_error",
        None,
        "The generator failed",
        "The generator raised an exception that is not a `GenerationError`.",
        "Try again once. If that fails too, report the stream's id.",
        "The worker's log has the traceback, by the stream's id.",
    ),
    Code(
        "invalid_event",
        None,
        "The generator yielded an invalid event",
        "The generator yielded something that is neither text nor an event.",
        "Report the stream's id.",
        "The worker's log says what the generator yielded. Correct the generator. `baton.Generator` documents all "
        "events.",
    ),
    Code(
        "max_turns",
        None,
        "The agent took too many turns",
        "The agent called its model more often than its framework or its options allow.",
        "Ask for less at once.",
        "An adapter of `baton.adapters` reports the framework's limit. Raise it where the agent is defined, or find "
        "out why the agent does not come to an end.",
    ),
    Code(
        "usage_limit",
        None,
        "The agent used too much",
        "The agent reached the limit of tokens or requests that its framework sets for one answer.",
        "Ask for less at once.",
        "An adapter of `baton.adapters` reports the framework's limit. Raise it where the agent is defined.",
    ),
    Code(
        "guardrail",
        None,
        "A guardrail of the agent refused",
        "A check of the agent refused the request or the answer.",
        "Ask something else.",
        "The guardrail is defined with the agent. The worker's log says which one it was.",
    ),
    Code(
        "storage_rejected",
        None,
        "The database refused an event",
        "The worker could not write an event to the log, even after retries.",
        "Keep the partial answer, and report the stream's id.",
        "The worker's log has the database's error, by the stream's id.",
    ),
    Code(
        "log_rewound",
        None,
        "The database lost the log's end",
        "A failover or a restore of the database lost events that clients may have received, and no worker still had "
        "them.",
        "Discard the partial answer, and create the stream again.",
        "Compare the standby's lag with `BATON_FAILOVER_KEEP_SECONDS`. If such a loss is not acceptable, make the "
        "standby synchronous (`synchronous_standby_names`). `docs/failover.md` says what to check.",
    ),
    Code(
        "event_too_large",
        None,
        "An event is too large",
        "The generator yielded an event with more bytes than allowed.",
        "Keep the partial answer, and ask for less at once.",
        "`BATON_MAX_EVENT_BYTES` is the limit. Check what the generator puts into one event.",
    ),
    Code(
        "too_many_events",
        None,
        "The answer has too many events",
        "The generator yielded more events than a stream may have.",
        "Keep the partial answer, and ask for a shorter one.",
        "`BATON_MAX_STREAM_EVENTS` is the limit. Check whether the generator ever ends.",
    ),
    Code(
        "stream_too_large",
        None,
        "The answer is too large",
        "The events of the stream have more bytes in total than allowed.",
        "Keep the partial answer, and ask for a shorter one.",
        "`BATON_MAX_STREAM_BYTES` is the limit. Check whether the generator ever ends.",
    ),
    Code(
        "invalid_input",
        None,
        "The generator does not accept this input",
        "The `input` lacks something that the generator needs, or has something that it does not accept.",
        "Correct what the message names.",
        _NOTHING,
    ),
    Code(
        "provider_not_configured",
        None,
        "No model is configured",
        "Neither the input nor the settings name a model.",
        'Put "model" into the input.',
        "Set `BATON_OPENAI_MODEL` or `BATON_ANTHROPIC_MODEL`.",
    ),
    Code(
        "provider_invalid_request",
        None,
        "The provider rejected the request",
        "The model provider rejected what the input asks for.",
        "Correct what the message names.",
        _NOTHING,
    ),
    Code(
        "provider_context_length",
        None,
        "The input is too long for the model",
        "The conversation has more tokens than the model accepts.",
        "Send less: a shorter conversation, or smaller files.",
        "Use a model with a larger context, or make the generator shorten the conversation.",
    ),
    Code(
        "provider_content_filter",
        None,
        "The provider's content filter blocked the answer",
        "The model provider refuses to answer this input.",
        "Rephrase the question.",
        "Check the provider's content filter settings.",
    ),
    Code(
        "provider_auth_failed",
        None,
        "The provider denied access",
        "The model provider rejected this service's key, or its key does not allow this use.",
        "Report it. A retry does not help.",
        "Check that the provider's key is valid and may use the model.",
    ),
    Code(
        "provider_rate_limited",
        None,
        "The provider's rate limit is reached",
        "The model provider got too many requests, or too many tokens.",
        "Try again later. The message may say when.",
        "Ask the provider for a higher limit, or give the model a `fallback` or a `max_concurrency` in `BATON_MODELS`.",
    ),
    Code(
        "provider_timeout",
        None,
        "The provider did not answer in time",
        "The model provider was silent for longer than the limit.",
        "Try again.",
        "`BATON_PROVIDER_TIMEOUT_SECONDS` is the limit.",
    ),
    Code(
        "provider_unreachable",
        None,
        "The provider cannot be reached",
        "The worker could not connect to the model provider.",
        "Try again later.",
        "Check that workers can reach the provider, and check `BATON_OPENAI_BASE_URL`, `BATON_ANTHROPIC_BASE_URL` and "
        "each `base_url` in `BATON_MODELS`.",
    ),
    Code(
        "provider_cut_off",
        None,
        "The provider's answer broke off",
        "The model provider's answer ended before it was complete.",
        "Keep the partial answer, or try again.",
        "Check whether a proxy between the workers and the provider cuts long connections.",
    ),
    Code(
        "provider_error",
        None,
        "The provider failed",
        "The model provider failed, or sent something that Baton cannot read.",
        "Try again.",
        "See the provider's status page. The worker's log has the stream's id.",
    ),
    Code(
        "other",
        None,
        "The generator gave an invalid code",
        "The generator ended the stream with an invalid code. A code is 1 to 64 of `a-z`, `0-9`, `_`, `.` and `-`.",
        "Read the message.",
        "Correct the generator: `GenerationError(code, message)`.",
    ),
)

# The HTTP statuses of answers that failed, in APIs that have one for them. The others get 500.
_STATUSES: Final = {
    "cancelled": 409,
    "invalid_input": 400,
    "provider_invalid_request": 400,
    "provider_rate_limited": 429,
}

# How a stream ends that its producer did not close. An append to it is refused with this code.
ENDED_FROM_OUTSIDE: Final = frozenset({"cancelled", "unwatched", "producer_lost", "max_duration", "log_rewound"})


def status_of_end(code: str) -> int:
    """Return the HTTP status of an answer that failed or was cancelled, for clients that know no other outcome."""
    return _STATUSES.get(code, 500)


def _errors(kind: type[RequestError] = RequestError) -> Iterator[type[RequestError]]:
    for error in kind.__subclasses__():
        if "code" in vars(error):
            yield error
        yield from _errors(error)


def _described(error: type[RequestError]) -> Code:
    advice = ADVICE.get(error.code, Advice("Do what the message says.", _NOTHING))
    happened = " ".join((error.__doc__ or "").split())
    return Code(error.code, error.status, error.title, happened, advice.client, advice.operator)


def _one_of(codes: tuple[Code, ...], description: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "enum": [code.code for code in codes], "description": description})


# Why a request can be refused. `ENDS` says why a stream can end.
REFUSALS: Final = tuple(_described(error) for error in _errors())

# The codes as types, on which a client of the OpenAPI document can branch. A later release may add codes.
RefusalCode = TypeAliasType("RefusalCode", Annotated[str, _one_of(REFUSALS, "Why a request is refused.")])
EndCode = TypeAliasType("EndCode", Annotated[str, _one_of(ENDS, "Why a stream failed, or cannot be followed.")])
