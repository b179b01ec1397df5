"""Settings: read from the environment (`BATON_…`) and, where there is one, from a file called `.env`."""

from __future__ import annotations

import os
import re
import socket
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from .errors import ConfigurationError

_GENERATOR = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63})=(?P<target>[A-Za-z_][\w.]*:[A-Za-z_]\w*)")


class Settings(BaseSettings):
    """All of Baton's settings, with the units in the names."""

    model_config = SettingsConfigDict(
        env_prefix="BATON_", env_file=".env", extra="ignore", frozen=True, populate_by_name=True
    )

    database_url: SecretStr | None = Field(None, description="postgresql://user:password@host:port/name")
    listen_database_url: SecretStr | None = Field(
        None,
        description="A DSN for LISTEN that goes around a transaction pooler; default: BATON_DATABASE_URL",
    )
    database_pool_size: int = Field(8, ge=1, le=200, description="Connections for queries, per process")
    database_timeout_seconds: float = Field(10, gt=0, le=300, description="Longest wait for a query or a connection")

    host: str = Field("127.0.0.1", description="The address that a pod listens on")
    port: int = Field(8000, ge=0, le=65535)
    pod_name: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", max_length=100)
    allow_anonymous: bool = Field(False, description="Serve without access control")
    heartbeat_seconds: float = Field(15, gt=0, le=300, description="A comment keeps an idle connection alive")
    reconnect_milliseconds: int = Field(1000, ge=0, le=60_000, description="`retry:` of each SSE connection")
    safety_poll_seconds: float = Field(1, gt=0, le=60, description="A pod looks for what notifications missed")
    relay_window_bytes: int = Field(131_072, ge=4096, le=64 << 20, description="Recent events kept per stream")
    max_body_bytes: int = Field(1 << 20, ge=1024, le=256 << 20)
    write_timeout_seconds: float = Field(
        30, gt=0, le=3600, description="A client that accepts nothing for so long is cut"
    )
    max_connection_seconds: float = Field(
        240, gt=0, le=86_400, description="A native connection is sent away to reconnect before it is so old"
    )
    drain_seconds: float = Field(3, ge=0, le=60, description="Over this long a leaving pod closes its streams")
    listen_probe_seconds: float = Field(5, gt=0, le=60, description="How often the LISTEN connection is probed")

    worker_concurrency: int = Field(200, ge=1, le=100_000, description="Generators at once in one worker")
    worker_name: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", max_length=100)
    flush_window_milliseconds: float = Field(30, ge=0, le=10_000, description="Pause between two flushes")
    buffer_events: int = Field(1024, ge=1, le=1_000_000, description="Events of a stream that may wait for a flush")
    worker_heartbeat_seconds: float = Field(0.5, gt=0, le=60)
    lease_seconds: float = Field(6, gt=0, le=600, description="A worker silent for this long is dead")
    poll_seconds: float = Field(1, gt=0, le=60, description="A worker looks for queued streams")
    on_worker_lost: Literal["retry", "fail"] = Field("retry", description="What becomes of a dead worker's streams")
    max_attempts: int = Field(3, ge=1, le=100, description="Workers that may try one stream")
    notify_payloads: bool = Field(True, description="Put events into notifications; any database role can LISTEN")

    max_duration_seconds: float = Field(3600, gt=0, le=7 * 86_400, description="Longest run of a stream")
    idle_timeout_seconds: float = Field(300, gt=0, le=86_400, description="Longest silence of a generator")
    queue_timeout_seconds: float = Field(600, gt=0, le=7 * 86_400, description="Longest wait for a worker")
    cancel_when_unwatched_seconds: float | None = Field(
        None, gt=0, le=86_400, description="Cancel a stream that nobody has watched for so long; default: never"
    )
    watch_interval_seconds: float = Field(
        5, gt=0, le=300, description="How often a pod notes which streams are watched"
    )
    leave_seconds: float = Field(6, ge=0, le=3600, description="A leaving worker's streams have so long to end")

    partition_days_ahead: int = Field(7, ge=1, le=365)
    idempotency_hours: float = Field(24, gt=0, le=24 * 30)

    generators: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="Your own generators: name=module:function, comma-separated"
    )
    offered_generators: Annotated[frozenset[str], NoDecode] = Field(
        default_factory=frozenset, description="Only these generators are offered, comma-separated; default: all"
    )
    default_generator: str = Field("replay", description="For streams created without one")
    replay_speed: float = Field(1, gt=0, le=1000, description="How fast the replay generator plays")

    openai_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("BATON_OPENAI_API_KEY", "OPENAI_API_KEY")
    )
    openai_base_url: str | None = Field(None, description="Any server that speaks OpenAI's API")
    openai_model: str | None = Field(None, description="For streams whose input names no model")
    openai_api: Literal["responses", "chat"] = Field("responses", description="Which of OpenAI's two APIs to call")
    anthropic_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("BATON_ANTHROPIC_API_KEY", "ANTHROPIC_API_KEY")
    )
    anthropic_base_url: str | None = None
    anthropic_model: str | None = None
    anthropic_max_tokens: int = Field(4096, ge=1)
    provider_timeout_seconds: float = Field(120, gt=0, description="Longest silence of a model provider")
    provider_max_retries: int = Field(2, ge=0, le=10, description="Requests repeated before an answer begins")

    @field_validator("database_url", "listen_database_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value():
            return None
        scheme = urlsplit(value.get_secret_value()).scheme
        if scheme.partition("+")[0] not in {"postgres", "postgresql"}:
            raise ValueError("it must look like postgresql://user:password@host:5432/name")
        return value

    @field_validator("openai_base_url", "anthropic_base_url")
    @classmethod
    def _is_http(cls, value: str | None) -> str | None:
        if not value:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("it must look like https://host:port/path")
        return value

    @field_validator("generators", mode="before")
    @classmethod
    def _parse_generators(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        found = {}
        for item in filter(None, (part.strip() for part in value.split(","))):
            match = _GENERATOR.fullmatch(item)
            if not match:
                raise ValueError(f"{item!r} must look like name=package.module:function")
            found[match["name"]] = match["target"]
        return found

    @field_validator("offered_generators", mode="before")
    @classmethod
    def _parse_names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value

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
    def prepare(self) -> bool:
        """Whether statements may be prepared: not where LISTEN goes around a pooler, for the rest goes through it."""
        return self.listen_database_url is None

    @property
    def listen_dsn(self) -> str:
        """The DSN for the LISTEN connection."""
        return _plain(self.listen_database_url) if self.listen_database_url else self.dsn


def _plain(url: SecretStr) -> str:
    """Drop SQLAlchemy's driver suffix, which asyncpg does not know."""
    scheme, _, rest = url.get_secret_value().partition("://")
    return f"{scheme.partition('+')[0]}://{rest}"


def _sentence(error: Any) -> str:
    name = str(error["loc"][0]) if error["loc"] else "settings"
    variable = name if name.isupper() else f"BATON_{name.upper()}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if "url" in name or "key" in name.lower() else f" (it is {error['input']!r:.80})"
    return f"{variable}: {message}{given}."
