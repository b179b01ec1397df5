"""The bodies and queries of LangGraph's routes, and what they return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator
from typing_extensions import TypedDict

from ..dialects.langgraph import MODES, Mode
from ..errors import LangGraphNotSupported
from .models import Webhook
from .validation import Name, Seconds, Text, at_most, storable

RunStatus: TypeAlias = Literal["pending", "running", "success", "error", "interrupted"]
ThreadStatus: TypeAlias = Literal["idle", "busy", "interrupted", "error"]
Json = dict[str, Any]

# The fields of a run that Baton does not support, with the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "checkpoint": (None, {}),
    "checkpoint_id": (None,),
    "interrupt_before": (None, []),
    "interrupt_after": (None, []),
    "on_completion": (None, "keep"),
}


class ResumeCommand(BaseModel):
    """The answer to what a thread waits for."""

    model_config = ConfigDict(extra="ignore")

    resume: Any = None
    update: Any = None
    goto: Any = None


class CreateRun(BaseModel):
    """What Baton reads of the body that creates a run: an input, or a command that answers an interrupt.

    The generator gets `input`, whose messages follow those of the thread, and `config` and `context`, if they are not
    empty.
    """

    model_config = ConfigDict(extra="ignore")

    assistant_id: Name
    input: Json | None = None
    command: ResumeCommand | None = None
    stream_mode: Annotated[list[str] | str | None, Field(description=f"Some of {', '.join(MODES)}.")] = None
    metadata: Annotated[dict[Name, Text | bool | int | float], at_most(31)] | None = None
    config: Json | None = None
    context: Json | None = None
    multitask_strategy: str | None = Field(None, description="`reject`, which is the default, or `interrupt`.")
    on_disconnect: Literal["cancel", "continue"] | None = None
    webhook: Webhook | None = None
    after_seconds: Seconds | None = None
    checkpoint: Any = None
    checkpoint_id: Any = None
    interrupt_before: Any = None
    interrupt_after: Any = None
    on_completion: Any = None

    @field_validator("input", "metadata", "config", "context", "command")
    @classmethod
    def _can_be_written(cls, value: Any) -> Any:
        storable(value.model_dump() if isinstance(value, BaseModel) else value)
        return value

    @property
    def resumes(self) -> bool:
        """Whether it answers an interrupt."""
        return self.command is not None

    def require_supported(self) -> None:
        """Raise LangGraphNotSupported if it asks for something that Baton does not support."""
        for name, neutral in _REFUSED.items():
            if getattr(self, name) not in neutral:
                raise LangGraphNotSupported(f"{name}: Baton keeps only the latest state of a thread. Leave it out.")
        if self.command is not None and (self.command.update or self.command.goto):
            raise LangGraphNotSupported("command: only `resume` is supported.")
        if self.multitask_strategy not in {None, "reject", "interrupt"}:
            raise LangGraphNotSupported(
                f"multitask_strategy: {self.multitask_strategy!r:.40} is not supported. Use `reject` or `interrupt`."
            )
        modes_of(self.stream_mode)


class SearchAssistants(BaseModel):
    """The body of a search for assistants."""

    model_config = ConfigDict(extra="ignore")

    graph_id: str | None = None
    name: str | None = None
    metadata: Json | None = None
    limit: int = Field(10, ge=1, le=1000)
    offset: int = Field(0, ge=0)


class CreateThread(BaseModel):
    """The body that creates a thread. Nothing is stored before its first run: its metadata is not kept."""

    model_config = ConfigDict(extra="ignore")

    thread_id: Annotated[str, Field(min_length=1, max_length=512, pattern=r"^[^\x00/]*$")] | None = None
    metadata: Json | None = None
    if_exists: Literal["raise", "do_nothing"] | None = None
    ttl: Any = None
    supersteps: Any = None


class ReadHistory(BaseModel):
    """The body of a request for the states of a thread."""

    model_config = ConfigDict(extra="ignore")

    limit: int = Field(10, ge=1, le=1000)
    before: Any = None


class JoinRun(BaseModel):
    """The query of a request that follows a run. Without `stream_mode`, it gets all modes."""

    model_config = ConfigDict(extra="ignore")

    stream_mode: str | None = Field(None, description=f"One of {', '.join(MODES)}; may come several times.")
    cancel_on_disconnect: bool = False


class CancelRun(BaseModel):
    """The query of a cancel."""

    model_config = ConfigDict(extra="ignore")

    wait: bool = False
    action: str = "interrupt"


class ListRuns(BaseModel):
    """The query of a list of runs."""

    model_config = ConfigDict(extra="ignore")

    limit: int = Field(10, ge=1, le=100)
    status: RunStatus | None = None
    offset: int = Field(0, ge=0, le=1000)


class AssistantContent(TypedDict):
    """An assistant: a generator."""

    assistant_id: str
    graph_id: str
    name: str
    description: str | None
    config: Json
    context: Json
    metadata: Json
    version: int
    created_at: str
    updated_at: str


class ThreadContent(TypedDict):
    """A thread: a chat, with its newest stream's state."""

    thread_id: str
    created_at: str
    updated_at: str
    state_updated_at: str
    metadata: Json
    status: ThreadStatus
    config: Json
    values: Json | None
    interrupts: dict[str, list[Json]]


class RunContent(TypedDict):
    """A run: a stream up to its first wait, or what follows one of its waits."""

    run_id: str
    thread_id: str
    assistant_id: str
    created_at: str
    updated_at: str
    status: RunStatus
    metadata: Json
    kwargs: Json
    multitask_strategy: Literal["reject"]


class ThreadState(TypedDict):
    """The latest state of a thread."""

    values: Json
    next: list[str]
    tasks: list[Json]
    metadata: Json | None
    created_at: str | None
    checkpoint: Json | None
    parent_checkpoint: None
    interrupts: list[Json]
    checkpoint_id: str | None
    parent_checkpoint_id: None


def modes_of(given: str | Sequence[str] | None, default: Sequence[Mode] = ("values",)) -> list[Mode]:
    """Return stream modes; `default` if none are given.

    Raises:
        LangGraphNotSupported: one of them is not supported.
    """
    wanted = [given] if isinstance(given, str) else list(given or default)
    for mode in wanted:
        if mode not in MODES:
            raise LangGraphNotSupported(f"stream_mode: {mode!r:.40} is not supported. Use {', '.join(MODES)}.")
    return [mode for mode in MODES if mode in wanted]
