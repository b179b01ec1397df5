"""Connection strings: what is passed on, translated, ignored and refused, and that no part of a password is shown."""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from baton.db.postgres import connect
from baton.dsn.connection_strings import NOT_BOUND, Dsn
from baton.dsn.parameters import UnusableDsn
from baton.errors import ConfigurationError
from baton.schema.migrate import revision_of
from baton.settings import Settings

SECRET = "s3cr3t"
NEON = "postgresql://u:p@ep-cool-1.eu-central-1.aws.neon.tech/neondb?sslmode=require&channel_binding=require"


def arguments(text: str) -> dict[str, Any]:
    return Dsn.parse(text).arguments()


def for_asyncpg(text: str) -> dict[str, str]:
    """Return the part that asyncpg reads."""
    return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(arguments(text)["dsn"]).query))


def refusal(text: str) -> str:
    with pytest.raises(UnusableDsn) as caught:
        arguments(text)
    assert SECRET not in str(caught.value)
    assert caught.value.__context__ is None, "what a traceback would show"
    return str(caught.value)


def with_parameter(parameter: str) -> str:
    return f"postgresql://u:{SECRET}@h/n?{parameter}"


@pytest.mark.parametrize(
    ("text", "hosts", "ports"),
    [
        ("postgresql://h/n", ["h"], [5432]),
        ("postgres://h:5433/n", ["h"], [5433]),
        ("postgresql+asyncpg://h/n", ["h"], [5432]),
        ("postgresql://one,two:6/n", ["one", "two"], [5432, 6]),
        ("postgresql://one,two/n?port=7", ["one", "two"], [7, 7]),
        ("postgresql://[::1]:6,[fe80::1]/n", ["::1", "fe80::1"], [6, 5432]),
        ("postgresql://%2Fvar%2Frun/n", ["/var/run"], [5432]),
        ("postgresql:///n?host=/var/run&port=6", ["/var/run"], [6]),
        ("postgresql:///n", None, None),
        ("postgresql://u@:6/n", None, "6"),
        ("postgresql://h:6/n?hostaddr=10.0.0.1", ["10.0.0.1"], [6]),
        ("postgresql://h/n?host=other", ["other"], [5432]),
        ("host=one,two port=6,7 dbname=n", ["one", "two"], [6, 7]),
    ],
)
def test_the_server_of_a_connection_string(text: str, hosts: list[str] | None, ports: list[int] | str | None) -> None:
    found = arguments(text)
    assert (found["host"], found["port"]) == (hosts, ports)


@pytest.mark.parametrize(
    ("text", "login"),
    [
        ("postgresql://u:p%40%23%2F%3F%25%3A@h/n", ("u", "p@#/?%:", "n")),
        ("postgresql://u:a:b[c@h/n", ("u", "a:b[c", "n")),
        ("postgresql://h/n?user=u%40server&password=a+b", ("u@server", "a+b", "n")),
        ("postgresql://h/n?user=u@server&password=p", ("u@server", "p", "n")),
        ("postgresql://u:p@h/?dbname=n", ("u", "p", "n")),
        ("postgresql://u:p@h?database=n", ("u", "p", "n")),
        (r"host=h user = u password='it\'s \\ #@ 1' dbname=n", ("u", r"it's \ #@ 1", "n")),
        (r"host=h user=u password=a\ b dbname='n'", ("u", "a b", "n")),
    ],
)
def test_the_user_and_the_database(text: str, login: tuple[str, str, str]) -> None:
    found = arguments(text)
    assert (found["user"], found["password"], found["database"]) == login


@pytest.mark.parametrize(
    "password",
    [
        *(
            f"{SECRET}{mark}{SECRET}"
            for mark in ("#", "@", "/", "?", "%", "/@", "#@", "?a=", "?sslmode=", "%zz", "%00", "\n")
        ),
        *(f"1{mark}{SECRET}" for mark in ("#", "/", "?", "?a=")),
        *(f"{mark}{SECRET}" for mark in ("#", "@", "/", "?", "[", "?x=1@")),
    ],
)
async def test_a_password_that_is_not_percent_encoded_is_refused_and_never_shown(password: str) -> None:
    text = f"postgresql://user:{password}@host/name"
    if "[" in password:  # which is not ambiguous
        assert arguments(text)["password"] == password
        return
    assert "Percent-encode the password" in refusal(text)
    with pytest.raises(ConfigurationError) as from_settings:
        Settings.load(database_url=text)
    with pytest.raises(ConfigurationError) as connecting:
        await connect(text)
    with pytest.raises(ConfigurationError) as migrating:
        await revision_of(text)
    for caught in (from_settings, connecting, migrating):
        assert SECRET not in str(caught.value)
        assert "Percent-encode the password" in str(caught.value)


@pytest.mark.parametrize(
    "text", [f"host=h password={SECRET} {SECRET}", f"host=h password={SECRET} {SECRET}=1", f"a={SECRET}"]
)
def test_pairs_that_are_not_quoted_are_refused_and_never_shown(text: str) -> None:
    assert "single quotes" in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        SECRET,
        f"jdbc:postgresql://h/n?password={SECRET}",
        f"mysql://u:{SECRET}@h/n",
        f"'postgresql://u:{SECRET}@h/n'",
    ],
)
def test_text_that_is_not_a_connection_string(text: str) -> None:
    assert refusal(text).startswith("it must look like postgresql://")


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("require_auth=scram-sha-256", "require_auth"),
        ("requirepeer=postgres", "requirepeer"),
        ("gssencmode=require", "gssencmode"),
        ("gssdelegation=1", "gssdelegation"),
        ("sslcrldir=/crl", "sslcrldir"),
        ("sslcertmode=require", "sslcertmode"),
        ("sslsni=0", "sslsni"),
        ("sslkeylogfile=/tmp/keys", "sslkeylogfile"),
        (f"scram_client_key={SECRET}", "scram_client_key"),
        (f"scram_server_key={SECRET}", "scram_server_key"),
        ("oauth_issuer=https://x", "oauth_issuer"),
        (f"oauth_client_secret={SECRET}", "oauth_client_secret"),
        ("replication=database", "replication"),
        ("client_encoding=latin1", "client_encoding"),
        ("sslaccept=strict", "sslaccept"),
        ("sslidentity=/id.p12", "sslidentity"),
    ],
)
def test_an_unsupported_protection_is_refused_by_its_name(parameter: str, name: str) -> None:
    assert refusal(with_parameter(parameter)).startswith(f"remove {name}, ")


@pytest.mark.parametrize(
    ("parameter", "said"),
    [
        ("statement_timeout=5", "statement_timeout is not a parameter of a connection string. Remove it; "),
        ("sslmode=odd", "sslmode must be one of "),
        ("target_session_attrs=odd", "target_session_attrs must be one of "),
        ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version must be one of "),
        ("port=99999", "it must look like "),
        ("sslrootcert=/nowhere&sslmode=verify-full", "the file of sslrootcert cannot be read"),
        ("sslcert=/nowhere", "the file of sslcert cannot be read"),
        ("passfile=/nowhere", None),
        ("sslrootcert=/dev/null", "sslrootcert is not used with this sslmode: add sslmode=verify-full"),
        ("sslrootcert=/dev/null&sslmode=prefer", "sslrootcert is not used with this sslmode: add sslmode=verify-full"),
        ("sslcrl=/dev/null&sslmode=require", "sslcrl is not used with this sslmode: add sslmode=verify-full"),
        ("sslrootcert=system&sslmode=require", "sslrootcert=system needs sslmode=verify-full"),
        ("hostaddr=10.0.0.1&sslmode=verify-full", "remove hostaddr: "),
        ("service=x&servicefile=/nowhere", "there is no such service"),
    ],
)
def test_the_error_explains_an_invalid_parameter(parameter: str, said: str | None) -> None:
    if said is None:  # a password that is given goes before the file
        assert arguments(with_parameter(parameter))["password"] == SECRET
    else:
        assert refusal(with_parameter(parameter)).startswith(said)


def test_a_protection_required_by_a_libpq_variable_is_not_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGREQUIREAUTH", "scram-sha-256")
    assert refusal("postgresql://h/n").startswith("remove PGREQUIREAUTH, ")
    monkeypatch.delenv("PGREQUIREAUTH")
    monkeypatch.setenv("PGCHANNELBINDING", "require")
    assert for_asyncpg("postgresql://h/n")["sslmode"] == "require"


def test_the_options_of_a_libpq_variable_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c search_path=mine")
    assert arguments("postgresql://h/n")["server_settings"] == {"options": "-c search_path=mine"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("sslmode=no-verify", "require"),
        ("ssl=true", "require"),
        ("ssl=verify-full", "verify-full"),
        ("ssl=false", None),
        ("channel_binding=require", "require"),
        ("channel_binding=require&sslmode=disable", "require"),
        ("channel_binding=require&sslmode=verify-full", "verify-full"),
    ],
)
def test_the_effective_sslmode_of_a_string(given: str, meant: str | None) -> None:
    assert for_asyncpg(with_parameter(given)).get("sslmode") == meant


def test_neons_string_is_understood_and_its_limits_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings.load(database_url=NEON)
    assert settings.remarks == [NOT_BOUND]
    assert for_asyncpg(settings.dsn) == {"sslmode": "require"}
    assert arguments(settings.dsn)["server_settings"] == {}
    assert arguments(f"{NEON}&options=endpoint%3Dep-cool-1")["server_settings"] == {"options": "endpoint=ep-cool-1"}


def test_nothing_shows_the_password() -> None:
    known = Dsn.parse(f"postgresql://u:{SECRET}@h/n")
    settings = Settings.load(database_url=f"host=h password={SECRET}")
    assert SECRET not in f"{known!r} {known.place} {settings!r}"


def test_a_service_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "services"
    file.write_text(
        "[mine]\nhost=h\nuser=u\npassword=50%off:1\nsslmode=require\nchannel_binding=require\n[bad]\nrequire_auth=md5\n"
    )
    found = arguments(f"postgresql://other@/n?service=mine&servicefile={file}")
    assert (found["host"], found["user"], found["password"]) == (["h"], "other", "50%off:1")
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert arguments("service=mine")["user"] == "u"
    assert refusal("service=bad").startswith("remove require_auth, ")
