"""Baton's version. A module of its own, so that no other module imports the public API for it."""

from typing import Final

__version__: Final = "0.1.0"
