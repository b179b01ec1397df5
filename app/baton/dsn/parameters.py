"""The parameters of connection strings: libpq's own, and the ones that hosting services and other drivers add.

Each parameter is passed on, translated, ignored if it is harmless, or refused by its name if ignoring it would drop a
protection that the string asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Parameters that asyncpg reads in its own connection strings.
FOR_ASYNCPG: Final[tuple[str, ...]] = (
    *("sslmode", "sslnegotiation", "sslcert", "sslkey", "sslpassword", "sslrootcert", "sslcrl"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"),
)
_TRANSLATED: Final = frozenset(
    {"host", "hostaddr", "port", "dbname", "user", "password", "passfile", "service", "servicefile", "options"}
    | {"target_session_attrs", "channel_binding"}
)
# Baton has its own settings for these, or does not need them.
_HARMLESS: Final = frozenset(
    # libpq
    {"application_name", "fallback_application_name", "connect_timeout", "tcp_user_timeout", "load_balance_hosts"}
    | {"keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "sslcompression"}
    | {"min_protocol_version", "max_protocol_version"}
    # Prisma, Supabase, node-postgres, SQLAlchemy, Rails, pgx
    | {"pgbouncer", "connection_limit", "pool_timeout", "socket_timeout", "schema", "statement_cache_size", "supa"}
    | {"workaround", "uselibpqcompat", "pool", "pool_size", "max_overflow", "prepared_statements", "encoding"}
    | {"prepared_statement_cache_size", "async_fallback", "pool_max_conns", "pool_min_conns", "pool_mode"}
    | {"default_query_exec_mode", "statement_cache_capacity", "reaping_frequency", "checkout_timeout"}
)
_VERIFY: Final = "Use sslmode=verify-full to verify the server, and sslrootcert=system if its certificate is public"
_LOGIN: Final = "log in with a password"
# Protections that must not be dropped silently: the values that ask for nothing, and what to do instead.
_REFUSED: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "require_auth": (frozenset(), f"the authentication methods cannot be restricted. {_VERIFY}"),
    "requirepeer": (frozenset(), "the owner of the server process cannot be checked"),
    "gssencmode": (frozenset({"disable", "prefer"}), "GSSAPI encryption is not available. Use sslmode=require or more"),
    "gssdelegation": (frozenset({"0"}), "credentials cannot be delegated"),
    "sslcrldir": (frozenset(), "revoked certificates are read from one file. Name it in sslcrl"),
    "sslcertmode": (frozenset({"allow"}), "a client certificate is always sent if sslcert names one"),
    "sslsni": (frozenset({"1"}), "the server's name is always sent"),
    "sslkeylogfile": (frozenset(), "TLS keys are never written to a file"),
    "scram_client_key": (frozenset(), _LOGIN),
    "scram_server_key": (frozenset(), _LOGIN),
    **dict.fromkeys(
        ("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"), (frozenset[str](), _LOGIN)
    ),
    "replication": (frozenset({"0", "false", "off", "no"}), "Baton does not replicate"),
    "client_encoding": (frozenset({"utf8", "utf-8", "unicode", "auto"}), "Baton's texts are in UTF-8"),
    "sslaccept": (frozenset({"accept_invalid_certs"}), _VERIFY),
    "sslidentity": (frozenset(), "name the client certificate and its key in sslcert and sslkey"),
}
_CHOICES: Final[Mapping[str, frozenset[str]]] = {
    "sslmode": frozenset({"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}),
    "sslnegotiation": frozenset({"postgres", "direct"}),
    "channel_binding": frozenset({"disable", "prefer", "require"}),
    "target_session_attrs": frozenset({"any", "read-write", "read-only", "primary", "standby", "prefer-standby"}),
    "ssl_min_protocol_version": frozenset({"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}),
    "ssl_max_protocol_version": frozenset({"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}),
    "gsslib": frozenset({"gssapi", "sspi"}),
}
_SSL_MODES: Final = {"no-verify": "require", "true": "require", "1": "require", "false": "", "0": ""}

# Variables that libpq reads, and that asyncpg ignores or reads differently.
VARIABLES: Final = {
    "PGHOSTADDR": "hostaddr",
    "PGOPTIONS": "options",
    "PGSERVICE": "service",
    "PGSERVICEFILE": "servicefile",
    "PGPASSFILE": "passfile",
    "PGSSLMODE": "sslmode",
    "PGSSLROOTCERT": "sslrootcert",
    "PGSSLCRL": "sslcrl",
    "PGSSLCRLDIR": "sslcrldir",
    "PGSSLCERTMODE": "sslcertmode",
    "PGSSLSNI": "sslsni",
    "PGCHANNELBINDING": "channel_binding",
    "PGREQUIREAUTH": "require_auth",
    "PGREQUIREPEER": "requirepeer",
    "PGGSSENCMODE": "gssencmode",
}


class UnusableDsn(ValueError):
    """What is wrong with a connection string, without quoting any part of it. It follows the name of the setting."""


def canonical(name: str) -> str:
    """Return libpq's name for a parameter of another driver."""
    return {"database": "dbname", "ssl": "sslmode", "username": "user"}.get(name, name)


def is_known(name: str) -> bool:
    """Return whether a parameter is known."""
    return name in _TRANSLATED or name in FOR_ASYNCPG or name in _HARMLESS or name in _REFUSED


def chosen(name: str, value: str) -> str:
    """Return a parameter's value as libpq writes it.

    Raises:
        UnusableDsn: the parameter cannot have this value.
    """
    if name == "sslmode":
        value = _SSL_MODES.get(value.lower(), value)
    if value and name in _CHOICES and value not in _CHOICES[name]:
        raise UnusableDsn(f"{name} must be one of {', '.join(sorted(_CHOICES[name]))}")
    return value


def matters(name: str, value: str, *, called: str = "") -> bool:
    """Return whether a parameter has an effect. `called` is the name of its variable if it is not from the string.

    Raises:
        UnusableDsn: it asks for something that Baton cannot do.
    """
    if name not in _REFUSED:
        return name not in _HARMLESS
    harmless, why = _REFUSED[name]
    if value.lower() not in harmless:
        raise UnusableDsn(f"remove {called or name}, which cannot be honored: {why}")
    return False
