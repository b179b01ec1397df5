"""Generators: the code that yields events for one stream.

`protocol` defines a generator, `registry` finds generators by name, and `conversation` converts the forms of requests.
`replay`, `openai` and `anthropic` are built in. The last two share `provider` and `provider_answer`, and are imported
only if their SDKs are installed. A `preset` is another name for a generator, with options. `threaded` runs functions
that are not async in threads. `sdk_errors` translates the exceptions of SDKs.
"""

from .protocol import Approval, GenerationRequest, Generator, SoFar, Yielded, can_continue, continues, stopper
from .registry import close_generators, configured_names, load_generators
from .sdk_errors import as_generation_error

__all__ = [
    "Approval",
    "GenerationRequest",
    "Generator",
    "SoFar",
    "Yielded",
    "as_generation_error",
    "can_continue",
    "close_generators",
    "configured_names",
    "continues",
    "load_generators",
    "stopper",
]
