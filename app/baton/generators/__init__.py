"""Generators: the code that yields events for one stream.

`protocol` says what a generator is, and `registry` finds them by name. `replay`, `openai` and `anthropic` are
built in; the last two share `provider` and `answer`, and are imported only where their SDKs are installed.
"""

from .protocol import GenerationRequest, Generator, Yielded
from .registry import close_generators, configured_names, load_generators

__all__ = [
    "GenerationRequest",
    "Generator",
    "Yielded",
    "close_generators",
    "configured_names",
    "load_generators",
]
