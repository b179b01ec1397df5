from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.unit.generators.generation import hear

from baton.errors import ConfigurationError
from baton.generators import close_generators, configured_names, load_generators
from baton.generators.protocol import can_continue, stopper
from baton.generators.registry import what_is_missing
from baton.settings import Settings

AGENT = """
from functools import partial

async def answer(request):
    yield f"You said {request.input}."

class Agent:
    closed = 0

    async def __call__(self, request):
        yield "I am an agent."

    async def aclose(self):
        self.closed += 1

async def echo(request):
    yield {"type": "custom", "name": "input", "data": request.input}

agent = Agent()
shouting = partial(answer)

async def coroutine(request):
    return "text"

later = partial(coroutine)

def plain(request):
    yield f"You said {request.input}."

class PlainAgent:
    def __call__(self, request):
        return [f"You said {request.input}."]

plain_agent = PlainAgent()

number = 7
"""


@pytest.fixture(autouse=True)
def _fresh_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The current directory, with a person's own module in it."""
    tmp_path.joinpath("my_agent.py").write_text(AGENT)
    return tmp_path


def settings_with(**generators: str) -> Settings:
    return Settings.load(generators=generators)


def refusal_of(target: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_generators(settings_with(mine=target))
    return str(caught.value)


def test_replay_needs_nothing() -> None:
    assert configured_names(Settings.load()) == {"replay"}
    assert set(load_generators(Settings.load())) == {"replay"}


@pytest.mark.parametrize("given", [{"api_key": "k"}, {"base_url": "http://localhost:1/v1"}])
@pytest.mark.parametrize("name", ["openai", "anthropic"])
async def test_a_provider_is_offered_with_a_key_or_an_address(name: str, given: dict[str, str]) -> None:
    settings = Settings.load(**{f"{name}_{field}": value for field, value in given.items()})
    generators = load_generators(settings)
    assert set(generators) == configured_names(settings) == {"replay", name}
    await close_generators(generators)


@pytest.mark.parametrize("given", [{"openai_api_key": ""}, {"openai_base_url": ""}])
def test_an_empty_setting_counts_as_unset(given: dict[str, str]) -> None:
    assert configured_names(Settings.load(**given)) == {"replay"}


def test_a_provider_without_its_sdk_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = Settings.load(openai_api_key="k", anthropic_api_key="k")
    assert configured_names(settings) == set(load_generators(settings)) == {"replay"}


def test_the_error_names_what_a_provider_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert what_is_missing(Settings.load(openai_api_key="key"), "openai") is None
    assert what_is_missing(Settings.load(), "nosuch") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert what_is_missing(Settings.load(openai_api_key="key"), "openai") == (
        "The generator 'openai' cannot be used yet: install its SDK (`pip install \"baton-stream[openai]\"`)."
    )
    assert what_is_missing(Settings.load(), "anthropic") == (
        "The generator 'anthropic' cannot be used yet: install its SDK (`pip install \"baton-stream[anthropic]\"`) "
        "and set ANTHROPIC_API_KEY, or BATON_ANTHROPIC_BASE_URL for a compatible server."
    )


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "https://"])
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(openai_base_url=url)
    assert str(caught.value) == "BATON_OPENAI_BASE_URL: it must look like https://host:port/path."


@pytest.mark.usefixtures("here")
async def test_own_generators_load_from_the_workers_working_directory() -> None:
    settings = Settings.load(generators="mine=my_agent:answer, other=my_agent:agent, third=my_agent:shouting")
    generators = load_generators(settings)
    assert set(generators) == configured_names(settings) == {"replay", "mine", "other", "third"}
    assert (await hear(generators["mine"], "hi")).text == "You said hi."
    assert (await hear(generators["other"])).text == "I am an agent."
    assert (await hear(generators["third"], "hi")).text == "You said hi."
    await close_generators(generators)
    assert sys.modules["my_agent"].agent.closed


@pytest.mark.usefixtures("here")
async def test_functions_that_are_not_async_are_generators() -> None:
    generators = load_generators(settings_with(mine="my_agent:plain", other="my_agent:plain_agent"))
    assert (await hear(generators["mine"], "hi")).text == "You said hi."
    assert (await hear(generators["other"], "hi")).text == "You said hi."


@pytest.mark.usefixtures("here")
async def test_an_own_generator_can_use_a_built_in_name() -> None:
    settings = Settings.load(generators="replay=my_agent:answer,openai=my_agent:answer", openai_api_key="k")
    generators = load_generators(settings)
    assert set(generators) == configured_names(settings) == {"replay", "openai"}
    assert (await hear(generators["openai"], "hi")).text == "You said hi."


@pytest.mark.usefixtures("here")
def test_names_are_known_without_importing() -> None:
    assert configured_names(settings_with(mine="my_agent:answer")) == {"replay", "mine"}
    assert "my_agent" not in sys.modules


@pytest.mark.parametrize(("target", "missing"), [("nowhere:x", "nowhere"), ("nowhere.at_all:x", "nowhere.at_all")])
def test_no_such_module(target: str, missing: str) -> None:
    assert refusal_of(target) == (
        f"The generator 'mine' cannot be loaded: there is no module '{missing}', "
        "neither installed nor in the current directory."
    )


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise RuntimeError('no\\nluck')", "RuntimeError: no luck"),
        ("import nowhere_at_all", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
        ("def broken(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
    ],
)
def test_a_module_that_fails(here: Path, source: str, told: str) -> None:
    here.joinpath("broken.py").write_text(source)
    expected = f"The generator 'mine' cannot be loaded: importing 'broken' fails with {told}"
    assert refusal_of("broken:x") == expected


@pytest.mark.usefixtures("here")
def test_no_such_attribute() -> None:
    expected = "The generator 'mine' cannot be loaded: the module 'my_agent' has no 'missing'."
    assert refusal_of("my_agent:missing") == expected


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("attribute", ["coroutine", "later", "number", "Agent"])
def test_no_generator_function(attribute: Any) -> None:
    assert refusal_of(f"my_agent:{attribute}") == (
        f"The generator 'mine', my_agent:{attribute}, is not a generator function: "
        "define it with `async def` or `def`, and `yield` what it generates."
    )


async def test_only_offered_generators_are_loaded_and_listed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setenv("BATON_GENERATORS", "mine=my_agent:answer,other=nowhere:at_all")
    monkeypatch.setenv("BATON_ENABLED_GENERATORS", "mine, absent")
    settings = Settings.load()
    assert configured_names(settings) == {"mine"} == load_generators(settings).keys()


@pytest.mark.usefixtures("here")
async def test_presets_are_generators_with_options() -> None:
    models = {"short": "echo", "Org/fast:1": {"generator": "echo", "temperature": 0, "max_tokens": 9}}
    settings = Settings.load(generators="echo=my_agent:echo", models=models)
    generators = load_generators(settings)
    assert set(generators) == configured_names(settings) == {"replay", "echo", "short", "Org/fast:1"}
    given = {"input": [1], "model": "large", "temperature": 1, "max_output_tokens": 5}
    options = {"temperature": 0, "max_tokens": 9}
    cases: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (given, {"input": [1]}, {"temperature": 1, "max_output_tokens": 5}),
        ("hi", {"messages": "hi"}, {}),
        (["hi"], {"messages": ["hi"]}, {}),
    ]
    for item, content, others in cases:
        fast = (await hear(generators["Org/fast:1"], item)).of("custom")[0]["data"]
        assert fast == {**content, "model": "Org/fast:1", **options}
        assert (await hear(generators["short"], item)).of("custom")[0]["data"] == {
            **content,
            "model": "short",
            **others,
        }
    assert (await hear(generators["short"], 7)).of("custom")[0]["data"] == 7


@pytest.mark.usefixtures("here")
async def test_a_model_in_the_options_takes_precedence() -> None:
    models = {"fast": {"generator": "echo", "model": "small"}}
    preset = load_generators(Settings.load(generators="echo=my_agent:echo", models=models))["fast"]
    for item in ("hi", {"messages": "hi"}, {"messages": "hi", "model": "fast"}, {"messages": "hi", "model": "large"}):
        assert (await hear(preset, item)).of("custom")[0]["data"] == {"messages": "hi", "model": "small"}


@pytest.mark.usefixtures("here")
async def test_a_generator_shared_by_presets_is_closed_once() -> None:
    settings = Settings.load(
        generators="other=my_agent:agent", models={"a": "other", "b": "other"}, enabled_generators="a,b"
    )
    generators = load_generators(settings)
    assert set(generators) == configured_names(settings) == {"a", "b"}
    await close_generators(generators)
    assert sys.modules["my_agent"].agent.closed == 1


def test_a_preset_can_have_the_name_of_its_generator() -> None:
    settings = Settings.load(models={"replay": {"generator": "replay", "speed": 9}})
    assert load_generators(settings).keys() == configured_names(settings) == {"replay"}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("nosuch", "BATON_MODELS: 'fast' must name a generator that is known here. Known are: replay."),
        (
            "slow",
            (
                "BATON_MODELS: 'fast' must name a generator that is known here (a preset cannot name another preset). "
                "Known are: replay."
            ),
        ),
        (
            "openai",
            (
                "BATON_MODELS: 'fast' cannot be used yet. The generator 'openai' cannot be used yet: "
                "set OPENAI_API_KEY, or BATON_OPENAI_BASE_URL for a compatible server."
            ),
        ),
    ],
)
def test_a_preset_of_an_unusable_generator(model: str, sentence: str) -> None:
    settings = Settings.load(models={"fast": model, "slow": "replay"})
    assert configured_names(settings) == {"replay", "slow"}
    assert what_is_missing(settings, "fast") == sentence
    with pytest.raises(ConfigurationError) as caught:
        load_generators(settings)
    assert str(caught.value) == sentence
    others = Settings.load(models={"fast": model, "slow": "replay"}, enabled_generators="slow")
    assert load_generators(others).keys() == {"slow"}
    assert what_is_missing(Settings.load(models={"a": "replay"}, enabled_generators="b"), "a") == (
        "The generator 'a' is left out of BATON_ENABLED_GENERATORS."
    )


RESUMING = {
    "again": {"generator": "openai", "resume": "reattach"},
    "twin": {"generator": "openai", "resume": "reattach"},
    "plain": {"generator": "openai"},
}


async def test_each_way_to_resume_is_a_generator_of_its_own() -> None:
    settings = Settings.load(openai_base_url="http://127.0.0.1:9/v1", models=RESUMING)
    generators = load_generators(settings)
    again, twin, plain = (generators[name] for name in RESUMING)
    assert [can_continue(generators[name]) for name in RESUMING] == [True, True, False]
    assert again.generator is twin.generator  # type: ignore[attr-defined]
    assert again.generator is not plain.generator  # type: ignore[attr-defined]
    assert [stopper(item) is not None for item in (again, plain)] == [True, False]
    await close_generators(generators)


async def test_a_chain_continues_and_stops_what_any_of_its_models_began() -> None:
    models = RESUMING | {"chain": {"generator": "openai", "fallback": ["again"]}}
    generators = load_generators(Settings.load(openai_base_url="http://127.0.0.1:9/v1", models=models))
    assert can_continue(generators["chain"])
    assert stopper(generators["chain"]) is not None
    await close_generators(generators)


@pytest.mark.parametrize(
    ("api", "entry", "hint"),
    [
        ("chat", {"generator": "openai", "resume": "reattach"}, "BATON_OPENAI_API=responses"),
        ("responses", {"generator": "openai", "resume": "prefix"}, "BATON_OPENAI_API=chat"),
        ("chat", {"generator": "anthropic", "resume": "prefix"}, "only entries of the generator openai"),
    ],
)
def test_a_way_to_resume_that_cannot_work_is_refused_at_the_start(api: str, entry: dict[str, str], hint: str) -> None:
    settings = Settings.load(
        openai_api=api, openai_base_url="http://127.0.0.1:9/v1", anthropic_api_key="none", models={"model": entry}
    )
    with pytest.raises(ConfigurationError, match=hint):
        load_generators(settings)
    assert "model" not in configured_names(settings)
    assert hint in str(what_is_missing(settings, "model"))


def test_a_model_needs_its_own_key_and_those_of_its_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod without the key does not know the model, and accepts it if a worker offers it."""
    models = {
        "a": {"generator": "openai", "base_url": "http://localhost:1/v1", "fallback": ["b"]},
        "b": {"generator": "anthropic", "api_key_env": "B_KEY"},
    }
    settings = Settings.load(models=models)
    sentence = (
        "BATON_MODELS: 'b' cannot be used yet: put its key into the environment variable B_KEY, which its "
        '"api_key_env" names.'
    )
    assert configured_names(settings) == {"replay"}
    for name in models:
        assert what_is_missing(settings, name) == sentence
    with pytest.raises(ConfigurationError) as caught:
        load_generators(settings)
    assert str(caught.value) == sentence
    monkeypatch.setenv("B_KEY", "key")
    assert configured_names(Settings.load(models=models)) == {"replay", "a", "b"}


@pytest.mark.usefixtures("here")
async def test_a_models_own_keys_are_no_options() -> None:
    models = {"a": {"generator": "echo", "max_concurrency": 1, "temperature": 0}}
    generators = load_generators(Settings.load(generators="echo=my_agent:echo", models=models))
    assert (await hear(generators["a"], [])).of("custom")[0]["data"] == {"messages": [], "model": "a", "temperature": 0}
