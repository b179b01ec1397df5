"""Imports what a setting names as `module:function`."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from ..errors import ConfigurationError


def imported(what: str, target: str) -> Any:
    """Return what `module:attribute` names. `what` begins the sentences of errors: "The generator 'chat'".

    Raises:
        ConfigurationError: there is no such module or attribute, or importing the module fails.
    """
    module_name, _, attribute = target.partition(":")
    module = _import(what, module_name)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigurationError(f"{what} cannot be loaded: the module {module_name!r} has no {attribute!r}.") from None


def make_current_directory_importable() -> None:
    """Make a `my_agent.py` in the current directory importable. An installed command does not search there."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)


def _import(what: str, module_name: str) -> Any:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"{what} cannot be loaded: there is no module {module_name!r}, "
                "neither installed nor in the current directory."
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationError(f"{what} cannot be loaded: importing {module_name!r} fails with {reason}") from error
