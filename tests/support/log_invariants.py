"""What must hold of the log and rows of every stream that is written over HTTP, read from the database."""

from __future__ import annotations

import asyncpg

_LOGS = """
SELECT stream.id, stream.status, external.kind, external.tail, external.closed, external.size_bytes, external.producers,
       array_agg(batch.first_seq ORDER BY batch.first_seq) FILTER (WHERE batch.first_seq IS NOT NULL) AS firsts,
       array_agg(batch.last_seq ORDER BY batch.first_seq) FILTER (WHERE batch.first_seq IS NOT NULL) AS lasts,
       array_agg(batch.terminal ORDER BY batch.first_seq) FILTER (WHERE batch.first_seq IS NOT NULL) AS terminals,
       (SELECT count(*) FROM baton.producer WHERE stream_id = stream.id) AS known
FROM baton.stream JOIN baton.external_stream AS external ON external.stream_id = stream.id
LEFT JOIN baton.batch ON batch.stream_id = stream.id
GROUP BY stream.id, external.stream_id
"""


async def require_sound_logs(pool: asyncpg.Pool[asyncpg.Record]) -> int:
    """Hold all of them to it; return how many there are.

    Numbers are 1, 2, 3 without a gap. A stream that has ended has one terminal batch, which is its last. The rows say
    the same. The end of a stream whose messages are no events is no message.
    """
    rows = await pool.fetch(_LOGS)
    for row in rows:
        what = dict(row)
        firsts, lasts, terminals = (list(row[name] or ()) for name in ("firsts", "lasts", "terminals"))
        assert firsts == [1, *(last + 1 for last in lasts)][: len(firsts)], what
        ended = row["status"] in {"completed", "failed", "cancelled"}
        assert terminals == [False] * (len(terminals) - ended) + [True] * ended, what
        assert row["closed"] is ended, what
        assert ended or row["status"] == "open", what
        last = lasts[-1] if lasts else 0
        assert row["tail"] == last - (ended and row["kind"] != "events"), what
        assert row["producers"] == row["known"], what
    return len(rows)
