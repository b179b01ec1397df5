"""The keys by which workers sign notifications, in `baton.notify_key`, which only Baton's roles may read.

Every role that may connect to a database may NOTIFY on any of its channels. So pods trust only payloads with a MAC
(HMAC-SHA256, its first 128 bits) by one of these keys. The MAC covers the channel and the history of the database (see
`history`) besides the text. So a genuine payload becomes invalid when it is sent again on another channel, in a copy of
the database, or after the log went back. A payload that is sent again in the same place repeats something that is still
true.
"""

from __future__ import annotations

import hmac
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .postgres import Connection, Pool

# The newest key, and the one before it until all processes have read the newest.
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

# How long workers may sign with a key after it was replaced, and pods accept it.
GRACE_SECONDS: Final = 60
# How often workers and pods read the keys again. Less than the grace, so that no worker signs with an expired key.
REREAD_SECONDS: Final = 20
_MAC_BYTES: Final = 16
MAC_LENGTH: Final = 22  # in base64, without padding
GREATEST_ID: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class SigningKeys:
    """The keys by their ids, and the history for which they sign. The newest key has the highest id.

    Without keys nothing is signed, and no payload is genuine.
    """

    secrets: Mapping[int, bytes]
    history: str

    @property
    def newest_id(self) -> int | None:
        """The id of the key to sign with; None without keys."""
        return max(self.secrets, default=None)

    def mac(self, key_id: int, channel: str, text: str, stamp: str) -> str:
        """Return the MAC of a text and its stamp for a channel. `key_id` is one of these keys."""
        # Only the text may have line breaks (`notifications.is_signed` checks), so that no two inputs look alike.
        covered = f"{channel}\n{self.history}\n{stamp}\n{text}".encode(errors="surrogatepass")
        digest = hmac.digest(self.secrets[key_id], covered, "sha256")
        return urlsafe_b64encode(digest[:_MAC_BYTES]).decode()[:MAC_LENGTH]


NONE: Final = SigningKeys({}, "")


async def read(executor: Connection | Pool, history: str) -> SigningKeys:
    """Read the keys that are in use."""
    return SigningKeys({row[0]: row[1] for row in await executor.fetch(_READ, GRACE_SECONDS)}, history)


async def rotate(connection: Connection) -> int:
    """Make a new key; return its id. The previous key stays valid for `GRACE_SECONDS`; older ones are deleted."""
    async with connection.transaction():
        key_id: int = await connection.fetchval(_ADD)
        await connection.execute(_DELETE, key_id)
    return key_id
