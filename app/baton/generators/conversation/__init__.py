"""Conversations, in whichever form a client wrote them: Chat Completions, Responses, Anthropic's Messages, AI SDK.

`messages` is for generators of your own. The `for_…` functions make the body of a request for one of the providers'
APIs. Every message, part, tool and field is known by its own shape: what is in the API's form stays as it is, what is
in another's is converted through Chat Completions' form, and what the API has no words for is refused. Reasoning of
earlier turns is left out where the API cannot take it.
"""

from .for_anthropic import for_anthropic
from .for_chat import for_chat
from .for_responses import for_responses
from .messages import SERVER_LABEL, messages

__all__ = ["SERVER_LABEL", "for_anthropic", "for_chat", "for_responses", "messages"]
