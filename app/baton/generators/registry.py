"""Finds generators by name: the built-in ones that are usable here, those of `BATON_GENERATORS`, and the presets of
`BATON_MODELS`.

`configured_names` and the keys of `load_generators` are always the same for the same settings and
installation, so a pod, which imports no generator, accepts what a worker with the same settings can run. It also
accepts what registered workers offer.
A custom generator may have the name of a built-in one, and a preset the name of either. A preset names a generator,
never another preset. That generator need not be offered itself.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping, Set
from typing import TypeAlias, cast

from .. import model_entries
from ..errors import ConfigurationError
from ..model_entries import PROVIDERS, RESTART, Entry
from ..settings import Settings
from .accounts import Account, account_of, default_account
from .importing import imported, make_current_directory_importable
from .preset import Preset
from .protocol import Generator
from .threaded import PlainGenerator, Threaded, is_plain

_BUILT_IN = frozenset({"replay", *PROVIDERS})

# A generator by its name. For a provider there is one for each account and way to resume, with one client.
_Source: TypeAlias = tuple[str, Account | None, str]


def configured_names(settings: Settings) -> frozenset[str]:
    """Return the names of the generators that these settings offer, without importing any."""
    usable = _usable(settings)
    presets = {name for name in settings.models if _what_a_preset_is_missing(settings, name) is None}
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
    asked = {link for name in offered & settings.models.keys() for link in model_entries.chain(settings.models, name)}
    plain = {name: _source(settings, {"generator": name}) for name in offered - settings.models.keys()}
    found = _load(settings, {*plain.values(), *(_source(settings, settings.models[name]) for name in asked)})
    presets = _Presets(settings, found)
    return {name: found[plain[name]] if name in plain else presets.named(name) for name in sorted(offered)}


def what_is_missing(settings: Settings, name: str) -> str | None:
    """Return why a built-in generator or a preset is not usable here; None if it is usable, or is neither."""
    if name in configured_names(settings):
        return None
    if name in settings.models and (sentence := _what_a_preset_is_missing(settings, name)):
        return sentence
    if name in settings.models or (name in PROVIDERS and name in _usable(settings)):
        return f"The generator {name!r} is left out of BATON_ENABLED_GENERATORS."
    return _what_an_account_is_missing(default_account(settings, name), name) if name in PROVIDERS else None


def takes_approvals(settings: Settings, name: str) -> bool:
    """Whether a generator runs tool calls that the user allowed. The built-in ones run no tools."""
    if name in settings.models:
        name = settings.models[name]["generator"]
    return name in settings.generators or name not in _BUILT_IN


async def close_generators(generators: Mapping[str, Generator]) -> None:
    """Call the `aclose` of each generator that has one, once."""
    held = [part for item in generators.values() for part in (item.parts if isinstance(item, Preset) else [item])]
    for generator in {id(item): item for item in held}.values():
        aclose = getattr(generator, "aclose", None)
        if aclose is not None:
            await aclose()


def _offered(settings: Settings, names: Set[str]) -> frozenset[str]:
    return frozenset(names) & settings.enabled_generators if settings.enabled_generators else frozenset(names)


def _usable(settings: Settings) -> frozenset[str]:
    """Return the names of all generators that could be loaded, without presets."""
    return frozenset(_built_in(settings)) | settings.generators.keys()


def _source(settings: Settings, entry: Entry) -> _Source:
    """Return which generator an entry is for."""
    account = account_of(settings, entry) if model_entries.is_provider(entry, settings.generators) else None
    return entry["generator"], account, entry.get("resume", RESTART)


class _Presets:
    """Makes each preset once, so that all that fall back on it share its limit."""

    def __init__(self, settings: Settings, found: Mapping[_Source, Generator]) -> None:
        self._settings = settings
        self._found = found
        self._made: dict[str, Preset] = {}

    def named(self, name: str) -> Preset:
        """Return the preset of that name, with those that it falls back on."""
        if name not in self._made:
            models = self._settings.models
            fallback = [self.named(other) for other in model_entries.chain(models, name)[1:]]
            generator = self._found[_source(self._settings, models[name])]
            self._made[name] = Preset(generator, name, models[name], fallback)
        return self._made[name]


def _load(settings: Settings, sources: Set[_Source]) -> dict[_Source, Generator]:
    """Build generators: built-in ones before the current directory can shadow an SDK."""
    found: dict[_Source, Generator] = {}
    for name, account, resume in sources:
        if name not in settings.generators:
            build = imported(_called(name), f"{__package__}.{name if resume == RESTART else resume}:build")
            found[name, account, resume] = build(settings) if account is None else build(settings, account)
    if settings.generators:
        make_current_directory_importable()
    for name in sorted(name for name, *_ in sources if name in settings.generators):
        found[name, None, RESTART] = _custom(name, settings.generators[name])
    return found


def _what_a_preset_is_missing(settings: Settings, name: str) -> str | None:
    """Return why a preset is not usable here, or one that it falls back on; None if they are."""
    for link in model_entries.chain(settings.models, name):
        if sentence := _what_an_entry_is_missing(settings, link):
            return sentence
    return None


def _what_an_entry_is_missing(settings: Settings, name: str) -> str | None:
    entry = settings.models[name]
    generator, variable = entry["generator"], entry.get("api_key_env")
    if model_entries.is_provider(entry, settings.generators):
        if sentence := model_entries.why_not_resumed(name, entry, settings.openai_api):
            return sentence
        account = account_of(settings, entry)
        if variable and not account.key:
            return (
                f"BATON_MODELS: {name!r} cannot be used yet: put its key into the environment variable {variable}, "
                'which its "api_key_env" names.'
            )
        if account.usable and importlib.util.find_spec(generator):
            return None
        return f"BATON_MODELS: {name!r} cannot be used yet. {_what_an_account_is_missing(account, generator)}"
    if generator in _usable(settings):
        return None
    known = ", ".join(sorted(_usable(settings)))
    hint = " (a preset cannot name another preset)" if generator in settings.models else ""
    # A wrong value in place of a generator's name may be a secret, so it is not shown.
    return f"BATON_MODELS: {name!r} must name a generator that is known here{hint}. Known are: {known}."


def _what_an_account_is_missing(account: Account, name: str) -> str:
    missing = []
    if not importlib.util.find_spec(name):
        missing.append(f'install its SDK (`pip install "baton-stream[{name}]"`)')
    if not account.usable:
        missing.append(f"set {name.upper()}_API_KEY, or BATON_{name.upper()}_BASE_URL for a compatible server")
    return f"The generator {name!r} cannot be used yet: {' and '.join(missing)}."


def _built_in(settings: Settings) -> set[str]:
    usable = {name for name in PROVIDERS if default_account(settings, name).usable and importlib.util.find_spec(name)}
    return {"replay", *usable}


def _called(name: str) -> str:
    return f"The generator {name!r}"


def as_generator(found: object) -> Generator | None:
    """Return a generator function, async or not, or an object that is called like one; None if it is neither."""
    if inspect.isasyncgenfunction(found) or inspect.isasyncgenfunction(type(found).__call__):
        return cast(Generator, found)
    return Threaded(cast(PlainGenerator, found)) if is_plain(found) else None


def load_target(target: str) -> Generator:
    """Import the generator `module:attribute`, also from the current directory.

    Raises:
        ConfigurationError: it cannot be imported, or is not a generator function.
    """
    make_current_directory_importable()
    return _custom(target, target)


def _custom(name: str, target: str) -> Generator:
    generator = as_generator(imported(_called(name), target))
    if generator is not None:
        return generator
    raise ConfigurationError(
        f"The generator {name!r}, {target}, is not a generator function: "
        "define it with `async def` or `def`, and `yield` what it generates."
    )
