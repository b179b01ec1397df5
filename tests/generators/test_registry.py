from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.generators.generation import hear

from baton.errors import ConfigurationError
from baton.generators import close_generators, configured_names, load_generators
from baton.settings import Settings

AGENT = """
from functools import partial

async def answer(request):
    yield f"You said {request.input}."

class Agent:
    closed = False

    async def __call__(self, request):
        yield "I am an agent."

    async def aclose(self):
        self.closed = True

agent = Agent()
shouting = partial(answer)

async def coroutine(request):
    return "text"

def plain(request):
    yield "text"

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
def test_an_empty_setting_is_none(given: dict[str, str]) -> None:
    assert configured_names(Settings.load(**given)) == {"replay"}


def test_a_provider_without_its_sdk_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = Settings.load(openai_api_key="k", anthropic_api_key="k")
    assert configured_names(settings) == set(load_generators(settings)) == {"replay"}


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "https://"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(openai_base_url=url)
    assert str(caught.value) == "BATON_OPENAI_BASE_URL: it must look like https://host:port/path."


@pytest.mark.usefixtures("here")
async def test_own_generators_next_to_where_the_worker_starts() -> None:
    settings = Settings.load(generators="mine=my_agent:answer, other=my_agent:agent, third=my_agent:shouting")
    generators = load_generators(settings)
    assert set(generators) == configured_names(settings) == {"replay", "mine", "other", "third"}
    assert (await hear(generators["mine"], "hi")).text == "You said hi."
    assert (await hear(generators["other"])).text == "I am an agent."
    assert (await hear(generators["third"], "hi")).text == "You said hi."
    await close_generators(generators)
    assert sys.modules["my_agent"].agent.closed


@pytest.mark.usefixtures("here")
async def test_an_own_generator_may_take_a_built_in_name() -> None:
    settings = Settings.load(generators="replay=my_agent:answer,openai=my_agent:answer", openai_api_key="k")
    generators = load_generators(settings)
    assert set(generators) == configured_names(settings) == {"replay", "openai"}
    assert (await hear(generators["openai"], "hi")).text == "You said hi."


@pytest.mark.usefixtures("here")
def test_names_are_told_without_importing() -> None:
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
@pytest.mark.parametrize("attribute", ["coroutine", "plain", "number", "Agent"])
def test_no_async_generator_function(attribute: Any) -> None:
    assert refusal_of(f"my_agent:{attribute}") == (
        f"The generator 'mine', my_agent:{attribute}, is not an async generator function: "
        "define it with `async def` and `yield` what it generates."
    )


async def test_only_those_that_are_offered_are_loaded_and_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setenv("BATON_GENERATORS", "mine=my_agent:answer,other=nowhere:at_all")
    monkeypatch.setenv("BATON_OFFERED_GENERATORS", "mine, absent")
    settings = Settings.load()
    assert configured_names(settings) == {"mine"} == load_generators(settings).keys()
