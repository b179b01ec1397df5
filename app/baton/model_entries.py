"""The entries of `BATON_MODELS`: what each may contain, and what cannot work.

An entry is another name for a generator. Its own keys (`OWN_KEYS`) say how Baton runs it; all others are options, which
override a stream's input. No error quotes a value, which may be a secret in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

Entry: TypeAlias = dict[str, Any]

# The generator of streams that a producer writes over HTTP. No other generator may have this name.
EXTERNAL: Final = "external"
# Built-in generators that ask a model provider through its SDK, which has the same name.
PROVIDERS: Final = ("openai", "anthropic")

# Keys for a provider's models only, and all keys that are not options.
_OF_PROVIDERS: Final = ("base_url", "api_key_env", "fallback", "resume")
OWN_KEYS: Final = frozenset({"generator", "max_concurrency", *_OF_PROVIDERS})

# What a later run does with an answer, and the API of OpenAI's that it takes, as `BATON_OPENAI_API` names it.
RESTART: Final = "restart"
_API_BY_RESUME: Final = {"reattach": "responses", "prefix": "chat"}
RESUMES: Final = (RESTART, *_API_BY_RESUME)
MOST_CONCURRENCY: Final = 100_000

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}")
# In capitals, so that few keys look like a name: the name of a missing variable is in an error.
_VARIABLE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,99}")
_BREAK: Final = re.compile(r"[\s\x00-\x1f\x7f]")


def parse(given: Mapping[str, Any]) -> dict[str, Entry]:
    """Return the entries by their names.

    Raises:
        ValueError: one is malformed, or its fallback cannot work.
    """
    entries = {name: _entry(number, name, item) for number, (name, item) in enumerate(given.items(), 1)}
    for name, entry in entries.items():
        _check_fallback(name, entry.get("fallback", []), entries)
    for name in entries:
        chain(entries, name)
    return entries


def refuse_foreign_keys(entries: Mapping[str, Entry], custom: Mapping[str, str]) -> None:
    """Refuse keys for a provider's models in entries for other generators; `custom` are those of `BATON_GENERATORS`.

    Raises:
        ValueError: an entry has such a key, or falls back on a generator that is no provider.
    """
    for name, entry in entries.items():
        if is_provider(entry, custom):
            if "api_key" in entry:
                raise ValueError(
                    f"BATON_MODELS: {name!r} must not contain a key. Put it into an environment variable, and the "
                    'variable\'s name into "api_key_env"'
                )
            others = [other for other in entry.get("fallback", ()) if not is_provider(entries[other], custom)]
            if others:
                raise ValueError(
                    f"BATON_MODELS: {name!r} cannot fall back on {others[0]!r}. Name entries of the built-in "
                    f"generators {' and '.join(PROVIDERS)} only: of others it is unknown why they failed"
                )
        elif foreign := [key for key in _OF_PROVIDERS if key in entry]:
            raise ValueError(
                f'BATON_MODELS: {name!r} cannot have "{foreign[0]}": only entries of the built-in generators '
                f"{' and '.join(PROVIDERS)} can. Remove it, or give it to your generator in another way"
            )


def is_provider(entry: Entry, custom: Mapping[str, str]) -> bool:
    """Whether an entry's generator is a built-in one that asks a provider, and not a custom one of that name."""
    return entry["generator"] in PROVIDERS and entry["generator"] not in custom


def why_not_resumed(name: str, entry: Entry, openai_api: str) -> str | None:
    """Return why an entry for a provider cannot continue answers as it says; None if it can, or restarts them."""
    resume = entry.get("resume", RESTART)
    needed = _API_BY_RESUME.get(resume)
    if needed is None:
        return None
    if entry["generator"] != "openai":
        return (
            f'BATON_MODELS: {name!r} cannot have "resume": "{resume}": only entries of the generator openai can. '
            "Remove it: a later run then restarts the answer."
        )
    if openai_api != needed:
        return (
            f'BATON_MODELS: {name!r} has "resume": "{resume}", which needs another API. Set '
            f'BATON_OPENAI_API={needed}, or remove "resume".'
        )
    return None


def options(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of an entry that overrides a stream's input."""
    return {key: value for key, value in entry.items() if key not in OWN_KEYS}


def chain(entries: Mapping[str, Entry], name: str, above: tuple[str, ...] = ()) -> list[str]:
    """Return an entry's name and all that are asked after it, in order: each with its own fallback, and once.

    Raises:
        ValueError: a fallback leads back to an entry.
    """
    if name in above:
        raise ValueError(
            f'{name!r}: its "fallback" leads back to itself, by way of {", ".join(map(repr, above[1:]))}. Remove one '
            "of these names from a fallback"
        )
    found = [name]
    for other in entries[name].get("fallback", ()):
        found += [link for link in chain(entries, other, (*above, name)) if link not in found]
    return found


def is_http(url: str) -> bool:
    """Whether a text is an address of HTTP with a host."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    # urlsplit() drops line breaks silently.
    return parts.scheme in {"http", "https"} and bool(parts.hostname) and not _BREAK.search(url)


def _entry(number: int, name: str, given: Any) -> Entry:
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"name {number} must be 1 to 64 letters, digits and . _ : / -, and begin with a letter or a digit"
        )
    entry = {"generator": given} if isinstance(given, str) else given
    if not isinstance(entry, dict) or not isinstance(entry.get("generator"), str) or not entry["generator"]:
        raise ValueError(f'value {number} must be the name of a generator, or look like {{"generator": name, …}}')
    for key, (holds, form) in _FORMS.items():
        if key in entry and not holds(entry[key]):
            raise ValueError(f'{name!r}: "{key}" must be {form}')
    return entry


def _check_fallback(name: str, names: list[str], entries: Mapping[str, Entry]) -> None:
    if name in names:
        raise ValueError(f'{name!r}: its "fallback" names itself. Name other entries')
    if not set(names) <= entries.keys():
        known = ", ".join(sorted(entries.keys() - {name})) or "none yet"
        raise ValueError(f'{name!r}: each name in "fallback" must be another entry of BATON_MODELS. Known are: {known}')
    if len(set(names)) < len(names):
        raise ValueError(f'{name!r}: "fallback" names an entry twice')


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_CONCURRENCY


# What each of an entry's own keys must be: a check, and its form in words.
_FORMS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "base_url": (lambda value: isinstance(value, str) and is_http(value), "like https://host:port/path"),
    "api_key_env": (
        lambda value: isinstance(value, str) and bool(_VARIABLE.fullmatch(value)),
        "the name of an environment variable in capitals, such as MY_API_KEY, and not the key itself",
    ),
    "fallback": (
        lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
        "a list of names of other entries",
    ),
    "max_concurrency": (_is_count, f"a whole number from 1 to {MOST_CONCURRENCY:,}"),
    "resume": (lambda value: value in RESUMES, f"one of {', '.join(RESUMES)}"),
}
