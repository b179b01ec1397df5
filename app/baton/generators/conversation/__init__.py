"""Conversations in any form that clients use: of OpenAI's two APIs, Anthropic's, the AI SDK, AG-UI and LangChain.

`messages` is for custom generators. `for_aisdk` and `for_agui` make a page's messages of chat messages. The other
`for_…` functions make the body of a request to a provider's API. Each message, part, tool and field is recognized by
its own shape. Anything in the form of the target API stays unchanged. Anything in another form is first converted to
the form of Chat Completions. Anything that the target API cannot express is refused.
Reasoning of earlier turns is left out if the API does not accept it.
"""

from .agui import for_agui
from .for_aisdk import answer_call, for_aisdk
from .for_anthropic import for_anthropic
from .for_chat import for_chat
from .for_responses import for_responses
from .messages import SERVER_LABEL, messages

__all__ = [
    "SERVER_LABEL",
    "answer_call",
    "for_agui",
    "for_aisdk",
    "for_anthropic",
    "for_chat",
    "for_responses",
    "messages",
]
