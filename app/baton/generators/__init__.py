"""Generators: the code that yields events for one stream.

`protocol` says what a generator is, `registry` finds them by name, and `conversation` knows the forms of requests.
`replay`, `openai` and `anthropic` are built in; the last two share `provider` and `answer`, and are imported only where
their SDKs are installed. A `preset` is another name for any of them. `sdk_errors` says what an SDK's exception means.
"""

from .protocol import Approval, GenerationRequest, Generator, Yielded
from .registry import close_generators, configured_names, load_generators
from .sdk_errors import as_generation_error

__all__ = [
    "Approval",
    "GenerationRequest",
    "Generator",
    "Yielded",
    "as_generation_error",
    "close_generators",
    "configured_names",
    "load_generators",
]
