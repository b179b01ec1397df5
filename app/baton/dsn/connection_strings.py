"""Connection strings: they are written for libpq, and translated here for asyncpg.

A string is a URI (`postgresql://…`) or `name=value` pairs. `parameters` defines what happens to each parameter. No
other code reads strings: commands, pods, workers and migrations all connect by `Dsn.arguments`.

No error quotes the string, since any part of it may belong to a password that is not percent-encoded.
"""

from __future__ import annotations

import functools
import getpass
import os
import re
import ssl
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigParserError
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, unquote, urlencode

from .parameters import FOR_ASYNCPG, VARIABLES, UnusableDsn, canonical, chosen, is_known, matters
from .password_files import password_for

SHAPE: Final = "it must look like postgresql://user:password@host:5432/name"
ESCAPE: Final = (
    f"{SHAPE}. Percent-encode the password, and the user, if they have special characters: write % / ? # [ ] @ and : "
    "as %25 %2F %3F %23 %5B %5D %40 and %3A"
)
_QUOTE: Final = (
    "it must look like host=… user=… password=… dbname=…. Put single quotes around a value with a space, and a "
    "backslash before a quote or a backslash in it"
)

_SCHEME: Final = re.compile(r"postgres(ql)?(\+\w+)?://")
_URI: Final = re.compile(r"(?P<authority>[^/?#]*)(/(?P<dbname>[^?#]*))?(\?(?P<query>[^#]*))?")
_HOST: Final = re.compile(r"(\[(?P<address>[0-9A-Fa-f:.]+(%25\w+)?)\]|(?P<name>[^:\[\]\s]*))(:(?P<port>[0-9]*))?")
_NOT_ENCODED: Final = re.compile(r"%(?![0-9A-Fa-f]{2})|%00|[\x00-\x1f\x7f]")
_KEYWORDS: Final = re.compile(r"[A-Za-z_]\w*\s*=")
_PAIR: Final = re.compile(
    r"\s*(?P<name>\w+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>(?!')(?:[^\s\\]|\\.)*))(?=\s|$)"
)
_BACKSLASH: Final = re.compile(r"\\(.)", re.DOTALL)
_NAME: Final = re.compile(r"[A-Za-z_]\w{0,40}")
_PORT: Final = re.compile(r"[0-9]{0,5}")

_FILES: Final = ("sslcert", "sslkey", "sslrootcert", "sslcrl")
_ENCRYPTING: Final = frozenset({"require", "verify-ca", "verify-full"})
_VERIFYING: Final = frozenset({"verify-ca", "verify-full"})

NOT_BOUND: Final = (
    "channel_binding=require is not enforced beyond TLS: Baton's driver cannot bind the password to the connection. "
    "Use sslmode=verify-full (with sslrootcert=system for a public certificate) to verify the server."
)


@dataclass(frozen=True, slots=True)
class Dsn:
    """A parsed connection string: its parameters, by libpq's names."""

    parameters: Mapping[str, str] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a connection string.

        Raises:
            UnusableDsn: it is malformed, or has a parameter that cannot be honored.
        """
        if scheme := _SCHEME.match(text):
            found = _from_uri(text[scheme.end() :])
        elif _KEYWORDS.match(text):
            found = _from_keywords(text)
        else:
            raise UnusableDsn(SHAPE)
        return cls({name: value for name, value in found.items() if value and matters(name, value)})

    @property
    def remarks(self) -> list[str]:
        """What an operator should know about these parameters."""
        return [NOT_BOUND] if self.parameters.get("channel_binding") == "require" else []

    @property
    def database(self) -> str:
        """The name of the database; empty if the string has none."""
        return self.parameters.get("dbname", "")

    @property
    def place(self) -> str:
        """Where the server is, for use in a sentence."""
        hosts = _addresses(self.parameters)
        if not hosts:
            return "the local socket"
        return ",".join(host if host.startswith("/") else f"{_bracketed(host)}:{port}" for host, port in hosts)

    def uri(self) -> str:
        """Return it as a URI."""
        rest = dict(self.parameters)
        login = quote(rest.pop("user", ""), safe="")
        if password := rest.pop("password", ""):
            login = f"{login}:{quote(password, safe='')}"
        hosts = ""
        if "/" not in rest.get("host", "/"):
            hosts = ",".join(f"{_bracketed(host)}:{port}" for host, port in _addresses({**rest, "hostaddr": ""}))
            rest.pop("host")
            rest.pop("port", None)
        name = quote(rest.pop("dbname", ""), safe="")
        query = urlencode(rest, quote_via=quote)
        return f"postgresql://{login}{'@' if login else ''}{hosts}/{name}{'?' if query else ''}{query}"

    def arguments(self) -> dict[str, Any]:
        """Return the arguments for asyncpg. This looks for the files that the string names.

        Raises:
            UnusableDsn: it cannot be used together with the service file and libpq's variables.
        """
        known = _secured(self._with_defaults())
        hosts = _addresses(known)
        given = {name: known[name] for name in FOR_ASYNCPG if name in known}
        context = _system_context(given) if given.get("sslrootcert") == "system" else None
        if context is not None:
            given = {name: value for name, value in given.items() if name in {"sslnegotiation", "krbsrvname", "gsslib"}}
        return {
            "dsn": f"postgresql://?{urlencode(given)}",
            "host": [host for host, _ in _addresses(known, by_address=True)] or None,
            "port": [port for _, port in hosts] or known.get("port"),
            "user": known.get("user"),
            "password": _password(known),
            "database": known.get("dbname"),
            "ssl": context,
            "target_session_attrs": known.get("target_session_attrs"),
            "server_settings": {"options": known["options"]} if "options" in known else {},
        }

    def _with_defaults(self) -> dict[str, str]:
        """Return the parameters; missing ones come from the service file, and then from libpq's variables."""
        variables = {}
        for variable, name in VARIABLES.items():
            value = os.environ.get(variable, "")
            if value and name not in self.parameters and matters(name, value, called=variable):
                variables[name] = chosen(name, value)
        known = {**variables, **self.parameters}
        if "service" in known:
            known = {**variables, **_service(known["service"], known.get("servicefile")), **self.parameters}
        return known


def _from_uri(rest: str) -> dict[str, str]:
    parts = _URI.fullmatch(rest)
    if (
        parts is None
        or parts["authority"].count("@") > 1
        or "@" in (parts["dbname"] or "")
        or _NOT_ENCODED.search(rest)
    ):
        raise UnusableDsn(ESCAPE)
    login, _, place = parts["authority"].rpartition("@")
    user, _, password = login.partition(":")
    found = {"user": unquote(user), "password": unquote(password), "dbname": unquote(parts["dbname"] or "")}
    hosts = [_HOST.fullmatch(item) for item in place.split(",")]
    if None in hosts:
        raise UnusableDsn(ESCAPE)
    found["host"] = ",".join(unquote(host["address"] or host["name"]) for host in hosts if host)
    ports = [host["port"] or "" for host in hosts if host]
    found["port"] = ",".join(ports) if any(ports) else ""
    query = parts["query"] or ""
    for item in filter(None, query.split("&")):
        name, equals, value = item.partition("=")
        name = canonical(unquote(name))
        if not equals or not _NAME.fullmatch(name) or ("@" in query and not is_known(name)):
            raise UnusableDsn(ESCAPE)
        if not is_known(name):
            raise UnusableDsn(
                f"{name} is not a parameter of a connection string. Remove it; a setting of Postgres goes into "
                "options=-c%20name%3Dvalue"
            )
        found[name] = chosen(name, unquote(value))
    _check_ports(found)
    return found


def _from_keywords(text: str) -> dict[str, str]:
    found = {}
    position, number = 0, 0
    while text[position:].strip():
        pair = _PAIR.match(text, position)
        if pair is None:
            raise UnusableDsn(_QUOTE)
        position, number = pair.end(), number + 1
        name = canonical(pair["name"])
        if not is_known(name):
            # The error does not quote the name, which may be a part of a password with a space.
            raise UnusableDsn(f"its parameter number {number} is unknown. Remove it, or {_QUOTE}")
        found[name] = chosen(name, _BACKSLASH.sub(r"\1", pair["plain"] if pair["quoted"] is None else pair["quoted"]))
    _check_ports(found)
    return found


def _check_ports(found: Mapping[str, str]) -> None:
    ports = found.get("port", "").split(",")
    if not all(_PORT.fullmatch(port) and int(port or 1) in range(1, 65536) for port in ports):
        raise UnusableDsn(ESCAPE)
    for name in ("host", "hostaddr"):
        if name in found and len(ports) > 1 and len(found[name].split(",")) != len(ports):
            raise UnusableDsn("it must have one port for all hosts, or one for each")


def _addresses(known: Mapping[str, str], *, by_address: bool = False) -> list[tuple[str, int]]:
    """Return the hosts with their ports: by their names, or with `by_address` as in `hostaddr`, if that is set."""
    names, numbers = known.get("host", ""), known.get("hostaddr", "")
    if not names and not numbers:
        return []
    hosts = (names or numbers).split(",")
    if by_address and numbers:
        listed = numbers.split(",")
        if len(listed) != len(hosts):
            raise UnusableDsn("host and hostaddr must name the same number of servers")
        hosts = [number or host for number, host in zip(listed, hosts, strict=True)]
    ports = (known.get("port") or os.environ.get("PGPORT", "")).split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    if len(ports) != len(hosts):
        raise UnusableDsn("it must have one port for all hosts, or one for each")
    return [(host or "localhost", int(port or 5432)) for host, port in zip(hosts, ports, strict=True)]


def _secured(known: dict[str, str]) -> dict[str, str]:
    """Return the parameters with TLS at least as strict as the string requires.

    Raises:
        UnusableDsn: a parameter asks for a protection that would not be provided.
    """
    for name in _FILES:
        path = known.get(name)
        if path and (name, path) != ("sslrootcert", "system") and not os.access(path, os.R_OK):
            raise UnusableDsn(f"the file of {name} cannot be read")
    if known.get("sslrootcert") == "system":
        if known.setdefault("sslmode", "verify-full") != "verify-full":
            raise UnusableDsn("sslrootcert=system needs sslmode=verify-full")
        if "sslcrl" in known:
            raise UnusableDsn("sslcrl needs sslrootcert with a file, and not the system's certificates")
    mode = known.get("sslmode", "prefer")
    if known.get("channel_binding") == "require" and mode not in _ENCRYPTING:
        # Channel binding needs TLS.
        known["sslmode"] = mode = "require"
    if "sslrootcert" in known and mode not in _ENCRYPTING:
        raise UnusableDsn("sslrootcert is not used with this sslmode: add sslmode=verify-full, or remove it")
    if "sslcrl" in known and mode not in _VERIFYING:
        raise UnusableDsn("sslcrl is not used with this sslmode: add sslmode=verify-full, or remove it")
    if "hostaddr" in known and mode == "verify-full":
        raise UnusableDsn(
            "remove hostaddr: with sslmode=verify-full the server is found by the name in its certificate"
        )
    return known


def _system_context(given: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that verifies the server by the system's certificates, and has the client's certificate."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["postgresql"])
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if version := given.get("ssl_min_protocol_version"):
        context.minimum_version = ssl.TLSVersion[version.replace(".", "_")]
    if version := given.get("ssl_max_protocol_version"):
        context.maximum_version = ssl.TLSVersion[version.replace(".", "_")]
    if certificate := given.get("sslcert"):
        context.load_cert_chain(certificate, given.get("sslkey"), lambda: given.get("sslpassword", ""))
    return context


def _password(known: Mapping[str, str]) -> Any:
    """Return the password, or a function that asyncpg calls at each connect, since a password file may change."""
    if "password" in known or "PGPASSWORD" in os.environ:
        return known.get("password")
    named = known.get("passfile")
    if named and not os.access(named, os.R_OK):
        raise UnusableDsn("the file of passfile cannot be read")
    user = known.get("user") or os.environ.get("PGUSER") or getpass.getuser()
    database = known.get("dbname") or os.environ.get("PGDATABASE") or user
    hosts = _addresses(known) or _addresses({"host": os.environ.get("PGHOST", "localhost"), **_only_port(known)})
    path = Path(named) if named else _at_home(".pgpass")
    return None if path is None else functools.partial(password_for, path, hosts, database, user)


def _at_home(name: str) -> Path | None:
    """Return a file in the user's home; None for a user without one, as in a container."""
    try:
        return Path.home() / name
    except (RuntimeError, KeyError):
        return None


def _only_port(known: Mapping[str, str]) -> dict[str, str]:
    return {"port": known["port"]} if "port" in known else {}


def _service(name: str, file: str | None) -> dict[str, str]:
    """Read the parameters of a service, from `file` or where libpq looks for one."""
    folder = os.environ.get("PGSYSCONFDIR")
    paths = [Path(file) if file else _at_home(".pg_service.conf"), Path(folder) / "pg_service.conf" if folder else None]
    for path in filter(None, paths):
        parser = ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",), strict=False)
        try:
            parser.read(path)
        except (ConfigParserError, OSError, UnicodeDecodeError):
            raise UnusableDsn("the service file cannot be read") from None
        if name in parser:
            break
    else:
        raise UnusableDsn("there is no such service in the service file")
    found = {}
    for key, value in parser[name].items():
        known = canonical(key)
        if not is_known(known) or known in {"service", "servicefile"}:
            raise UnusableDsn(f"the service file has the unknown parameter {key[:40]}")
        found[known] = chosen(known, value)
    _check_ports(found)
    return {key: value for key, value in found.items() if value and matters(key, value)}


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
