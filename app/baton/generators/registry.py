"""Finds generators by name: the built-in ones that are usable here, those of `BATON_GENERATORS`, and the presets of
`BATON_MODELS`.

`configured_names` and the keys of `load_generators` are always the same for the same settings and
installation, so a pod, which imports no generator, accepts what a worker with the same settings can run. It also
accepts what registered workers offer.
A custom generator may have the name of a built-in one, and a preset the name of either. A preset names a generator,
never another preset. That generator need not be offered itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any, cast

from pydantic import SecretStr

from ..errors import ConfigurationError
from ..settings import Settings
from .preset import Preset
from .protocol import Generator
from .threaded import Threaded, is_plain

# The built-in generators that need an SDK of the same name, and a key or an address.
_ACCOUNTS = ("openai", "anthropic")
_BUILT_IN = frozenset({"replay", *_ACCOUNTS})


def configured_names(settings: Settings) -> frozenset[str]:
    """Return the names of the generators that these settings offer, without importing any."""
    usable = _usable(settings)
    presets = {name for name, model in settings.models.items() if model["generator"] in usable}
    return _offered(settings, usable - settings.models.keys() | presets)


def configured_models(settings: Settings) -> frozenset[str]:
    """Return the names of the models that the settings name. Clients may name any others."""
    presets = {str(options.get("model", name)) for name, options in settings.models.items()}
    return frozenset(presets | {model for model in (settings.openai_model, settings.anthropic_model) if model})


def load_generators(settings: Settings) -> dict[str, Generator]:
    """Import and build every generator that these settings offer.

    Raises:
        ConfigurationError: one cannot be imported, is not a generator function, or is an unknown preset.
    """
    for name in sorted(_offered(settings, settings.models.keys())):
        if sentence := _what_a_preset_is_missing(settings, name):
            raise ConfigurationError(sentence)
    offered = configured_names(settings)
    presets = {name: settings.models[name] for name in offered & settings.models.keys()}
    required = (offered - presets.keys()) | {model["generator"] for model in presets.values()}
    found = _load(settings, required)
    made = {name: Preset(found[model["generator"]], name, model) for name, model in presets.items()}
    return {name: made.get(name) or found[name] for name in sorted(offered)}


def what_is_missing(settings: Settings, name: str) -> str | None:
    """Return why a built-in generator or a preset is not usable here; None if it is usable, or is neither."""
    if name in configured_names(settings):
        return None
    if name in settings.models and (sentence := _what_a_preset_is_missing(settings, name)):
        return sentence
    if name in settings.models or (name in _ACCOUNTS and name in _usable(settings)):
        return f"The generator {name!r} is left out of BATON_ENABLED_GENERATORS."
    return _what_an_account_is_missing(settings, name) if name in _ACCOUNTS else None


def takes_approvals(settings: Settings, name: str) -> bool:
    """Whether a generator runs tool calls that the user allowed. The built-in ones run no tools."""
    if name in settings.models:
        name = settings.models[name]["generator"]
    return name in settings.generators or name not in _BUILT_IN


async def close_generators(generators: Mapping[str, Generator]) -> None:
    """Call the `aclose` of each generator that has one, once."""
    held = [item.generator if isinstance(item, Preset) else item for item in generators.values()]
    for generator in {id(item): item for item in held}.values():
        aclose = getattr(generator, "aclose", None)
        if aclose is not None:
            await aclose()


def _offered(settings: Settings, names: Set[str]) -> frozenset[str]:
    return frozenset(names) & settings.enabled_generators if settings.enabled_generators else frozenset(names)


def _usable(settings: Settings) -> frozenset[str]:
    """Return the names of all generators that could be loaded, without presets."""
    return frozenset(_built_in(settings)) | settings.generators.keys()


def _load(settings: Settings, names: Set[str]) -> dict[str, Generator]:
    found: dict[str, Generator] = {}
    for name in sorted(names - settings.generators.keys()):
        found[name] = _attribute(name, f"{__package__}.{name}:build")(settings)
    if settings.generators:
        _make_current_directory_importable()
    for name in sorted(names & settings.generators.keys()):
        found[name] = _custom(name, settings.generators[name])
    return found


def _what_a_preset_is_missing(settings: Settings, name: str) -> str | None:
    generator = settings.models[name]["generator"]
    if generator in _usable(settings):
        return None
    if generator in _ACCOUNTS:
        return f"BATON_MODELS: {name!r} cannot be used yet. {_what_an_account_is_missing(settings, generator)}"
    known = ", ".join(sorted(_usable(settings)))
    hint = " (a preset cannot name another preset)" if generator in settings.models else ""
    # A wrong value in place of a generator's name may be a secret, so it is not shown.
    return f"BATON_MODELS: {name!r} must name a generator that is known here{hint}. Known are: {known}."


def _what_an_account_is_missing(settings: Settings, name: str) -> str:
    missing = []
    if not importlib.util.find_spec(name):
        missing.append(f'install its SDK (`pip install "baton-stream[{name}]"`)')
    if not _has_account(settings, name):
        missing.append(f"set {name.upper()}_API_KEY, or BATON_{name.upper()}_BASE_URL for a compatible server")
    return f"The generator {name!r} cannot be used yet: {' and '.join(missing)}."


def _built_in(settings: Settings) -> set[str]:
    return {"replay"} | {name for name in _ACCOUNTS if _has_account(settings, name) and importlib.util.find_spec(name)}


def _has_account(settings: Settings, name: str) -> bool:
    key: SecretStr | None = getattr(settings, f"{name}_api_key")
    return bool((key and key.get_secret_value()) or getattr(settings, f"{name}_base_url"))


def _custom(name: str, target: str) -> Generator:
    generator = _attribute(name, target)
    if inspect.isasyncgenfunction(generator) or inspect.isasyncgenfunction(type(generator).__call__):
        return cast(Generator, generator)
    if is_plain(generator):
        return Threaded(generator)
    raise ConfigurationError(
        f"The generator {name!r}, {target}, is not a generator function: "
        "define it with `async def` or `def`, and `yield` what it generates."
    )


def _attribute(name: str, target: str) -> Any:
    module_name, _, attribute = target.partition(":")
    module = _import(name, module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigurationError(
            f"The generator {name!r} cannot be loaded: the module {module_name!r} has no {attribute!r}."
        ) from None


def _import(name: str, module_name: str) -> Any:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"The generator {name!r} cannot be loaded: there is no module {module_name!r}, "
                "neither installed nor in the current directory."
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(
            f"The generator {name!r} cannot be loaded: importing {module_name!r} fails with {reason}"
        ) from error


def _make_current_directory_importable() -> None:
    """Make a `my_agent.py` in the current directory importable. An installed command does not search there."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
