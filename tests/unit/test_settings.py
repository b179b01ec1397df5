"""Sources of settings, and the message for an invalid one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import AliasChoices, SecretStr
from tools.settings_page import PAGE, page

from baton import cores, model_entries
from baton.errors import ConfigurationError
from baton.generators.registry import load_generators
from baton.settings import Settings

DSN = "postgresql://user:secret@host:5432/name"


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("BATON_", "OPENAI_", "ANTHROPIC_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_every_setting_but_the_database_has_a_default() -> None:
    loaded = Settings.load()
    assert loaded.worker_concurrency == 200
    assert loaded.worker_name == loaded.pod_name
    with pytest.raises(ConfigurationError, match=r"No database is configured\. Set BATON_DATABASE_URL="):
        _ = loaded.dsn


def test_arguments_override_the_environment_and_it_overrides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("BATON_PORT=1\nBATON_MAX_ATTEMPTS=5\nBATON_LEASE_SECONDS=7\nOTHER=1\n")
    monkeypatch.setenv("BATON_MAX_ATTEMPTS", "6")
    monkeypatch.setenv("BATON_LEASE_SECONDS", "8")
    loaded = Settings.load(lease_seconds=9, port=None)
    assert (loaded.port, loaded.max_attempts, loaded.lease_seconds) == (1, 6, 9)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "BATON_WORKER_CONCURRENCY",
            "0",
            "BATON_WORKER_CONCURRENCY: Input should be greater than or equal to 1 (it is 0).",
        ),
        ("BATON_LEASE_SECONDS", "soon", "BATON_LEASE_SECONDS: Input should be a valid number"),
        ("BATON_ON_WORKER_LOST", "shrug", "BATON_ON_WORKER_LOST: Input should be 'continue', 'retry' or 'fail'."),
        ("BATON_GENERATORS", "a=m:f,mine=module", "item 2 must look like name=package.module:function"),
        ("BATON_OPENAI_BASE_URL", "ftp://x", "BATON_OPENAI_BASE_URL: it must look like https://host:port/path."),
        (
            "BATON_DATABASE_URL",
            "mysql://u:secret@h/n",
            "BATON_DATABASE_URL: it must look like postgresql://user:password",
        ),
        (
            "BATON_POD_NAME",
            "pöd",
            "BATON_POD_NAME: it must be 1 to 100 printable ASCII characters, without a space at either end.",
        ),
        ("BATON_GENERATORS", "external=m:f", "BATON_GENERATORS names the generator 'external', which is reserved"),
        ("BATON_MODELS", '{"external": "replay"}', "BATON_MODELS names the generator 'external', which is reserved"),
        ("BATON_DEFAULT_GENERATOR", "external", "BATON_DEFAULT_GENERATOR names the generator 'external'"),
        ("BATON_ENABLED_GENERATORS", "external", "BATON_ENABLED_GENERATORS names the generator 'external'"),
        ("BATON_POD_NAME", "a\nb", "BATON_POD_NAME: it must be 1 to 100 printable ASCII"),
        ("BATON_POD_NAME", "x" * 101, "BATON_POD_NAME: it must be 1 to 100 printable ASCII"),
        ("BATON_WORKER_NAME", " w", "BATON_WORKER_NAME: it must be 1 to 100 printable ASCII"),
        ("BATON_WORKER_NAME", "", "BATON_WORKER_NAME: it must be 1 to 100 printable ASCII"),
        ("BATON_PORT", "65536", "BATON_PORT: Input should be less than or equal to 65535 (it is 65536)."),
    ],
)
def test_an_invalid_setting_gets_a_message_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert sentence in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["a", "pod-a", "x" * 100, "pod ~ !"])
def test_a_name_fits_into_a_header(name: str) -> None:
    assert Settings.load(pod_name=name, worker_name=name).pod_name == name


def test_the_number_of_processes_may_be_that_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().processes == 1
    monkeypatch.setenv("BATON_PROCESSES", "auto\n")
    assert Settings.load().processes == cores.available()
    assert Settings.load(processes="3").processes == 3
    with pytest.raises(ConfigurationError, match="BATON_PROCESSES: it must be a number of processes, or auto"):
        Settings.load(processes="all")


def test_a_lease_outlasts_three_heartbeats() -> None:
    assert Settings.load(database_url=DSN, lease_seconds=3, worker_heartbeat_seconds=1).lease_seconds == 3
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(database_url=DSN, lease_seconds=2.9, worker_heartbeat_seconds=1)
    assert str(caught.value) == (
        "BATON_LEASE_SECONDS must be at least 3 times BATON_WORKER_HEARTBEAT_SECONDS, 3 (it is 2.9). "
        "Otherwise a worker whose heartbeat is late counts as dead."
    )


def test_all_invalid_settings_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"BATON_PORT: .* BATON_MAX_ATTEMPTS: "):
        Settings.load(port=-1, max_attempts=0)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("", {}),
        ("a=m:f", {"a": "m:f"}),
        (" a=m:f , b-2.x=pack.age:_g ,", {"a": "m:f", "b-2.x": "pack.age:_g"}),
        ("a=m:f,a=m:g", {"a": "m:g"}),
    ],
)
def test_generators_are_a_list_of_names(monkeypatch: pytest.MonkeyPatch, given: str, found: dict[str, str]) -> None:
    monkeypatch.setenv("BATON_GENERATORS", given)
    assert Settings.load().generators == found


def test_models_are_a_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_MODELS", "")
    assert Settings.load().models == {}
    monkeypatch.setenv("BATON_MODELS", '{"gpt-5": "openai", "a/b:c": {"generator": "openai", "model": "x"}}')
    assert Settings.load().models == {
        "gpt-5": {"generator": "openai"},
        "a/b:c": {"generator": "openai", "model": "x"},
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("fast=openai", "it must be a JSON object"),
        ("[]", "it must be a JSON object"),
        ('{"": "openai"}', "name 1 must be 1 to 64 letters"),
        ('{"b": "openai", "-a": "openai"}', "name 2 must be 1 to 64 letters"),
        ('{"a": ""}', "value 1 must be the name of a generator"),
        ('{"a": {"model": "x"}}', "value 1 must be the name of a generator"),
    ],
)
def test_invalid_models(monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.setenv("BATON_MODELS", given)
    with pytest.raises(ConfigurationError) as caught:
        Settings.load()
    assert str(caught.value).startswith(f"BATON_MODELS: {expected}")


def models_refusal(models: dict[str, Any], **settings: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(models=models, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"base_url": "localhost:8000"}, '"base_url" must be like https://host:port/path.'),
        ({"base_url": 7}, '"base_url" must be like https://host:port/path.'),
        (
            {"api_key_env": "sk-secret"},
            (
                '"api_key_env" must be the name of an environment variable in capitals, such as MY_API_KEY, and not '
                "the key itself."
            ),
        ),
        ({"fallback": "b"}, '"fallback" must be a list of names of other entries.'),
        ({"fallback": [["b"]]}, '"fallback" must be a list of names of other entries.'),
        ({"fallback": ["a"]}, 'its "fallback" names itself. Name other entries.'),
        ({"fallback": ["b", "b"]}, '"fallback" names an entry twice.'),
        (
            {"fallback": ["sk-secret"]},
            'each name in "fallback" must be another entry of BATON_MODELS. Known are: b, mine.',
        ),
        ({"max_concurrency": 0}, '"max_concurrency" must be a whole number from 1 to 100,000.'),
        ({"max_concurrency": True}, '"max_concurrency" must be a whole number from 1 to 100,000.'),
        ({"max_concurrency": 1.5}, '"max_concurrency" must be a whole number from 1 to 100,000.'),
        ({"resume": "always"}, '"resume" must be one of restart, reattach, prefix.'),
        (
            {"api_key": "sk-secret"},
            'must not contain a key. Put it into an environment variable, and the variable\'s name into "api_key_env".',
        ),
        (
            {"fallback": ["mine"]},
            (
                "cannot fall back on 'mine'. Name entries of the built-in generators openai and anthropic only: of "
                "others it is unknown why they failed."
            ),
        ),
    ],
)
def test_an_entry_of_models_that_cannot_work(entry: dict[str, Any], expected: str) -> None:
    models = {"a": {"generator": "openai", **entry}, "b": "anthropic", "mine": "agent"}
    said = models_refusal(models, generators={"agent": "my_agent:answer"})
    assert said.removeprefix("BATON_MODELS: 'a'").removeprefix(":").strip() == expected
    assert "secret" not in said


@pytest.mark.parametrize("generator", ["replay", "agent", "anthropic"])
@pytest.mark.parametrize(
    "entry", [{"base_url": "http://a/v1"}, {"api_key_env": "MY_KEY"}, {"fallback": []}, {"resume": "restart"}]
)
def test_only_models_of_a_provider_have_an_address_a_key_and_a_fallback(generator: str, entry: dict[str, Any]) -> None:
    """A custom generator may have the name of a provider's."""
    custom = {"agent": "my_agent:answer", "anthropic": "my_agent:answer"}
    said = models_refusal({"a": {"generator": generator, **entry}}, generators=custom)
    assert said == (
        f"BATON_MODELS: 'a' cannot have \"{next(iter(entry))}\": only entries of the built-in generators openai and "
        "anthropic can. Remove it, or give it to your generator in another way."
    )


def test_any_generator_may_have_a_limit() -> None:
    assert (
        Settings.load(models={"a": {"generator": "replay", "max_concurrency": 2}}).models["a"]["max_concurrency"] == 2
    )


def test_a_fallback_leads_nowhere_twice() -> None:
    def entry(*fallback: str) -> dict[str, Any]:
        return {"generator": "openai", "fallback": list(fallback)}

    said = models_refusal({"a": entry("b"), "b": entry("c"), "c": entry("a")})
    assert said == (
        "BATON_MODELS: 'a': its \"fallback\" leads back to itself, by way of 'b', 'c'. Remove one of these names from "
        "a fallback."
    )
    diamond = {"a": entry("b", "c"), "b": entry("d"), "c": entry("d"), "d": entry()}
    assert model_entries.chain(Settings.load(models=diamond).models, "a") == ["a", "b", "d", "c"]


def test_a_models_key_may_be_in_the_environment_or_in_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath(".env").write_text("BATON_FILE_KEY=from-file\nBOTH_KEY=from-file\n")
    monkeypatch.setenv("BOTH_KEY", "from-environment\n")
    monkeypatch.setenv("WRONG_KEY", "two words")
    models = {"a": {"generator": "openai", "api_key_env": "BATON_FILE_KEY"}}
    settings = Settings.load(models=models)
    found = [settings.secret(name) for name in ("BATON_FILE_KEY", "BOTH_KEY", "NO_KEY")]
    assert [key and key.get_secret_value() for key in found] == ["from-file", "from-environment", None]
    assert settings.remarks == []
    assert "from-" not in repr(settings)
    with pytest.raises(ConfigurationError, match="WRONG_KEY must contain printable ASCII") as caught:
        settings.secret("WRONG_KEY")
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize("around", ["{}\n", " {}", "{}\r\n", "\t{} \n"])
def test_values_of_mounted_files_lose_their_final_line_break(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, around: str
) -> None:
    given = {
        "BATON_DATABASE_URL": DSN,
        "BATON_LISTEN_DATABASE_URL": DSN,
        "OPENAI_API_KEY": "sk-1",
        "ANTHROPIC_API_KEY": "sk-2",
        "OPENAI_BASE_URL": "https://host/v1",
        "ANTHROPIC_BASE_URL": "https://host/v1",
        "BATON_JWKS_URL": "https://host/keys",
        "BATON_JWT_ISSUER": "https://host",
        "BATON_JWT_AUDIENCE": "baton",
        "BATON_ALLOWED_ORIGINS": "https://host",
        "BATON_OPENAI_MODEL": "gpt",
        "BATON_TOKEN_KEYS": f"a={'k' * 32}",
        "BATON_HOST": "::1",
        "BATON_LOG_FORMAT": "json",
        "BATON_PORT": "80",
        "GOOGLE_CLOUD_PROJECT": "p",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    clean = Settings.load()
    for name, value in given.items():
        monkeypatch.setenv(name, around.format(value))
    loaded = Settings.load()
    assert loaded.model_dump() == clean.model_dump()
    assert (loaded.dsn, loaded.openai_base_url, loaded.port) == (DSN, "https://host/v1", 80)
    # The same holds for arguments and files.
    given_key = Settings.load(openai_api_key=SecretStr(around.format("sk-1"))).openai_api_key
    assert given_key == SecretStr("sk-1")
    monkeypatch.delenv("BATON_DATABASE_URL")
    (tmp_path / "BATON_DATABASE_URL").write_text(around.format(DSN))
    assert Settings.load(_secrets_dir=str(tmp_path)).dsn == DSN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", "sk-1\nsk-2"),
        ("ANTHROPIC_API_KEY", "sk-1 sk-2"),
        ("OPENAI_API_KEY", "sk-\u2026"),
        ("OPENAI_BASE_URL", "https://host/\nv1"),
        ("BATON_ANTHROPIC_BASE_URL", "https://ho st/v1"),
        ("OPENAI_BASE_URL", "https://host:odd/v1"),
        ("BATON_JWKS_URL", "https://host/ke\nys"),
        ("BATON_DATABASE_URL", "postgresql://u:p\nq@h/n"),
    ],
)
def test_keys_and_addresses_with_invalid_characters_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=name):
        Settings.load()


MARKER = "sk-live-4f9d"
# A secret in the wrong place: alone, in a list, in JSON, in an address, and where Python's own errors quote it.
MALFORMED = (
    MARKER,
    f"{MARKER}=x:y,{MARKER}",
    f"{MARKER}={MARKER},{MARKER}={MARKER}",
    f'{{"fast": {{"api_key": "{MARKER}"}}}}',
    f'{{"fast": ["{MARKER}"], "api_key": "{MARKER}"}}',
    f'{{"-{MARKER}": 7}}',
    f'{{"{MARKER}": 7}}',
    f'{{"fast": "openai", "api_key": "{MARKER}"',
    f'["{MARKER}"]',
    f"ftp://user:{MARKER}@host/x",
    f"https://user:{MARKER}@[host/x",
    f"postgresql://user:{MARKER}\uff0f@host/x",
    f"\n{MARKER}",
)


def variables() -> list[str]:
    """Return each variable that sets a setting."""
    found: list[Any] = []
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        found += alias.choices if isinstance(alias, AliasChoices) else [f"BATON_{name.upper()}"]
    return [str(name) for name in found]


@pytest.mark.parametrize("variable", variables())
def test_no_mistake_shows_a_secret(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    for value in MALFORMED:
        monkeypatch.setenv(variable, value)
        with contextlib.suppress(ImportError):  # a well-formed value may name a missing module
            sentence = mistake()
            assert sentence is None or MARKER not in sentence, value


def mistake() -> str | None:
    """Return a worker's error about its settings and presets, or None."""
    try:
        loaded = Settings.load()
        load_generators(loaded.model_copy(update={"generators": {}, "enabled_generators": frozenset()}))
    except ConfigurationError as error:
        return str(error)
    return None


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_sqlalchemys_driver_suffix_is_dropped(scheme: str) -> None:
    loaded = Settings.load(database_url=f"{scheme}://u:p@h/n")
    assert loaded.dsn == f"{scheme.partition('+')[0]}://u:p@h/n"
    assert loaded.listen_dsn == loaded.dsn


def test_the_listener_can_bypass_a_pooler() -> None:
    assert (
        Settings.load(database_url=DSN, listen_database_url="postgres://direct/n").listen_dsn == "postgres://direct/n"
    )


@pytest.mark.parametrize("value", [DSN, ""])
def test_secrets_are_not_shown(value: Any) -> None:
    shown = repr(Settings.load(database_url=value, openai_api_key="secret"))
    assert "secret" not in shown.replace("webhook_secrets", "")


def test_the_providers_own_variables_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    key = Settings.load().openai_api_key
    assert key is not None
    assert key.get_secret_value() == "theirs"


def test_the_settings_page_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "Run: python -m tools.settings_page"


def test_a_variable_that_is_no_setting_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("BATON_LEAVE_SECONDS", "3")
    monkeypatch.setenv("BATON_WORKER_DRAIN_SECONDS", "3")
    monkeypatch.setenv("BATON_OPENAI_API_KEY", "sk-1")
    for foreign in ("URL", "KEY", "IMAGE", "HTTP_PORT", "SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT_8000_TCP_ADDR"):
        monkeypatch.setenv(f"BATON_{foreign}", "x")
    Path(".env").write_text("BATON_OFFERED_GENERATORS=secret\n")
    (remark,) = Settings.load().remarks
    assert "name: BATON_LEAVE_SECONDS, BATON_OFFERED_GENERATORS. " in remark
    assert "secret" not in remark
