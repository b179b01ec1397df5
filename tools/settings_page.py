"""Generate docs/settings.md from the settings: `python -m tools.settings_page`."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from baton.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

HEAD = """\
# Settings

Baton reads each setting from the environment, or from the file `.env` in the current directory. If a setting is out of
range, a command says so in one sentence when it starts, and exits with 2. Names carry their units.

`python -m tools.settings_page` generates this page from `app/baton/settings.py`, and a test compares the two.

| variable | range | default | meaning |
| --- | --- | --- | --- |
"""

_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page() -> str:
    return HEAD + "".join(_row(name, field) for name, field in Settings.model_fields.items())


def _row(name: str, field: FieldInfo) -> str:
    assert field.description, f"{name} needs a description"
    cells = [_variables(name, field), _range(field), _default(name, field), f"{field.description}."]
    return f"| {' | '.join(cells)} |\n"


def _variables(name: str, field: FieldInfo) -> str:
    alias = field.validation_alias
    names = alias.choices if isinstance(alias, AliasChoices) else [f"BATON_{name.upper()}"]
    return " or ".join(f"`{name}`" for name in names)


def _range(field: FieldInfo) -> str:
    kinds = get_args(field.annotation) if get_origin(field.annotation) in {Union, types.UnionType} else ()
    kind = next((item for item in kinds if item is not type(None)), field.annotation)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if kind is bool:
        return "`true`, `false`"
    bounds = [
        f"{sign} {getattr(item, key):,}"
        for item in field.metadata
        for key, sign in _SIGNS.items()
        if hasattr(item, key)
    ]
    if kind is int:
        bounds.insert(0, "whole number")
    return ", ".join(bounds) or "text"


def _default(name: str, field: FieldInfo) -> str:
    if name in {"pod_name", "worker_name"}:
        return "host and process id"
    value: Any = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ({}, frozenset()):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    PAGE.write_text(page())
