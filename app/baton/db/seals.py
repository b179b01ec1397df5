r"""Seals of notifications, by which what Baton's own roles sent can be distinguished from forgeries.

Every role that may connect to a database may NOTIFY on any channel of it. So a payload that pods are to believe carries
a MAC (HMAC-SHA256, its first 128 bits) by a key that stands in `baton.notify_key`, which only Baton's roles may read.
The MAC covers the channel and the history of the database (see `history`) besides the text: sent again on another
channel, in a copy of the database or after the log went back, a genuine payload is no longer one. Sent again in the
same place it says what was true and stays true.

A sealed payload is `<text>\n#<key id>:<MAC>\n@<stamp>`. The seal stands before the stamp, since pods of the release
before look for that at the end, and read nothing in a line that begins with `#`. The stamp is sealed as well.

A payload without a valid seal is still a hint: it may make its reader look, and nothing else.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .postgres import Connection, Pool

# The newest key, and the one before until everybody has heard of the newest.
_READ = """
SELECT k.id, k.secret FROM baton.notify_key AS k
WHERE NOT EXISTS (
    SELECT FROM baton.notify_key AS newer
    WHERE newer.id > k.id AND newer.created_at < clock_timestamp() - make_interval(secs => $1))
ORDER BY k.id
"""
_ADD = """
INSERT INTO baton.notify_key (secret) VALUES (uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))
RETURNING id
"""
_DELETE = "DELETE FROM baton.notify_key WHERE id < (SELECT max(id) FROM baton.notify_key WHERE id < $1)"

# How long workers may sign by a key, and pods believe it, that another has replaced.
GRACE_SECONDS: Final = 60
# How often workers and pods read the keys again. Less than the above, so that nobody signs by one that is not believed.
REREAD_SECONDS: Final = 20
_MAC_BYTES: Final = 16
_MAC_LENGTH: Final = 22  # in base64, without padding
SEAL_BYTES: Final = len("\n#2147483647:") + _MAC_LENGTH


@dataclass(frozen=True, slots=True)
class Seals:
    """The keys by their ids, the newest with the highest, and the history that they seal for.

    Without keys nothing is sealed, and nothing genuine.
    """

    keys: Mapping[int, bytes]
    history: str

    def seal(self, channel: str, text: str, stamp: str) -> str:
        """Return the payload of a text and its stamp, sealed by the newest key."""
        if not self.keys:
            return f"{text}\n@{stamp}"
        key_id = max(self.keys)
        return f"{text}\n#{key_id}:{self._mac(self.keys[key_id], channel, text, stamp)}\n@{stamp}"

    def genuine(self, channel: str, payload: str) -> bool:
        """Return whether one of these keys sealed the payload, for this channel and history."""
        text, mark, end = payload.rpartition("\n#")
        seal, at, stamp = end.partition("\n@")
        key_id, colon, mac = seal.partition(":")
        if not (mark and at and colon and key_id.isascii() and key_id.isdecimal() and mac.isascii()):
            return False
        if not (stamp.isascii() and stamp.isdecimal()):
            return False  # with a line break in it, lines of a genuine text could be passed off as the stamp's
        key = self.keys.get(int(key_id[:10]))
        return key is not None and hmac.compare_digest(mac, self._mac(key, channel, text, stamp))

    def knows(self, payload: str) -> bool:
        """Return whether a payload is either unsealed, or names a key that is here."""
        _, mark, end = payload.rpartition("\n#")
        key_id = end.partition(":")[0]
        return not mark or not key_id.isdecimal() or int(key_id[:10]) in self.keys

    def _mac(self, key: bytes, channel: str, text: str, stamp: str) -> str:
        # No part but the text has a line break (`genuine` looks), so that no two inputs look alike.
        covered = f"{channel}\n{self.history}\n{stamp}\n{text}".encode(errors="surrogatepass")
        return urlsafe_b64encode(hmac.digest(key, covered, "sha256")[:_MAC_BYTES]).decode()[:_MAC_LENGTH]


NONE: Final = Seals({}, "")


async def read(executor: Connection | Pool, history: str) -> Seals:
    """Read the keys that are in use."""
    return Seals({row[0]: row[1] for row in await executor.fetch(_READ, GRACE_SECONDS)}, history)


async def rotate(connection: Connection) -> int:
    """Make a new key; return its id. The one before stays good for `GRACE_SECONDS`, older ones are deleted."""
    async with connection.transaction():
        key_id: int = await connection.fetchval(_ADD)
        await connection.execute(_DELETE, key_id)
    return key_id
