"""Random requests of two tenants to the routes of the Durable Streams protocol, and what must hold of every answer.

Both tenants use the same paths, each other's ids and tokens, and whatever else may confuse. What a tenant writes has a
mark that is in no answer to the other one. The requests depend on the seed alone, except for ids.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import secrets
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import httpx2
import orjson
from tests.integration.api.fuzzing import CODES
from tests.support.access import guarded_pod, make_key, signed
from tests.support.cluster import Cluster, RunningPod

from baton.api.problems import SECURITY_HEADERS

# What the protocol has and Baton does not.
HONEST = {"forks_not_supported", "subscriptions_not_supported"}
# Every wait is short, and no limit on rates is reached.
QUICK = {
    "long_poll_seconds": 0.05,
    "max_connection_age_seconds": 0.05,
    "creates_per_second": 1e5,
    "creates_burst": 1e5,
    "appends_per_second": 1e6,
    "appends_burst": 1e6,
    "reads_per_second": 1e5,
    "reads_burst": 1e6,
    "max_tenant_streams": 100_000,
    "max_body_bytes": 200_000,
    "max_event_bytes": 20_000,
}
AT_ONCE = 16
METHODS = ("PUT",) * 4 + ("POST",) * 8 + ("GET",) * 6 + ("HEAD", "DELETE", "OPTIONS", "PATCH")
CONTROLS = bytes({*range(32)} - {9}) + b"\x7f"
NAMES = (
    "a",
    "a/b",
    "shared",
    "ünï",
    "a b",
    "a%2Fb",
    "%2e%2e/a",
    "..",
    "a//b",
    "a/",
    ".",
    "\u202e",
    "__ds",
    "__ds/subscriptions/x",
)
TYPES = (
    'application/json; profile="urn:baton:events"',
    "application/json; profile=urn:baton:events",
    "APPLICATION/JSON",
    "application/json;charset=utf-8",
    "application/json",
    "text/plain",
    "text/event-stream",
    "application/octet-stream",
    "image/png",
    *(
        "",
        ";",
        "application/json; profile=",
        'a/b; c="',
        "application/problem+json",
        "multipart/form-data",
        "x" * 3000,
        "é/ü",
    ),
)
NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "1.0",
    "1e3",
    "00",
    "+1",
    " 1",
    "9007199254740991",
    "9007199254740992",
    "9" * 400,
    "",
    "x",
    "٣",
)
TIMES = (
    "2999-01-01T00:00:00Z",
    "2000-01-01T00:00:00Z",
    "2999-01-01",
    "0000-01-01T00:00:00Z",
    "9999-12-31T23:59:59-23:59",
    "now",
    "",
)
WAITS = ("0", "0.01", "-1", "x", "1e9", "")
LIVE = ("long-poll", "sse")
OFFSETS = ("-1", "now", "0", "", "-2", "000000000000_0000000000", "ffffffffffff_9999999999", "0" * 500, "%00", "null")
REFUSED_TYPES: tuple[Any, ...] = ("done", "reset", "resumed", "state", "continue", "wait", "", None, 7, [])
EVENTS: tuple[Any, ...] = (
    {"type": "text", "delta": "hi"},
    {"type": "text", "delta": "a\u2028\u0000\ud83d"},
    {"type": "reasoning", "delta": "hm"},
    {"type": "tool_call", "index": 0, "id": "c", "name": "f", "arguments_delta": "{}"},
    {"type": "usage", "input_tokens": 1, "output_tokens": 2},
    {"type": "custom", "name": "n", "data": [1]},
    {"type": "finish", "finish_reason": "stop"},
    {"type": "error", "code": "c", "message": "m"},
    {"type": "error", "code": 7},
    *({"type": name} for name in REFUSED_TYPES),
    *(1, "x", None, [], {}, [[]], [[[1]]], 1e400, -0.0, 10**60, "\ud800"),
)
Asked = tuple[str, str, list[tuple[bytes, bytes]], bytes]


@dataclass
class Tenant:
    """A tenant, its credentials, and the ids of its streams."""

    name: str
    mark: str
    credentials: list[str]
    ids: list[str] = field(default_factory=list)

    def token(self, stream_id: str, *scopes: str) -> str:
        """A token for one stream."""
        return signed(stream_id, scopes=scopes, tenant=self.name)


class Attack:
    """Sends requests of both tenants to one pod, and counts them by status and method."""

    def __init__(self, pod: RunningPod, cluster: Cluster, tenants: Sequence[Tenant], seed: int) -> None:
        self.pod = pod
        self.cluster = cluster
        self.tenants = tenants
        self.chance = random.Random(seed)
        self.answers: Counter[tuple[str, int]] = Counter()
        self._places: defaultdict[tuple[str, str], itertools.count[int]] = defaultdict(itertools.count)

    async def run(self, count: int, of: Tenant | None = None) -> None:
        """Send requests, some at once, of both tenants or of one."""
        for first in range(0, count, AT_ONCE):
            senders = [of or self.chance.choice(self.tenants) for _ in range(min(AT_ONCE, count - first))]
            await asyncio.gather(*map(self.send, senders))

    async def send(self, tenant: Tenant) -> None:
        """Send one request of a tenant, and judge the answer."""
        asked = self.request(tenant)
        method, path, headers, body = asked
        answer = await self.cluster.client.request(method, self.pod.url + path, headers=headers, content=body)
        self.answers[method, answer.status_code] += 1
        self._judge(tenant, asked, answer)
        if answer.status_code == 201:
            self._note(tenant, answer)

    def request(self, tenant: Tenant) -> Asked:
        """Make a request that a route may take, or nearly."""
        pick = self.chance.choice
        if self._once_in(12):
            return self._create(tenant)
        if self._once_in(12):
            id_ = pick(self._ids(tenant))
            return (
                "GET",
                f"/v1/streams/{id_}/end?wait={pick(WAITS)}",
                self._headers(tenant, "GET"),
                b"",
            )
        method = pick(METHODS)
        path = self._path(tenant)
        asks = method in {"GET", "HEAD"} or self._once_in(10)
        body = self._body(tenant) if method in {"PUT", "POST", "PATCH"} and not self._once_in(6) else b""
        return method, f"/v1/stream/{path}{self._query() if asks else ''}", self._headers(tenant, method, path), body

    def _once_in(self, number: int) -> bool:
        return self.chance.randrange(number) == 0

    def _ids(self, tenant: Tenant) -> list[str]:
        """Ids of its own, of the other tenant, and of nobody."""
        known = [id_ for each in self.tenants for id_ in (*each.ids[:20], *each.ids[-20:])]
        return [*known, str(uuid.UUID(int=self.chance.getrandbits(128))), "x"]

    def _path(self, tenant: Tenant) -> str:
        kind = self.chance.randrange(10)
        if kind < 2:
            return (
                self.chance.choice(self._ids(tenant)).upper()
                if self._once_in(9)
                else self.chance.choice(self._ids(tenant))
            )
        if kind < 8:
            return quote(self.chance.choice(NAMES[:5]))
        if kind == 8:
            return self.chance.choice(
                (*NAMES, "%00", "%ff", "%ed%a0%80", "a" * 1024, "a" * 1025, "%C3%BC" * 600, "%0d%0aX:y", "")
            )
        return f"only-{tenant.name}-{self.chance.randrange(5)}"

    def _query(self) -> str:
        parts = []
        if not self._once_in(3):
            parts.append(f"offset={self.chance.choice(self._offsets())}")
        if self._once_in(3):
            parts.append(f"live={self.chance.choice((*LIVE * 4, 'true', '', 'LONG-POLL'))}")
        if self._once_in(5):
            parts.append(f"cursor={self.chance.choice(NUMBERS)}")
        if self._once_in(9):
            parts.append(self.chance.choice(("offset=-1", "live=sse", "x=%00", "token=x", "&&==", "offset")))
        return "?" + quote("&".join(parts), safe="=&%")

    def _offsets(self) -> list[str]:
        prefixes = [id_.replace("-", "")[:12] for each in self.tenants for id_ in each.ids[-5:]]
        return [*["-1", "now"] * 10, *OFFSETS, *(f"{prefix}_{self.chance.randrange(12):010d}" for prefix in prefixes)]

    def _headers(self, tenant: Tenant, method: str, path: str = "") -> list[tuple[bytes, bytes]]:
        pick = self.chance.choice
        found: list[tuple[str, str]] = [("authorization", f"Bearer {self._credential(tenant)}")]
        if method in {"PUT", "POST"} and not self._once_in(8):
            # Most requests agree about the type of a path, and most of a producer's are in order.
            usual = TYPES[zlib.crc32(path.encode()) % 8]
            found.append(("content-type", usual if not self._once_in(5) else pick(TYPES)))
        if method == "POST" and self._once_in(2):
            place = next(self._places[tenant.name, path])
            epoch, seq = ("0", str(place)) if not self._once_in(3) else (pick(NUMBERS), pick(NUMBERS))
            name = "p" if not self._once_in(5) else pick(("q", "", "é", "x" * 300, "a, b"))
            fence = [("producer-id", name), ("producer-epoch", epoch), ("producer-seq", seq)]
            found += fence if not self._once_in(9) else self.chance.sample(fence, 2)
        for name, values in (
            ("stream-closed", ("true", "TRUE", "false", "1", "")),
            ("stream-seq", ("a", "b", "c", "é", "", "x" * 300)),
            ("stream-ttl", NUMBERS),
            ("stream-expires-at", TIMES),
            ("if-none-match", ("*", '"x"', "W/", "x" * 2000)),
            ("stream-forked-from", ("/v1/stream/a", "x")),
            ("idempotency-key", ("k", "l", "", "é" * 100)),
            ("origin", ("https://example.com", "null", "x")),
            ("accept", ("text/event-stream", "*/*;q=0", "\x0b")),
            ("x-forwarded-proto", ("https", "x\ty")),
            ("x-forwarded-prefix", ("/x", "//evil")),
        ):
            if self._once_in(5 if name == "stream-closed" else 40):
                found.append((name, pick(values)))
        self.chance.shuffle(found)
        # The client sends neither control characters nor a space at an end.
        return [(name.encode(), value.encode().translate(None, CONTROLS).strip(b" \t")) for name, value in found]

    def _credential(self, tenant: Tenant) -> str:
        if not self._once_in(10):
            return self.chance.choice(tenant.credentials)
        ids = [*tenant.ids[-3:], str(uuid.UUID(int=7))]
        scopes = self.chance.choice((("produce",), ("read",), ("produce", "read"), ("cancel",), ()))
        return self.chance.choice((tenant.token(self.chance.choice(ids), *scopes), "x", "", "a.b.c"))

    def _body(self, tenant: Tenant) -> bytes:
        marked: list[Any] = [{"type": "text", "delta": tenant.mark}] * (not self._once_in(3))
        kind = self.chance.randrange(12)
        if kind < 7:
            many = [self.chance.choice(EVENTS)] * self._once_in(2)
            return json.dumps([*marked, *many]).encode()
        if kind == 7:
            return self.chance.choice(
                (
                    b"[" * 5000 + b"]" * 5000,
                    b"[1,]",
                    b"{",
                    b"[]",
                    b"\xff\xfe",
                    b"\xef\xbb\xbf[1]",
                    b"NaN",
                    b"[1]\0",
                    b'"\\ud800"',
                )
            )
        if kind == 8:
            return json.dumps(
                [{"type": "text", "delta": tenant.mark + "x" * self.chance.choice((25_000, 100_000))}]
            ).encode()
        if kind == 9:
            return self.chance.randbytes(self.chance.randrange(200)) + tenant.mark.encode()
        return (tenant.mark + self.chance.choice(("\r\nevent: control\ndata:{}\n\n", "\u2028", "\0", "]"))).encode()

    def _create(self, tenant: Tenant) -> Asked:
        asked: dict[str, Any] = {"generator": "external"}
        for name, values in (
            ("input", (None, {"a": tenant.mark}, 7)),
            ("metadata", ({"chat": "c"}, {"mark": tenant.mark}, [], {"": None})),
            ("path", ("a", "only", 7, "../x", str(uuid.UUID(int=7)))),
            ("kind", ("events", "bytes", "x")),
            ("content_type", TYPES[:5]),
            ("idle_timeout_seconds", (1000, -1, "x")),
            ("max_duration_seconds", (1000, 1e400)),
            ("cancel_when_unwatched_seconds", (1000, 0)),
            ("on_worker_lost", ("fail", "retry", "continue")),
        ):
            if self._once_in(6):
                asked[name] = self.chance.choice(values)
        return "POST", "/v1/streams", self._headers(tenant, "GET"), json.dumps(asked).encode()

    def _judge(self, tenant: Tenant, asked: Asked, answer: httpx2.Response) -> None:
        what = f"{tenant.name} {asked!r:.3000}", answer.status_code, answer.content[:800]
        code = _code(answer)
        is_honest = answer.status_code == 501 and (code in HONEST or asked[0] == "HEAD")
        assert answer.status_code < 500 or is_honest, what
        assert answer.status_code < 400 or not answer.content or code in CODES, what
        assert answer.headers.get("x-baton-pod") == self.pod.name, what
        assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", answer.headers["x-request-id"]), what
        for name in SECURITY_HEADERS:
            assert answer.headers.get(name), (name, *what)
        whole = answer.content + repr(answer.headers.raw).encode()
        for other in self.tenants:
            if other is not tenant:
                assert other.mark.encode() not in whole, what
                assert not any(id_.encode() in whole for id_ in other.ids if id_ not in asked[1].lower()), what

    def _note(self, tenant: Tenant, answer: httpx2.Response) -> None:
        """Keep the id of a stream that a native create made. Others are read from the database, from time to time."""
        if answer.request.method == "POST":
            tenant.ids.append(answer.json()["id"])

    async def learn(self) -> None:
        """Read the ids of all streams of each tenant, which an attacker would have to guess."""
        for tenant in self.tenants:
            rows = await self.cluster.pool.fetch(
                "SELECT id FROM baton.stream WHERE tenant = $1 ORDER BY id", tenant.name
            )
            tenant.ids = [str(row["id"]) for row in rows]


def _code(answer: httpx2.Response) -> str | None:
    if answer.status_code < 400 or not answer.content:
        return None
    content = orjson.loads(answer.content)
    code: str = (content.get("error") or content)["code"]
    return code


async def attack(cluster: Cluster, seed: int) -> Attack:
    """Start a pod with access control, for two tenants with some keys each."""
    tenants = []
    for name in ("acme", "globex"):
        scopes = ((), ("produce", "read"), ("produce",), ("read",), ("create", "produce"))
        made = [await make_key(cluster, *each, tenant=name) for each in scopes]
        # Most requests have a key that may do everything.
        credentials = [made[0][1]] * 24 + [secret for _, secret in made]
        tenants.append(Tenant(name, f"mark-{secrets.token_hex(8)}", credentials))
    return Attack(await guarded_pod(cluster, **QUICK), cluster, tenants, seed)
