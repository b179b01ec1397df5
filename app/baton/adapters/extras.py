"""The extras of adapters: a framework that is not installed is named with what installs it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def extra(name: str, module: str) -> Iterator[None]:
    """Name the extra to install if the import of a framework's module fails, because it is missing.

    Raises:
        ModuleNotFoundError: the module is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module:
            raise
        raise ModuleNotFoundError(
            f'This adapter needs the extra {name!r}: pip install "baton-stream[{name}]".', name=error.name
        ) from None
