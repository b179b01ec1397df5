"""Generators: the code that yields events for one stream.

`protocol` says what a generator is, `registry` finds them by name; each other module here is a built-in one.
"""

from .protocol import GenerationRequest, Generator, Yielded

__all__ = ["GenerationRequest", "Generator", "Yielded"]
