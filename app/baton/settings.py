"""Settings, read from the environment (`BATON_…`) and from the file `.env` if it exists."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import orjson
from pydantic import (
    AliasChoices,
    Field,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, DotEnvSettingsSource, EnvSettingsSource, NoDecode, SettingsConfigDict

from . import cores, database_entries, model_entries, webhook_addresses
from .database_entries import DatabaseEntry
from .dsn.connection_strings import Dsn
from .errors import ConfigurationError

# The part of an address's path before Baton's own. Browsers would resolve segments of dots.
PATH_PREFIX: Final = r"(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+){0,32}/?"

LogFormat: TypeAlias = Literal["auto", "json", "text"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]

# What an HTTP header can carry.
_NAME = re.compile(r"[!-~]([ -~]{0,98}[!-~])?")
_GENERATOR = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})=(?P<target>[A-Za-z_][\w.]*:[A-Za-z_]\w*)")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN_SECRET = re.compile(r"[!-~]{32,}")
# As browsers write it. `null` is no origin, because any page can claim it.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z*,]+")
# Never trimmed: a space at an end of a name is a mistake.
_NAMES = frozenset({"pod_name", "worker_name"})
_WORD = re.compile(r"[!-~]+")
# A token of RFC 9110 without `*`, which could be read as a wildcard.
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]{1,100}")
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_OUT_OF_RANGE = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})
# Variables of Baton's clients and of `compose.yaml`, and those that Kubernetes sets for each Service.
_FOREIGN = re.compile(r"BATON_(URL|KEY|IMAGE|(.+_)?PORT(_.+)?|(.+_)?SERVICE_(HOST|PORT_.+))")


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseSettings):
    """All of Baton's settings. Names carry units."""

    model_config = SettingsConfigDict(
        env_prefix="BATON_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    database_url: SecretStr | None = Field(
        None, description="The database: `postgresql://user:password@host:port/name`. Only `baton demo` runs without it"
    )
    listen_database_url: SecretStr | None = Field(
        None,
        description="A DSN for LISTEN that bypasses a transaction pooler; the default is `BATON_DATABASE_URL`",
    )
    databases: Annotated[dict[str, DatabaseEntry], NoDecode] = Field(
        default_factory=dict,
        description="Several databases instead of `BATON_DATABASE_URL`, as a JSON object: name → "
        '`{"url": …, "listen_url": …, "number": 0, "weight": 1}`. See [several databases](several-databases.md)',
    )
    database_pool_size: int = Field(
        8, ge=1, le=200, description="Maximum number of connections that a pod uses for queries"
    )
    tenant_pool_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="Share of a pod's query connections that one tenant may use while other tenants wait",
    )
    database_timeout_seconds: float = Field(
        10,
        gt=0,
        le=300,
        description="Longest time that a pod waits for the database to answer a request, or for a new connection",
    )

    host: str = Field("127.0.0.1", description="Address that a pod listens on, and that a worker serves its metrics on")
    port: int = Field(8000, ge=0, le=65535, description="Port that a pod listens on; 0 takes a free one")
    pod_name: str = Field(
        default_factory=_process_name,
        description="Name of a pod in `X-Baton-Pod`: 1 to 100 printable ASCII characters",
    )
    with_worker: bool = Field(
        False, description="Run a worker in the process of a pod, for small deployments: `baton serve --with-worker`"
    )
    processes: int = Field(
        1,
        ge=1,
        le=256,
        description="Number of processes that `baton serve` or `baton worker` runs, each a pod or a worker of its own; "
        "`auto` is one for each core. Limits of pods and workers hold for each process",
    )
    path_prefix: str = Field(
        "",
        description="Path that a proxy strips before it passes requests on: `/api/ai`. Addresses in responses begin "
        "with it",
    )
    trusted_proxies: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset,
        description="Proxies whose `X-Forwarded-Prefix` overrides `BATON_PATH_PREFIX`, and whose `X-Forwarded-Proto` "
        "counts: addresses or networks, `10.0.0.0/8`, comma-separated; `*` means every peer",
    )
    allowed_origins: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset,
        description="Origins whose pages may use a pod from a browser: `https://chat.example.com`, comma-separated; "
        "`*` means all, and then browsers send no cookies",
    )
    allowed_headers: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset,
        description="Additional request headers that pages of these origins may send: `x-csrf-token,x-app-version`; "
        "`*` means all. The headers of the usual clients are always allowed",
    )
    allow_anonymous: bool = Field(
        False,
        description="Let callers in without a credential: anyone who can reach a pod can read and erase every stream",
    )
    keys_refresh_seconds: float = Field(
        3, gt=0, le=60, description="How often a pod reads the API keys; a revoked key may work for this long"
    )
    token_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict,
        description="Secrets that sign stream tokens: `kid=secret`, comma-separated. The first signs, all verify; "
        "`baton keys token-secret` makes one",
    )
    token_lifetime_seconds: float = Field(86_400, gt=0, le=86_400, description="Longest lifetime of a stream token")
    token_grace_seconds: float = Field(
        900, ge=0, le=86_400, description="How long a stream token works after the stream's end, at most"
    )
    jwks_url: str | None = Field(
        None,
        description="URL of your identity provider's public keys: `https://host/path`. Set it to accept the "
        "provider's tokens",
    )
    jwt_issuer: str | None = Field(None, description="`iss` that the identity provider's tokens must have")
    jwt_audience: str | None = Field(None, description="`aud` that the identity provider's tokens must have")
    jwt_tenant_claim: str = Field(
        "tenant",
        min_length=1,
        description="Claim of the provider's tokens that holds the tenant; `a.b` is a path into objects",
    )
    jwt_scope_claim: str = Field(
        "scope",
        min_length=1,
        description="Claim of the provider's tokens that holds the scopes (create, read, cancel, produce, input, "
        "admin): a list, or words in a text",
    )
    jwt_max_lifetime_seconds: float = Field(
        86_400,
        gt=0,
        le=366 * 86_400,
        description="Longest lifetime of the identity provider's tokens, from `iat` to `exp`; pods refuse a token "
        "that lives longer",
    )
    pod_heartbeat_seconds: float = Field(
        2, gt=0, le=60, description="How often a pod writes its state and counters to its row, for `/console`"
    )
    demo: bool = Field(
        False,
        description="Serve `/demo`, whose page kills pods and workers, on loopback only; `baton demo` sets it",
    )
    sse_keep_alive_seconds: float = Field(
        15, gt=0, le=300, description="Send a keep-alive comment to a client after this much silence"
    )
    reconnect_milliseconds: int = Field(
        1000,
        ge=0,
        le=60_000,
        description="How long a client waits before it reconnects after a lost connection: `retry:`",
    )
    log_poll_seconds: float = Field(
        1, gt=0, le=60, description="How often a pod polls for events whose notification was lost"
    )
    relay_window_bytes: int = Field(
        131_072,
        ge=4096,
        le=64 << 20,
        description="Size of the window of recent events that a pod keeps in memory for each stream",
    )
    max_body_bytes: int = Field(
        32 << 20,
        ge=1024,
        le=256 << 20,
        description="Largest request body. A page may send its whole conversation, with all images, each time",
    )
    max_input_bytes: int = Field(
        32 << 20,
        ge=256,
        le=256 << 20,
        description="Largest `input` of a stream, as JSON, in every dialect: a conversation with all its images. All "
        "inputs that are sent to one stream may have this size, too",
    )
    max_total_body_bytes: int = Field(
        128 << 20,
        ge=1024,
        le=1 << 40,
        description="Bytes of request bodies that a pod holds at once, not counting the first 64 KiB of each body; "
        "never less than `BATON_MAX_BODY_BYTES`. One tenant always leaves room for another tenant's largest body",
    )
    max_tenant_streams: int = Field(
        1000, ge=1, le=1_000_000, description="Number of streams that have not ended that a tenant may have at once"
    )
    max_running_streams_per_tenant: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="Number of a tenant's streams that may run, or be next in line, at once; further ones wait for "
        "them. By default any number. Set it for pods and workers alike",
    )
    creates_per_second: float = Field(
        100,
        gt=0,
        le=100_000,
        description="Streams that one caller may create per second over time, on all pods together",
    )
    creates_burst: int = Field(
        500, ge=1, le=1_000_000, description="Streams that one caller may create at once after a pause"
    )
    reads_per_second: float = Field(
        1000,
        gt=0,
        le=1_000_000,
        description="Requests, other than creates, that one caller may make per second over time on one pod; a list "
        "counts once more for each 20 rows that it scans",
    )
    reads_burst: int = Field(
        10_000, ge=1, le=10_000_000, description="Requests that one caller may make at once on one pod after a pause"
    )
    appends_per_second: float = Field(
        5000,
        gt=0,
        le=1_000_000,
        description="Appends to external streams that one caller may make per second over time on one pod",
    )
    appends_burst: int = Field(
        20_000, ge=1, le=10_000_000, description="Appends that one caller may make at once on one pod after a pause"
    )
    max_external_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=1 << 40,
        description="Largest total size of the events of an external stream, as they are stored; an append that "
        "exceeds it is refused",
    )
    external_max_seconds: float = Field(
        7 * 86_400,
        gt=0,
        le=366 * 86_400,
        description="Longest life of an external stream whose messages are not Baton's events: an open one is then "
        "closed. For the others `BATON_MAX_DURATION_SECONDS` counts",
    )
    max_subscribers: int = Field(
        5000,
        ge=1,
        le=1_000_000,
        description="Number of subscribers that a pod accepts; at the limit `/readyz` sends clients elsewhere",
    )
    max_tenant_subscribers: int = Field(
        4000, ge=1, le=1_000_000, description="Number of subscribers that a tenant may have on one pod"
    )
    max_stream_subscribers: int = Field(
        1000, ge=1, le=1_000_000, description="Number of subscribers that a stream may have on one pod"
    )
    max_connections: int = Field(
        10_000,
        ge=1,
        le=1_000_000,
        description="Number of TCP connections that a pod accepts; beyond it, connections without a request are "
        "closed first",
    )
    max_header_bytes: int = Field(
        32_768, ge=1024, le=1 << 20, description="Largest request header, including its first line and trailers"
    )
    header_timeout_seconds: float = Field(
        10,
        gt=0,
        le=300,
        description="How long a request's header may take to arrive, from the connection or from its first byte",
    )
    body_timeout_seconds: float = Field(
        30, gt=0, le=3600, description="How long a pod waits for a request's body, or for each further MiB of it"
    )
    http_keep_alive_seconds: float = Field(
        5, gt=0, le=3600, description="How long a pod keeps an idle connection open for the next request"
    )
    write_timeout_seconds: float = Field(
        30, gt=0, le=3600, description="Cut a client that accepts no data for this long; it can resume"
    )
    max_connection_age_seconds: float = Field(
        240, gt=0, le=86_400, description="Longest life of a connection: a pod makes its client reconnect before that"
    )
    long_poll_seconds: float = Field(
        20,
        gt=0,
        le=300,
        description="How long a read with `live=long-poll`, of the Durable Streams protocol, waits for something new",
    )
    drain_seconds: float = Field(
        3, ge=0, le=60, description="How long a leaving pod takes to send its clients to other pods"
    )
    listen_probe_seconds: float = Field(
        5, gt=0, le=60, description="How often a pod or worker probes its LISTEN connection"
    )

    worker_concurrency: int = Field(200, ge=1, le=100_000, description="Number of streams that one worker runs at once")
    worker_max_total_input_bytes: int = Field(
        128 << 20,
        ge=1024,
        le=1 << 40,
        description="Bytes of inputs of the streams that one worker runs at once; at the limit the worker claims no "
        "stream until one ends",
    )
    worker_name: str = Field(
        default_factory=_process_name,
        description="Name of a worker in its log and its row: 1 to 100 printable ASCII characters",
    )
    worker_metrics_port: int | None = Field(
        None, ge=0, le=65535, description="Port on which a worker serves its metrics; by default it serves none"
    )
    flush_interval_milliseconds: float = Field(
        40,
        ge=0,
        le=10_000,
        description="A worker's pause between two writes to the log; it grows to four times this when writes are slow",
    )
    buffer_events: int = Field(
        1024,
        ge=1,
        le=1_000_000,
        description="Events of a stream that may wait for a write; at the limit its generator waits",
    )
    max_event_bytes: int = Field(
        1 << 20, ge=1024, le=64 << 20, description="Largest event, as JSON; a larger one ends its stream as failed"
    )
    max_stream_events: int = Field(
        500_000, ge=1, le=2_000_000_000, description="Largest number of events in a stream; one more ends it as failed"
    )
    max_stream_bytes: int = Field(
        64 << 20,
        ge=1024,
        le=1 << 40,
        description="Largest total size of the events of a stream since it last started over, as JSON; more end it as "
        "failed",
    )
    max_state_bytes: int = Field(
        1 << 20, ge=1024, le=64 << 20, description="Largest state of a generator, as JSON; a larger one ends its stream"
    )
    worker_heartbeat_seconds: float = Field(
        0.5, gt=0, le=60, description="How often a worker updates its heartbeat and reads cancellations"
    )
    lease_seconds: float = Field(
        6,
        gt=0,
        le=600,
        description="How long a worker may be silent before it counts as dead; at least 3 times "
        "`BATON_WORKER_HEARTBEAT_SECONDS`",
    )
    failover_keep_seconds: float = Field(
        10,
        ge=0,
        le=600,
        description="How long a worker keeps what it has written, to append it again if a failover of the database "
        "loses it: more than a standby may lag behind; with 0, answers that lose events end as failed",
    )
    failover_keep_bytes: int = Field(
        32 << 20, ge=0, le=16 << 30, description="Most memory that a worker uses for what it keeps for a failover"
    )
    failover_settle_seconds: float = Field(
        15,
        ge=0,
        le=600,
        description="How long after a failover a pod waits for workers to append lost events again, before it refuses "
        "clients that have received them; more than `BATON_LEASE_SECONDS`",
    )
    worker_hang_seconds: float = Field(
        60,
        gt=0,
        le=3600,
        description="How long a generator may block its worker's event loop before the worker gives up its streams",
    )
    queue_poll_seconds: float = Field(
        1, gt=0, le=60, description="How often a worker polls for queued streams whose notification was lost"
    )
    on_worker_lost: Literal["continue", "retry", "fail"] = Field(
        "continue",
        description="What happens to a stream whose worker dies or leaves. `continue`: another worker continues it if "
        "its generator can, and restarts it otherwise. `retry`: another worker restarts it. `fail`: it ends as failed. "
        "A stream of OpenAI's APIs, the AI SDK or plain text, which cannot express a restart, ends as failed instead",
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=100,
        description="Number of workers that may die while they run a stream before it fails; for an answer that "
        "continues, since it last grew",
    )
    notify_payloads: bool = Field(
        True,
        description="For workers: put events into notifications, which any role of the database can read. For pods: "
        "deliver events from signed notifications; if false, pods read the log",
    )

    max_duration_seconds: float = Field(3600, gt=0, le=7 * 86_400, description="Longest run of a stream")
    max_wait_seconds: float = Field(
        7 * 86_400,
        gt=0,
        le=90 * 86_400,
        description="How long a stream may wait for an input, unless its generator sets a shorter time; then it ends",
    )
    idle_timeout_seconds: float = Field(
        300, gt=0, le=86_400, description="Longest silence of a generator before its stream ends as failed"
    )
    silent_after_seconds: float = Field(
        30, gt=0, le=86_400, description="Count a generator that has yielded nothing for this long as silent"
    )
    queue_timeout_seconds: float = Field(
        600, gt=0, le=7 * 86_400, description="Longest time that a stream waits for a worker before it fails"
    )
    cancel_when_unwatched_seconds: float | None = Field(
        None,
        gt=0,
        le=86_400,
        description="Cancel a stream that has had no viewer for this long; by default Baton cancels none",
    )
    watch_interval_seconds: float = Field(
        5, gt=0, le=300, description="How often a pod records which streams have viewers"
    )
    worker_drain_seconds: float = Field(
        6,
        ge=0,
        le=3600,
        description="How long a leaving worker lets streams end before it hands the rest over. Streams that another "
        "worker can continue are handed over at once",
    )

    on_end: str | None = Field(
        None,
        description="Your end hook, `module:function`, which workers run in the transaction that ends a stream, to "
        "save the answer in your own tables",
    )
    on_end_timeout_seconds: float = Field(
        10, gt=0, le=300, description="Longest run of the end hook; one that takes longer is rolled back and runs again"
    )
    webhook_url: str | None = Field(
        None,
        description="URL that workers call when a stream has ended, unless its creator named another one: "
        "`https://host/path`",
    )
    webhook_hosts: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset,
        description="Further hosts that `webhook` of a stream may name, comma-separated: `hooks.example.com`, "
        "`hooks.example.com:8443`, or `http://host:port` for one without TLS. By default only that of "
        "`BATON_WEBHOOK_URL`",
    )
    webhook_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Secrets with which workers sign calls of webhooks, each `whsec_…`, comma-separated; "
        "`baton keys webhook-secret` makes one. Each call has a signature of each",
    )

    partition_days_ahead: int = Field(
        7,
        ge=1,
        le=365,
        description="How many days ahead workers, `baton migrate` and `baton maintain` create partitions",
    )
    partition_days: int | None = Field(
        None,
        ge=1,
        le=366,
        description="Number of days that a new partition of the log holds, set by `baton maintain`; by default 1, and "
        "more if the retention would need more than 400 partitions",
    )
    retention_days: int = Field(
        30, ge=1, le=36_500, description="How many days `baton maintain` keeps a stream after the day it was created"
    )
    idempotency_hours: float = Field(24, gt=0, le=24 * 30, description="How long pods remember an `Idempotency-Key`")

    generators: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="Your own generators: `name=module:function`, comma-separated"
    )
    enabled_generators: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset, description="Generators to offer, comma-separated; by default all"
    )
    models: Annotated[dict[str, dict[str, Any]], NoDecode] = Field(
        default_factory=dict,
        repr=False,  # a preset may hold a key for its server
        description='Additional names for generators, as a JSON object: name → generator, or → `{"generator": name, '
        "…}` with fields that override the input; `model` defaults to the additional name. The keys `base_url`, "
        "`api_key_env`, `fallback`, `max_concurrency` and `resume` are for Baton",
    )
    default_generator: str = Field(
        "replay",
        description="Generator of streams whose request names none; if empty, each request has to name one, and pods "
        "start without any worker or generator, as for streams that are only written over HTTP",
    )
    replay_speed: float = Field(1, gt=0, le=1000, description="Speed of `replay`, as a multiple of the recorded speed")

    openai_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("BATON_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="API key for OpenAI, or for the server of `BATON_OPENAI_BASE_URL`",
    )
    openai_base_url: str | None = Field(
        None,
        validation_alias=AliasChoices("BATON_OPENAI_BASE_URL", "OPENAI_BASE_URL"),
        description="Base URL of a server that speaks OpenAI's API: `https://host/path`",
    )
    openai_model: str | None = Field(None, description="Model for streams whose input names none")
    openai_api: Literal["responses", "chat"] = Field(
        "responses", description="OpenAI API to call: Responses or Chat Completions"
    )
    anthropic_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("BATON_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        description="API key for Anthropic, or for the server of `BATON_ANTHROPIC_BASE_URL`",
    )
    anthropic_base_url: str | None = Field(
        None,
        validation_alias=AliasChoices("BATON_ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL"),
        description="Base URL of a server that speaks Anthropic's API: `https://host/path`",
    )
    anthropic_model: str | None = Field(None, description="Model for streams whose input names none")
    anthropic_max_tokens: int = Field(
        4096, ge=1, description="Longest answer, in tokens, of a stream whose input sets no limit"
    )
    provider_timeout_seconds: float = Field(
        120, gt=0, description="Longest silence of a model provider; connecting may take 10 s at most"
    )
    provider_max_retries: int = Field(
        2,
        ge=0,
        le=10,
        description="How often a worker asks a model again before an answer begins; then it asks the next one in the "
        "entry's `fallback`",
    )
    provider_max_wait_seconds: float = Field(
        30,
        ge=0,
        le=3600,
        description="How long after the first request for an answer a worker still asks a model again. A provider that "
        "asks to wait longer is not asked again",
    )

    log_format: LogFormat = Field(
        "auto", description="Format of the log: `auto` is text at a terminal, and JSON anywhere else"
    )
    log_level: LogLevel = Field("info", description="Lowest severity that Baton logs; libraries never log details")
    google_cloud_project: str | None = Field(
        None,
        validation_alias=AliasChoices("BATON_GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_PROJECT"),
        description="Google Cloud project of the traces in JSON log lines",
    )

    # The variables that `secret` has read. A pod asks for them with each stream that is created.
    _secrets: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("*", mode="before")
    @classmethod
    def _is_trimmed(cls, value: Any, info: ValidationInfo) -> Any:
        """Strip the line break at the end of a file that is mounted as a secret, and pasted spaces."""
        if isinstance(value, str) and info.field_name not in _NAMES:
            return value.strip()
        if isinstance(value, SecretStr):
            return SecretStr(value.get_secret_value().strip())
        return value

    @field_validator("openai_api_key", "anthropic_api_key")
    @classmethod
    def _is_one_word(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value() and not _WORD.fullmatch(value.get_secret_value()):
            raise ValueError("it must be printable ASCII characters without spaces or line breaks")
        return value

    @field_validator("processes", mode="before")
    @classmethod
    def _is_a_number_or_auto(cls, value: Any) -> Any:
        text = value.strip() if isinstance(value, str) else ""
        if text == "auto":
            return min(cores.available(), 256)
        if text and not re.fullmatch(r"-?[0-9]{1,9}", text):
            raise ValueError("it must be a number of processes, or auto")
        return value

    @field_validator("database_url", "listen_database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        Dsn.parse(value.get_secret_value())
        return value

    @field_validator("databases", mode="before")
    @classmethod
    def _parse_databases(cls, value: Any) -> Any:
        return database_entries.parse(_json_object(value))

    @field_validator("pod_name", "worker_name")
    @classmethod
    def _is_printable(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("it must be 1 to 100 printable ASCII characters, without a space at either end")
        return value

    @field_validator("token_keys", mode="before")
    @classmethod
    def _parse_token_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [item.strip().partition("=") for item in value.split(",") if item.strip()]
        if len({kid for kid, _, _ in pairs}) < len(pairs):
            raise ValueError("each kid may appear only once")
        return {kid: secret for kid, _, secret in pairs}

    @field_validator("token_keys")
    @classmethod
    def _are_secrets(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if not all(
            _KID.fullmatch(kid) and _TOKEN_SECRET.fullmatch(key.get_secret_value()) for kid, key in value.items()
        ):
            raise ValueError(
                "it must look like kid=secret,kid2=secret2, each secret of at least 32 printable ASCII characters "
                "without spaces or commas: `baton keys token-secret` makes one"
            )
        return value

    @field_validator("openai_base_url", "anthropic_base_url", "jwks_url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if not value:
            return None
        if not model_entries.is_http(value):
            raise ValueError("it must look like https://host:port/path")
        return value

    @field_validator("generators", mode="before")
    @classmethod
    def _parse_generators(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = {}
        for number, item in enumerate(filter(None, (part.strip() for part in value.split(","))), 1):
            match = _GENERATOR.fullmatch(item)
            if not match:
                raise ValueError(f"item {number} must look like name=package.module:function")
            found[match["name"]] = match["target"]
        return found

    @field_validator("on_end")
    @classmethod
    def _is_target(cls, value: str | None) -> str | None:
        if value and not _TARGET.fullmatch(value):
            raise ValueError("it must look like package.module:function")
        return value or None

    @field_validator("webhook_url")
    @classmethod
    def _is_webhook(cls, value: str | None) -> str | None:
        if value:
            webhook_addresses.origin_of(value)
        return value or None

    @field_validator("webhook_hosts", mode="before")
    @classmethod
    def _parse_webhook_hosts(cls, value: Any) -> Any:
        items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
        return frozenset(webhook_addresses.listed_origin(item) for item in items)

    @field_validator("webhook_secrets", mode="before")
    @classmethod
    def _parse_webhook_secrets(cls, value: Any) -> Any:
        return [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value

    @field_validator("webhook_secrets")
    @classmethod
    def _are_webhook_secrets(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in value:
            webhook_addresses.key_of(secret.get_secret_value())
        return value

    @field_validator("enabled_generators", "allowed_origins", "allowed_headers", "trusted_proxies", mode="before")
    @classmethod
    def _parse_names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: frozenset[str]) -> frozenset[str]:
        if not all(_ORIGIN.fullmatch(origin) for origin in value - {"*"}):
            raise ValueError("each must look like https://host or https://host:port, in lower case")
        if "*" in value and len(value) > 1:
            raise ValueError("* means all origins, and must be the only item")
        return value

    @field_validator("path_prefix")
    @classmethod
    def _is_path(cls, value: str) -> str:
        if not re.fullmatch(PATH_PREFIX, value):
            raise ValueError("it must look like /api/ai: letters, digits and . _ ~ - between slashes")
        return value.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _are_networks(cls, value: frozenset[str]) -> frozenset[str]:
        try:
            return frozenset(item if item == "*" else str(ipaddress.ip_network(item)) for item in value)
        except ValueError:
            raise ValueError(
                "each must be an address or a network without host bits, such as 10.1.2.3 or 10.0.0.0/8, or *"
            ) from None

    @field_validator("allowed_headers")
    @classmethod
    def _are_header_names(cls, value: frozenset[str]) -> frozenset[str]:
        if not all(_HEADER.fullmatch(name) for name in value - {"*"}):
            raise ValueError("each must be the name of a header, such as x-csrf-token")
        if "*" in value and len(value) > 1:
            raise ValueError("* means all headers, and must be the only item")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        return model_entries.parse(_json_object(value))

    @model_validator(mode="after")
    def _databases_are_named_once(self) -> Self:
        if self.databases and (self.database_url or self.listen_database_url):
            raise ValueError(
                "BATON_DATABASES replaces BATON_DATABASE_URL and BATON_LISTEN_DATABASE_URL. Unset these two: the "
                'database of BATON_DATABASE_URL becomes an entry with "number": 0'
            )
        return self

    @model_validator(mode="after")
    def _no_generator_has_a_reserved_name(self) -> Self:
        for variable, names in (
            ("BATON_GENERATORS", self.generators),
            ("BATON_MODELS", self.models),
            ("BATON_ENABLED_GENERATORS", self.enabled_generators),
            ("BATON_DEFAULT_GENERATOR", {self.default_generator}),
        ):
            if model_entries.EXTERNAL in names:
                raise ValueError(
                    f"{variable} names the generator {model_entries.EXTERNAL!r}, which is reserved for streams that "
                    "are written over HTTP. Use another name"
                )
        return self

    @model_validator(mode="after")
    def _models_fit_their_generators(self) -> Self:
        model_entries.refuse_foreign_keys(self.models, self.generators)
        return self

    @model_validator(mode="after")
    def _provider_is_restricted(self) -> Self:
        if self.jwks_url and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError(
                "BATON_JWKS_URL also needs BATON_JWT_ISSUER and BATON_JWT_AUDIENCE. Without them, pods would accept a "
                "token that the identity provider issued for another service"
            )
        return self

    @model_validator(mode="after")
    def _lease_outlasts_heartbeats(self) -> Self:
        least = 3 * self.worker_heartbeat_seconds
        if self.lease_seconds < least:
            raise ValueError(
                f"BATON_LEASE_SECONDS must be at least 3 times BATON_WORKER_HEARTBEAT_SECONDS, {least:g} "
                f"(it is {self.lease_seconds:g}). Otherwise a worker whose heartbeat is late counts as dead"
            )
        return self

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings.

        Raises:
            ConfigurationError: a setting is missing or out of range; the message names each one.
        """
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            raise ConfigurationError(" ".join(_sentence(item) for item in error.errors())) from None

    @property
    def all_databases(self) -> tuple[DatabaseEntry, ...]:
        """Return the databases by number. The one of `BATON_DATABASE_URL` has the number 0 and no name.

        Raises:
            ConfigurationError: no database is configured.
        """
        if self.databases:
            return tuple(sorted(self.databases.values(), key=lambda entry: entry.number))
        return (DatabaseEntry("", 0, 1, SecretStr(self.dsn), self.listen_database_url),)

    def of(self, database: DatabaseEntry) -> Self:
        """Return the settings of what works with one database. With `BATON_DATABASE_URL`, these are the settings."""
        if not self.databases:
            return self
        return self.model_copy(
            update={"databases": {}, "database_url": database.url, "listen_database_url": database.listen_url}
        )

    @property
    def dsn(self) -> str:
        """Return the database's DSN in the form that asyncpg takes.

        Raises:
            ConfigurationError: no database is configured.
        """
        if self.databases:
            raise ConfigurationError(
                "BATON_DATABASES names several databases, and this works with one. Set BATON_DATABASE_URL to that one "
                "instead."
            )
        if self.database_url is None:
            raise ConfigurationError(
                "No database is configured. Set BATON_DATABASE_URL=postgresql://user:password@host:5432/name, "
                "or run `baton demo`, which starts its own database."
            )
        return _plain(self.database_url)

    @property
    def remarks(self) -> list[str]:
        """Return what an operator should know about the settings, without duplicates."""
        entries = self.databases.values()
        given = [
            self.database_url,
            self.listen_database_url,
            *(url for item in entries for url in (item.url, item.listen_url)),
        ]
        urls = filter(None, given)
        remarks = {remark for url in urls for remark in Dsn.parse(url.get_secret_value()).remarks}
        if unknown := self._unknown_variables():
            names = ", ".join(unknown)
            remarks.add(
                f"Ignored, as no setting has such a name: {names}. CHANGELOG.md lists the settings that were renamed."
            )
        return sorted(remarks)

    def _unknown_variables(self) -> list[str]:
        """Return the variables whose names begin as those of settings, and are not. Other programs' are left out."""
        cls = type(self)
        given = {*EnvSettingsSource(cls).env_vars, *DotEnvSettingsSource(cls).env_vars}
        names = {name.upper() for name in given}
        known = {f"BATON_{name.upper()}" for name in cls.model_fields}
        known |= {entry["api_key_env"] for entry in self.models.values() if "api_key_env" in entry}
        return sorted(name for name in names - known if name.startswith("BATON_") and not _FOREIGN.fullmatch(name))

    def secret(self, variable: str) -> SecretStr | None:
        """Return the key in an environment variable, or in `.env`; None if it is unset or empty.

        Raises:
            ConfigurationError: it cannot be a key.
        """
        if variable not in self._secrets:
            dotenv = DotEnvSettingsSource(type(self), case_sensitive=True).env_vars
            self._secrets[variable] = (os.environ.get(variable) or dotenv.get(variable) or "").strip()
        key = self._secrets[variable]
        if key and not _WORD.fullmatch(key):
            raise ConfigurationError(
                f"The environment variable {variable} must contain printable ASCII characters without spaces or line "
                "breaks."
            )
        return SecretStr(key) if key else None

    @property
    def webhook_origins(self) -> frozenset[str]:
        """Return the origins that webhooks may have."""
        own = [webhook_addresses.origin_of(self.webhook_url)] if self.webhook_url else []
        return self.webhook_hosts.union(own)

    @property
    def prepare(self) -> bool:
        """Return whether statements may be prepared. They may not if LISTEN bypasses a pooler that they use."""
        return self.listen_database_url is None

    @property
    def watchers_known_after_seconds(self) -> float:
        """How long pods need, after an outage, to note which streams were watched in the meantime."""
        return 2 * self.watch_interval_seconds + self.database_timeout_seconds

    @property
    def listen_dsn(self) -> str:
        """Return the DSN for the LISTEN connection."""
        return _plain(self.listen_database_url) if self.listen_database_url else self.dsn


def _json_object(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = orjson.loads(value or "{}")
        except orjson.JSONDecodeError:
            raise ValueError("it must be a JSON object") from None
    if not isinstance(value, dict):
        raise ValueError("it must be a JSON object")
    return value


def _plain(url: SecretStr) -> str:
    """Return a connection string as a URI, without SQLAlchemy's driver suffix."""
    text = url.get_secret_value()
    scheme, mark, rest = text.partition("://")
    if not mark or not scheme.startswith("postgres"):
        return Dsn.parse(text).uri()
    return f"{scheme.partition('+')[0]}://{rest}"


def _sentence(error: Any) -> str:
    """Return what is wrong with a setting. It quotes only a number out of range: anything else may be a secret."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        # An error about several settings names them. Its input is all settings, including secrets.
        return f"{message}."
    name = str(error["loc"][0])
    variable = name if name.isupper() else f"BATON_{name.upper()}"
    given = str(error["input"])
    shown = f" (it is {given})" if error["type"] in _OUT_OF_RANGE and _NUMBER.fullmatch(given) else ""
    return f"{variable}: {message}{shown}."
