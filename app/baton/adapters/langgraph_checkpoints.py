"""Checkpoints of a graph that has no durable checkpointer of its own: they are kept in Baton's saved state.

A run has them in memory. A state has the newest one; while the graph waits for people, also those of its subgraphs,
and what tasks of the unfinished step have written.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.pregel import Pregel

SERIALIZER = JsonPlusSerializer()


def packed(value: Any) -> str:
    """Return messages, checkpoints and what they hold as a text."""
    kind, content = SERIALIZER.dumps_typed(value)
    return f"{kind} {base64.b64encode(zlib.compress(content, 1)).decode()}"


def unpacked(text: str) -> Any:
    """Return what a text holds."""
    kind, content = text.split(" ")
    return SERIALIZER.loads_typed((kind, zlib.decompress(base64.b64decode(content))))


def is_durable(graph: Pregel[Any, Any, Any, Any]) -> bool:
    """Return whether a graph keeps its checkpoints where another worker finds them."""
    saver = graph.checkpointer
    return isinstance(saver, BaseCheckpointSaver) and not isinstance(saver, InMemorySaver)


async def newest(saver: BaseCheckpointSaver[Any], config: RunnableConfig) -> list[Any]:
    """Return the checkpoint that a configuration names, without what its step has written so far."""
    found = await saver.aget_tuple(config)
    return [] if found is None else [_record(found)[:-1]]


async def unfinished(saver: BaseCheckpointSaver[Any], config: RunnableConfig) -> list[Any]:
    """Return the newest checkpoint of a thread and of each of its subgraphs, with the writes of unfinished steps."""
    found: dict[str, CheckpointTuple] = {}
    async for item in saver.alist(config):
        found.setdefault(item.config["configurable"]["checkpoint_ns"], item)
    return [_record(item) for item in found.values()]


async def restore(saver: BaseCheckpointSaver[Any], thread_id: str, records: list[Any]) -> None:
    """Put what `newest` or `unfinished` returned into a saver."""
    for namespace, parent, checkpoint, metadata, *writes in records:
        place = {"thread_id": thread_id, "checkpoint_ns": namespace, "checkpoint_id": parent}
        config = await saver.aput({"configurable": place}, checkpoint, metadata, checkpoint["channel_versions"])
        by_task: dict[str, list[tuple[str, Any]]] = {}
        for task_id, channel, value in writes[0] if writes else ():
            by_task.setdefault(task_id, []).append((channel, value))
        for task_id, values in by_task.items():
            await saver.aput_writes(config, values, task_id)


def _record(found: CheckpointTuple) -> list[Any]:
    place = found.config["configurable"]
    parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
    writes = [list(write) for write in found.pending_writes or ()]
    return [place["checkpoint_ns"], parent, found.checkpoint, found.metadata, writes]
