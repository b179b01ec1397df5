"""The native dialect: one SSE block for each event, `id: <seq>` and `data: <the event as JSON>`.

There is no `event:` line, so that `EventSource.onmessage` sees everything, and the id is the cursor to come back with.
"""

from __future__ import annotations

from ..log import Batch

NAME = "native"

# Without an id, so that it moves no cursor.
DAMAGED = b'data: {"type":"error","error":{"code":"log_damaged","message":"A part of the stream is missing."}}\n\n'


def encode(batch: Batch, cursor: int) -> bytes:
    """Encode the events of a batch that follow the cursor."""
    lines = batch.lines
    first = batch.first_seq
    if first <= cursor:
        lines = lines[cursor + 1 - first :]
        first = cursor + 1
    return "".join([f"id: {seq}\ndata: {line}\n\n" for seq, line in enumerate(lines, first)]).encode()
