"""Finds generators by name: the built-in ones that are usable here, and those of `BATON_GENERATORS`.

`configured_names` and the keys of `load_generators` are always the same for the same settings and
installation, so that a pod, which imports no generator, accepts just what a worker with its settings can run.
A custom generator may take the name of a built-in one.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ..errors import ConfigurationError
from ..settings import Settings
from .protocol import Generator


def configured_names(settings: Settings) -> frozenset[str]:
    """Return the names of the generators that these settings offer, without importing any."""
    names = frozenset(_built_in(settings)) | frozenset(settings.generators)
    return names & settings.offered_generators if settings.offered_generators else names


def load_generators(settings: Settings) -> dict[str, Generator]:
    """Import and build every generator that these settings offer.

    Raises:
        ConfigurationError: one cannot be imported, or is no async generator function.
    """
    found: dict[str, Generator] = {}
    offered = configured_names(settings)
    for name in sorted(offered - settings.generators.keys()):
        found[name] = _attribute(name, f"{__package__}.{name}:build")(settings)
    if settings.generators:
        _make_current_directory_importable()
    for name in sorted(offered & settings.generators.keys()):
        found[name] = _custom(name, settings.generators[name])
    return found


async def close_generators(generators: Mapping[str, Generator]) -> None:
    """Close what generators hold open: those that have an `aclose` are asked to."""
    for generator in generators.values():
        aclose = getattr(generator, "aclose", None)
        if aclose is not None:
            await aclose()


def _built_in(settings: Settings) -> set[str]:
    accounts = {
        "openai": (settings.openai_api_key, settings.openai_base_url),
        "anthropic": (settings.anthropic_api_key, settings.anthropic_base_url),
    }
    usable = {name for name, (key, url) in accounts.items() if (key and key.get_secret_value()) or url}
    return {"replay"} | {name for name in usable if importlib.util.find_spec(name)}


def _custom(name: str, target: str) -> Generator:
    generator = _attribute(name, target)
    if not (inspect.isasyncgenfunction(generator) or inspect.isasyncgenfunction(type(generator).__call__)):
        raise ConfigurationError(
            f"The generator {name!r}, {target}, is not an async generator function: "
            "define it with `async def` and `yield` what it generates."
        )
    return cast(Generator, generator)


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
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(
            f"The generator {name!r} cannot be loaded: importing {module_name!r} fails with {told}"
        ) from error


def _make_current_directory_importable() -> None:
    """Find the `my_agent.py` next to which a worker is started: an installed command does not look there."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
