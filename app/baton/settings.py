"""Settings: read from the environment (`BATON_…`) and, where there is one, from a file called `.env`."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from typing import Annotated, Any, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit

import orjson
from pydantic import (
    AliasChoices,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .dsn.connection_strings import Dsn
from .errors import ConfigurationError

# The path of an address before Baton's own, as it stands in addresses. Browsers would resolve segments of dots.
PATH_PREFIX: Final = r"(/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+){0,32}/?"

LogFormat: TypeAlias = Literal["auto", "json", "text"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error", "critical"]

# What an HTTP header can carry.
_NAME = re.compile(r"[!-~]([ -~]{0,98}[!-~])?")
_GENERATOR = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})=(?P<target>[A-Za-z_][\w.]*:[A-Za-z_]\w*)")
_KID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_TOKEN_SECRET = re.compile(r"[!-~]{32,}")
# As browsers write it: `null`, which any page can make itself, is none.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@A-Z*,]+")
# What is never trimmed: a space at an end of a name is a mistake.
_NAMES = frozenset({"pod_name", "worker_name"})
_WORD = re.compile(r"[!-~]+")
_BREAK = re.compile(r"[\s\x00-\x1f\x7f]")
# A token of RFC 9110, but for `*`, which could be mistaken for all names that begin so.
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]{1,100}")
_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_OUT_OF_RANGE = frozenset({"greater_than", "greater_than_equal", "less_than", "less_than_equal"})
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")


def _process_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}"


class Settings(BaseSettings):
    """All of Baton's settings, with the units in the names."""

    model_config = SettingsConfigDict(
        env_prefix="BATON_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    database_url: SecretStr | None = Field(
        None, description="The database: `postgresql://user:password@host:port/name`. Only `baton demo` does without"
    )
    listen_database_url: SecretStr | None = Field(
        None,
        description="A DSN for LISTEN that goes around a transaction pooler; without it `BATON_DATABASE_URL` is used",
    )
    database_pool_size: int = Field(8, ge=1, le=200, description="A pod's connections for queries, at most")
    tenant_pool_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="The part of a pod's connections for queries that one tenant may use while others ask, too",
    )
    database_timeout_seconds: float = Field(
        10,
        gt=0,
        le=300,
        description="A pod's longest wait for the database in answering a request, or for a new connection",
    )

    host: str = Field("127.0.0.1", description="The address that a pod listens on, and a worker for its metrics")
    port: int = Field(8000, ge=0, le=65535, description="The port that a pod listens on; 0 takes a free one")
    pod_name: str = Field(
        default_factory=_process_name,
        description="What a pod calls itself in `X-Baton-Pod`: 1 to 100 printable ASCII characters",
    )
    path_prefix: str = Field(
        "",
        description="The path that a proxy takes off before it passes requests on: `/api/ai`. Addresses in answers "
        "begin with it",
    )
    trusted_proxies: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset,
        description="Proxies whose `X-Forwarded-Prefix` replaces `BATON_PATH_PREFIX`: addresses or networks, "
        "`10.0.0.0/8`, comma-separated; `*` stands for every peer",
    )
    allowed_origins: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset,
        description="Origins whose pages may use a pod from a browser: `https://chat.example.com`, comma-separated; "
        "`*` stands for all, and then browsers send no cookies",
    )
    allowed_headers: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset,
        description="Request headers of your own that pages of these origins may send: `x-csrf-token,x-app-version`; "
        "`*` stands for all. Those that the usual clients send are allowed in any case",
    )
    allow_anonymous: bool = Field(
        False, description="Let everybody do everything: whoever reaches a pod can read and erase every stream"
    )
    keys_refresh_seconds: float = Field(
        3, gt=0, le=60, description="How often a pod reads the API keys: so long a revoked one may go on working"
    )
    token_keys: Annotated[dict[str, SecretStr], NoDecode] = Field(
        default_factory=dict,
        description="What streams' tokens are signed with: `kid=secret`, comma-separated. The first signs, all verify; "
        "`baton keys token-secret` makes one",
    )
    token_lifetime_seconds: float = Field(
        86_400, gt=0, le=86_400, description="How long a stream's token works, at most"
    )
    token_grace_seconds: float = Field(
        900, ge=0, le=86_400, description="How long a stream's token works after the stream's end, at most"
    )
    jwks_url: str | None = Field(
        None, description="The keys of your identity provider, whose tokens are then accepted: `https://host/path`"
    )
    jwt_issuer: str | None = Field(None, description="The `iss` of the identity provider's tokens")
    jwt_audience: str | None = Field(None, description="The `aud` that the identity provider's tokens must have")
    jwt_tenant_claim: str = Field(
        "tenant", min_length=1, description="Which claim of theirs is the tenant; `a.b` goes into objects"
    )
    jwt_scope_claim: str = Field(
        "scope",
        min_length=1,
        description="Which claim of theirs has the scopes (create, read, cancel, admin): a list, or words in a text",
    )
    jwt_lifetime_seconds: float = Field(
        86_400,
        gt=0,
        le=366 * 86_400,
        description="How long the identity provider's tokens may live, from `iat` to `exp`; one that lives longer is "
        "refused",
    )
    note_interval_seconds: float = Field(
        2, gt=0, le=60, description="How often a pod writes down that it lives and what it counts, for `/console`"
    )
    demo: bool = Field(
        False,
        description="Serve `/demo`, whose page kills pods, on loopback only; `baton demo --serve` sets it",
    )
    heartbeat_seconds: float = Field(15, gt=0, le=300, description="After so long a silence a client gets a comment")
    reconnect_milliseconds: int = Field(
        1000,
        ge=0,
        le=60_000,
        description="How long a client that lost its connection waits before it reconnects: `retry:`",
    )
    safety_poll_seconds: float = Field(
        1, gt=0, le=60, description="How often a pod looks for what notifications missed"
    )
    relay_window_bytes: int = Field(
        131_072, ge=4096, le=64 << 20, description="Recent events of each stream that a pod keeps in memory"
    )
    max_body_bytes: int = Field(
        32 << 20,
        ge=1024,
        le=256 << 20,
        description="The largest body of a request: a page may send its whole conversation, with all images, each time",
    )
    max_input_bytes: int = Field(
        32 << 20,
        ge=256,
        le=256 << 20,
        description="The largest `input` of a stream, as JSON, in every dialect: a conversation with all its images",
    )
    bodies_bytes: int = Field(
        128 << 20,
        ge=1024,
        le=1 << 40,
        description="Bytes of request bodies that a pod holds at once, without the first 64 KiB of each; never less "
        "than `BATON_MAX_BODY_BYTES`. One tenant leaves room for another one's largest body",
    )
    max_tenant_streams: int = Field(
        1000, ge=1, le=1_000_000, description="A tenant's streams that are queued or running at once"
    )
    creates_per_second: float = Field(
        100, gt=0, le=100_000, description="Streams that one caller may create, by all pods together, in the long run"
    )
    creates_burst: int = Field(
        500, ge=1, le=1_000_000, description="Streams that one caller may create at once, after a pause"
    )
    reads_per_second: float = Field(
        1000,
        gt=0,
        le=1_000_000,
        description="Requests that one caller may make on one pod in the long run, creates not counted; a list counts "
        "once more for each 20 rows that it looks at",
    )
    reads_burst: int = Field(
        10_000, ge=1, le=10_000_000, description="Requests that one caller may make on one pod at once, after a pause"
    )
    max_subscribers: int = Field(
        5000, ge=1, le=1_000_000, description="Subscribers of one pod; beyond it `/readyz` sends clients elsewhere"
    )
    max_tenant_subscribers: int = Field(4000, ge=1, le=1_000_000, description="A tenant's subscribers on one pod")
    max_stream_subscribers: int = Field(1000, ge=1, le=1_000_000, description="A stream's subscribers on one pod")
    max_connections: int = Field(
        10_000, ge=1, le=1_000_000, description="TCP connections of one pod; beyond it those that ask nothing give way"
    )
    max_header_bytes: int = Field(
        32_768, ge=1024, le=1 << 20, description="The largest header of a request, with its first line and trailers"
    )
    header_seconds: float = Field(
        10, gt=0, le=300, description="A request's header must be there so soon after the connection, or its first byte"
    )
    body_seconds: float = Field(
        30, gt=0, le=3600, description="The longest wait for a request's body, or for each further MiB of it"
    )
    keep_alive_seconds: float = Field(
        5, gt=0, le=3600, description="A connection is closed when no request follows the last one for so long"
    )
    write_timeout_seconds: float = Field(
        30, gt=0, le=3600, description="A client that accepts nothing for so long is cut off; it can resume"
    )
    max_connection_seconds: float = Field(
        240, gt=0, le=86_400, description="A client is sent away to reconnect before its connection is so old"
    )
    drain_seconds: float = Field(3, ge=0, le=60, description="Over this long a leaving pod sends its clients away")
    listen_probe_seconds: float = Field(5, gt=0, le=60, description="How often the LISTEN connection is probed")

    worker_concurrency: int = Field(200, ge=1, le=100_000, description="Streams that one worker runs at once")
    worker_input_bytes: int = Field(
        128 << 20,
        ge=1024,
        le=1 << 40,
        description="Bytes of the inputs of the streams that one worker runs at once; beyond it the worker claims no "
        "other until one ends",
    )
    worker_name: str = Field(
        default_factory=_process_name,
        description="What a worker calls itself in its log and its row: 1 to 100 printable ASCII characters",
    )
    worker_metrics_port: int | None = Field(
        None, ge=0, le=65535, description="A worker serves its metrics on this port; by default it does not"
    )
    flush_window_milliseconds: float = Field(
        40,
        ge=0,
        le=10_000,
        description="A worker's pause between two writes to the log, up to four times as long where they take long",
    )
    buffer_events: int = Field(
        1024, ge=1, le=1_000_000, description="Events of a stream that may wait to be written; then its generator waits"
    )
    max_event_bytes: int = Field(
        1 << 20, ge=1024, le=64 << 20, description="The largest event of a stream, as JSON; a larger one ends it"
    )
    max_stream_events: int = Field(
        500_000, ge=1, le=2_000_000_000, description="Events of a stream; one more ends it as failed"
    )
    max_stream_bytes: int = Field(
        64 << 20, ge=1024, le=1 << 40, description="Bytes of all events of a stream's run, as JSON; more end it"
    )
    worker_heartbeat_seconds: float = Field(
        0.5, gt=0, le=60, description="How often a worker shows that it lives, and learns what is cancelled"
    )
    lease_seconds: float = Field(
        6,
        gt=0,
        le=600,
        description="A worker silent for so long is dead; at least 3 times `BATON_WORKER_HEARTBEAT_SECONDS`",
    )
    poll_seconds: float = Field(
        1, gt=0, le=60, description="How often a worker looks for queued streams that notifications missed"
    )
    on_worker_lost: Literal["retry", "fail"] = Field(
        "retry", description="Another worker begins a dead worker's stream again, or the stream ends as failed"
    )
    max_attempts: int = Field(3, ge=1, le=100, description="Workers that may die over one stream before it fails")
    notify_payloads: bool = Field(
        True,
        description="Workers: put events into notifications, which any role of the database can hear. Pods: take "
        "events from signed notifications; else they read the log",
    )

    max_duration_seconds: float = Field(3600, gt=0, le=7 * 86_400, description="The longest run of a stream")
    idle_timeout_seconds: float = Field(300, gt=0, le=86_400, description="The longest silence of a generator")
    silent_seconds: float = Field(
        30, gt=0, le=86_400, description="Count a generator that has yielded nothing for this long as silent"
    )
    queue_timeout_seconds: float = Field(600, gt=0, le=7 * 86_400, description="The longest wait for a worker")
    cancel_when_unwatched_seconds: float | None = Field(
        None, gt=0, le=86_400, description="Cancel a stream that nobody has watched for so long; by default none is"
    )
    watch_interval_seconds: float = Field(
        5, gt=0, le=300, description="How often a pod notes which streams are watched"
    )
    leave_seconds: float = Field(
        6, ge=0, le=3600, description="A leaving worker's streams have so long to end; the rest it hands over"
    )

    partition_days_ahead: int = Field(
        7,
        ge=1,
        le=365,
        description="For how many days ahead workers, `baton migrate` and `baton maintain` create partitions",
    )
    partition_days: int | None = Field(
        None,
        ge=1,
        le=366,
        description="Days that a new partition of the log holds, set by `baton maintain`; by default 1, and more where "
        "the retention would take more than 400 partitions",
    )
    retention_days: int = Field(
        30, ge=1, le=36_500, description="For how many days `baton maintain` keeps streams after the day they began"
    )
    idempotency_hours: float = Field(24, gt=0, le=24 * 30, description="How long an `Idempotency-Key` is remembered")

    generators: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="Your own generators: `name=module:function`, comma-separated"
    )
    offered_generators: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset, description="Offer only these generators, comma-separated; by default all"
    )
    models: Annotated[dict[str, dict[str, Any]], NoDecode] = Field(
        default_factory=dict,
        repr=False,  # a preset may hold a key for its server
        description="Further names for generators, a JSON object: name → generator, or → "
        '`{"generator": name, …}` with what to lay over the input; `model` is the further name unless it is given',
    )
    default_generator: str = Field("replay", description="The generator of streams that are created without one")
    replay_speed: float = Field(1, gt=0, le=1000, description="How many times as fast `replay` plays")

    openai_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("BATON_OPENAI_API_KEY", "OPENAI_API_KEY"),
        description="The key for OpenAI's API, or for the server of `BATON_OPENAI_BASE_URL`",
    )
    openai_base_url: str | None = Field(
        None,
        validation_alias=AliasChoices("BATON_OPENAI_BASE_URL", "OPENAI_BASE_URL"),
        description="Any server that speaks OpenAI's API: `https://host/path`",
    )
    openai_model: str | None = Field(None, description="The model for streams whose input names none")
    openai_api: Literal["responses", "chat"] = Field("responses", description="Which of OpenAI's two APIs to call")
    anthropic_api_key: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("BATON_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY"),
        description="The key for Anthropic's API, or for the server of `BATON_ANTHROPIC_BASE_URL`",
    )
    anthropic_base_url: str | None = Field(
        None,
        validation_alias=AliasChoices("BATON_ANTHROPIC_BASE_URL", "ANTHROPIC_BASE_URL"),
        description="Any server that speaks Anthropic's API: `https://host/path`",
    )
    anthropic_model: str | None = Field(None, description="The model for streams whose input names none")
    anthropic_max_tokens: int = Field(
        4096, ge=1, description="The longest answer of a stream whose input does not say, in tokens"
    )
    provider_timeout_seconds: float = Field(
        120, gt=0, description="The longest silence of a model provider; connecting may take 10 s at most"
    )
    provider_max_retries: int = Field(
        2, ge=0, le=10, description="How often a request to a provider is repeated, before an answer begins"
    )

    log_format: LogFormat = Field(
        "auto", description="How processes log: `auto` is for people at a terminal, and JSON anywhere else"
    )
    log_level: LogLevel = Field(
        "info", description="The least severity of what Baton logs; libraries log no details in any case"
    )
    google_cloud_project: str | None = Field(
        None,
        validation_alias=AliasChoices("BATON_GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_PROJECT"),
        description="The Google Cloud project whose traces the lines of the log are put to, in JSON",
    )

    @field_validator("*", mode="before")
    @classmethod
    def _is_trimmed(cls, value: Any, info: ValidationInfo) -> Any:
        """Take away the line break at the end of a file that is mounted as a secret, and spaces that were pasted."""
        if isinstance(value, str) and info.field_name not in _NAMES:
            return value.strip()
        if isinstance(value, SecretStr):
            return SecretStr(value.get_secret_value().strip())
        return value

    @field_validator("openai_api_key", "anthropic_api_key")
    @classmethod
    def _is_one_word(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and value.get_secret_value() and not _WORD.fullmatch(value.get_secret_value()):
            raise ValueError("it must be printable ASCII characters, with no space or line break in it")
        return value

    @field_validator("database_url", "listen_database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        Dsn.parse(value.get_secret_value())
        return value

    @field_validator("pod_name", "worker_name")
    @classmethod
    def _is_printable(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("it must be 1 to 100 printable ASCII characters, with no space at an end")
        return value

    @field_validator("token_keys", mode="before")
    @classmethod
    def _parse_token_keys(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        pairs = [item.strip().partition("=") for item in value.split(",") if item.strip()]
        if len({kid for kid, _, _ in pairs}) < len(pairs):
            raise ValueError("each kid may stand there once")
        return {kid: secret for kid, _, secret in pairs}

    @field_validator("token_keys")
    @classmethod
    def _are_secrets(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        if not all(
            _KID.fullmatch(kid) and _TOKEN_SECRET.fullmatch(key.get_secret_value()) for kid, key in value.items()
        ):
            raise ValueError(
                "it must look like kid=secret,kid2=secret2, each secret of 32 printable ASCII characters at least, "
                "with no space or comma: `baton keys token-secret` makes one"
            )
        return value

    @field_validator("openai_base_url", "anthropic_base_url", "jwks_url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if not value:
            return None
        try:
            parts = urlsplit(value)
            # urlsplit() drops line breaks without a word.
            well = parts.scheme in {"http", "https"} and bool(parts.hostname) and not _BREAK.search(value)
            _ = parts.port
        except ValueError:
            well = False
        if not well:
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

    @field_validator("offered_generators", "allowed_origins", "allowed_headers", "trusted_proxies", mode="before")
    @classmethod
    def _parse_names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

    @field_validator("allowed_origins")
    @classmethod
    def _are_origins(cls, value: frozenset[str]) -> frozenset[str]:
        if not all(_ORIGIN.fullmatch(origin) for origin in value - {"*"}):
            raise ValueError("each must look like https://host or https://host:port, in lower case")
        if "*" in value and len(value) > 1:
            raise ValueError("* stands for all origins, and goes alone")
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
                "each must be an address or a network, such as 10.1.2.3 or 10.0.0.0/8 (no bits behind the mask), or *"
            ) from None

    @field_validator("allowed_headers")
    @classmethod
    def _are_header_names(cls, value: frozenset[str]) -> frozenset[str]:
        if not all(_HEADER.fullmatch(name) for name in value - {"*"}):
            raise ValueError("each must be the name of a header, such as x-csrf-token")
        if "*" in value and len(value) > 1:
            raise ValueError("* stands for all headers, and goes alone")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _parse_models(cls, value: Any) -> Any:
        if isinstance(value, str):
            try:
                value = orjson.loads(value or "{}")
            except orjson.JSONDecodeError:
                raise ValueError("it must be a JSON object") from None
        if not isinstance(value, dict):
            raise ValueError("it must be a JSON object")
        return {name: _model(number, name, given) for number, (name, given) in enumerate(value.items(), 1)}

    @model_validator(mode="after")
    def _provider_is_told_from_others(self) -> Self:
        if self.jwks_url and not (self.jwt_issuer and self.jwt_audience):
            raise ValueError(
                "BATON_JWKS_URL needs BATON_JWT_ISSUER and BATON_JWT_AUDIENCE too: else a token that the identity "
                "provider made for somebody else's service would be good for this one"
            )
        return self

    @model_validator(mode="after")
    def _lease_outlasts_heartbeats(self) -> Self:
        least = 3 * self.worker_heartbeat_seconds
        if self.lease_seconds < least:
            raise ValueError(
                f"BATON_LEASE_SECONDS must be at least 3 times BATON_WORKER_HEARTBEAT_SECONDS, {least:g} "
                f"(it is {self.lease_seconds:g}): else a worker whose heartbeat is late counts as dead"
            )
        return self

    @classmethod
    def load(cls, **overrides: Any) -> Self:
        """Read the settings.

        Raises:
            ConfigurationError: one is missing or out of range; the sentence names each.
        """
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})
        except ValidationError as error:
            raise ConfigurationError(" ".join(_sentence(item) for item in error.errors())) from None

    @property
    def dsn(self) -> str:
        """The database's DSN as asyncpg takes it.

        Raises:
            ConfigurationError: none is set.
        """
        if self.database_url is None:
            raise ConfigurationError(
                "No database is configured. Set BATON_DATABASE_URL=postgresql://user:password@host:5432/name "
                "(or try `baton demo`, which brings its own)."
            )
        return _plain(self.database_url)

    @property
    def remarks(self) -> list[str]:
        """What an operator should know about the connection strings, once for both."""
        urls = filter(None, (self.database_url, self.listen_database_url))
        return sorted({remark for url in urls for remark in Dsn.parse(url.get_secret_value()).remarks})

    @property
    def prepare(self) -> bool:
        """Whether statements may be prepared: not where LISTEN goes around a pooler, for the rest goes through it."""
        return self.listen_database_url is None

    @property
    def listen_dsn(self) -> str:
        """The DSN for the LISTEN connection."""
        return _plain(self.listen_database_url) if self.listen_database_url else self.dsn


def _model(number: int, name: str, given: Any) -> dict[str, Any]:
    if not _MODEL.fullmatch(name):
        raise ValueError(f"name {number} must be 1 to 64 letters, digits and . _ : / -, the first a letter or a digit")
    model = {"generator": given} if isinstance(given, str) else given
    if not isinstance(model, dict) or not isinstance(model.get("generator"), str) or not model["generator"]:
        raise ValueError(f'value {number} must be the name of a generator, or look like {{"generator": name, …}}')
    return model


def _plain(url: SecretStr) -> str:
    """Return a connection string as a URI, without SQLAlchemy's driver suffix."""
    text = url.get_secret_value()
    scheme, mark, rest = text.partition("://")
    if not mark or not scheme.startswith("postgres"):
        return Dsn.parse(text).uri()
    return f"{scheme.partition('+')[0]}://{rest}"


def _sentence(error: Any) -> str:
    """Say what is wrong with a setting. Only a number that is out of range is quoted: anything else may be a secret."""
    message = error["msg"].removeprefix("Value error, ")
    if not error["loc"]:
        # What is wrong with several together names them; the input is all settings, secrets included.
        return f"{message}."
    name = str(error["loc"][0])
    variable = name if name.isupper() else f"BATON_{name.upper()}"
    given = str(error["input"])
    shown = f" (it is {given})" if error["type"] in _OUT_OF_RANGE and _NUMBER.fullmatch(given) else ""
    return f"{variable}: {message}{shown}."
