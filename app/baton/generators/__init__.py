"""Generators: the code that yields events for one stream.

`protocol` says what a generator is, `registry` finds them by name, and `conversation` knows the forms of requests.
`replay`, `openai` and `anthropic` are built in; the last two share `provider` and `answer`, and are imported only where
their SDKs are installed. A `preset` is another name for any of them.
"""

from .protocol import Approval, GenerationRequest, Generator, Yielded
from .registry import close_generators, configured_names, load_generators

__all__ = [
    "Approval",
    "GenerationRequest",
    "Generator",
    "Yielded",
    "close_generators",
    "configured_names",
    "load_generators",
]
