"""What is sent to each provider's API for a request in each form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.provider_server import ProviderServer, Reply
from tests.unit.generators.generation import Heard, hear

from baton.errors import GenerationError
from baton.generators import close_generators, load_generators
from baton.generators.conversation import for_anthropic, for_chat, for_responses, messages
from baton.settings import Settings

PNG = "data:image/png;base64,aVZCT1I="
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
ARGUMENTS = '{"city":"Oslo"}'

# One conversation in four forms: instructions, a text with an image, a thought, a call, its result, a question.
CHAT: dict[str, Any] = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Rain?"}, {"type": "image_url", "image_url": {"url": PNG}}],
        },
        {
            "role": "assistant",
            "content": "Let me look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Wet."},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [{"type": "function", "function": {"name": "weather", "description": "W", "parameters": SCHEMA}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "parallel_tool_calls": False,
    "max_completion_tokens": 50,
    "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}},
    "reasoning_effort": "low",
    "temperature": 0.5,
    "top_p": 0.9,
}

RESPONSES: dict[str, Any] = {
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Rain?"},
                {"type": "input_image", "image_url": PNG, "detail": "auto"},
            ],
        },
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Let me look.", "annotations": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "weather", "arguments": ARGUMENTS},
        {"type": "function_call_output", "call_id": "c1", "output": "Wet."},
        {"role": "user", "content": "And now?"},
    ],
    "instructions": "Be brief.",
    "tools": [{"type": "function", "name": "weather", "description": "W", "parameters": SCHEMA, "strict": False}],
    "tool_choice": {"type": "function", "name": "weather"},
    "parallel_tool_calls": False,
    "max_output_tokens": 50,
    "text": {"format": {"type": "json_schema", "name": "answer", "schema": SCHEMA, "strict": True}},
    "reasoning": {"effort": "low"},
    "temperature": 0.5,
    "top_p": 0.9,
}

ANTHROPIC: dict[str, Any] = {
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Rain?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aVZCT1I="}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
                {"type": "text", "text": "Let me look."},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Oslo"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "Wet."}]},
        {"role": "user", "content": "And now?"},
    ],
    "system": "Be brief.",
    "tools": [{"name": "weather", "description": "W", "input_schema": SCHEMA}],
    "tool_choice": {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    "max_tokens": 50,
    "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}, "effort": "low"},
    "temperature": 0.5,
    "top_p": 0.9,
}

AI_SDK: dict[str, Any] = {
    "messages": [
        {"id": "1", "role": "system", "parts": [{"type": "text", "text": "Be brief."}]},
        {
            "id": "2",
            "role": "user",
            "parts": [{"type": "text", "text": "Rain?"}, {"type": "file", "mediaType": "image/png", "url": PNG}],
        },
        {
            "id": "3",
            "role": "assistant",
            "parts": [
                {"type": "step-start"},
                {"type": "reasoning", "text": "Hm.", "state": "done"},
                {"type": "text", "text": "Let me look.", "state": "done"},
                {
                    "type": "tool-weather",
                    "toolCallId": "c1",
                    "state": "output-available",
                    "input": {"city": "Oslo"},
                    "output": "Wet.",
                },
            ],
        },
        {"id": "4", "role": "user", "parts": [{"type": "text", "text": "And now?"}]},
    ],
    **{name: value for name, value in CHAT.items() if name != "messages"},
}

FORMS = {"chat": CHAT, "responses": RESPONSES, "anthropic": ANTHROPIC, "ai-sdk": AI_SDK}

# What does not come from another form: thoughts, and the shape that the API itself gives its answers.
RESPONSES_SENT = {
    **RESPONSES,
    "input": [
        RESPONSES["input"][0],
        {"role": "assistant", "content": "Let me look."},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": ARGUMENTS},
        *RESPONSES["input"][4:],
    ],
}
ANTHROPIC_SENT = {
    **ANTHROPIC,
    "messages": [
        ANTHROPIC["messages"][0],
        {"role": "assistant", "content": ANTHROPIC["messages"][1]["content"][1:]},
        *ANTHROPIC["messages"][2:],
    ],
}
SENT = {"chat": CHAT, "responses": RESPONSES_SENT, "anthropic": ANTHROPIC_SENT}
APIS = list(SENT)


async def sent(api: str, given: Any) -> tuple[dict[str, Any] | None, Heard]:
    """Ask a provider that refuses; return what it was sent, without what the adapters set themselves."""
    name = "anthropic" if api == "anthropic" else "openai"
    async with ProviderServer(Reply(status=400)) as server:
        generators = load_generators(
            Settings.load(
                openai_base_url=f"{server.url}/v1",
                anthropic_base_url=server.url,
                anthropic_api_key="k",
                openai_model="a-model",
                anthropic_model="a-model",
                openai_api="chat" if api == "chat" else "responses",
                enabled_generators=name,
            )
        )
        try:
            heard = await hear(generators[name], given)
        finally:
            await close_generators(generators)
    if not server.requests:
        return None, heard
    body = dict(server.requests[0].body)
    assert body.pop("stream") is True
    if api == "chat":
        assert body.pop("stream_options")["include_usage"] is True
    return body, heard


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("api", APIS)
async def test_every_input_form_is_sent_to_every_api(api: str, form: str) -> None:
    body, heard = await sent(api, FORMS[form])
    assert body is not None, heard.error
    expected = {**(FORMS[form] if form == api else SENT[api]), "model": "a-model"}
    if api == "responses" and form in {"chat", "ai-sdk"}:
        # Instructions stay where they were among the messages.
        expected["input"] = [{"role": "system", "content": "Be brief."}, *expected["input"]]
        del expected["instructions"]
    if api == "chat" and form in {"responses", "anthropic"}:
        strict = {"strict": False} if form == "responses" else {}
        function = {**CHAT["tools"][0]["function"], **strict}
        expected["tools"] = [{"type": "function", "function": function}]
        if form == "anthropic":
            expected["max_tokens"] = expected.pop("max_completion_tokens")
        else:
            expected["messages"] = _with_detail(expected["messages"])
    if api == "anthropic" and form == "responses":
        expected["tools"] = [{**ANTHROPIC["tools"][0], "strict": False}]
    assert body == expected


def _with_detail(given: list[Any]) -> list[Any]:
    text, image = given[1]["content"]
    image = {**image, "image_url": {**image["image_url"], "detail": "auto"}}
    return [given[0], {**given[1], "content": [text, image]}, *given[2:]]


@pytest.mark.parametrize("api", APIS)
async def test_fields_for_baton_are_not_sent_to_the_provider(api: str) -> None:
    ours = {"stream": True, "background": True, "store": False, "n": 1, "metadata": {"chat": "7"}, "user": "u"}
    body, _ = await sent(api, {"input": "Hi", "stream_options": {"include_usage": True}, "model": "openai", **ours})
    said = [{"role": "user", "content": "Hi"}]
    assert (
        body
        == {
            "chat": {"model": "a-model", "messages": said, "store": False, "user": "u"},
            "responses": {"model": "a-model", "input": said, "store": False, "user": "u", "metadata": {"chat": "7"}},
            "anthropic": {"model": "openai", "messages": said, "max_tokens": 4096, "metadata": {"user_id": "u"}},
        }[api]
    )


@pytest.mark.parametrize(
    ("api", "given"),
    [
        ("responses", {"tools": [{"type": "web_search"}], "previous_response_id": "r", "include": ["x"]}),
        ("chat", {"logit_bias": {"1": 2}, "stop": "x", "reasoning": {"enabled": True}, "max_tokens": 5}),
        ("anthropic", {"tools": [{"type": "web_search_20250305", "name": "w"}], "thinking": {"type": "adaptive"}}),
    ],
)
async def test_fields_that_only_this_api_has_are_kept(api: str, given: dict[str, Any]) -> None:
    body, _ = await sent(api, {"messages": "Hi", **given})
    assert body is not None
    assert {name: body[name] for name in given} == given


@pytest.mark.parametrize(
    ("api", "given", "named"),
    [
        ("chat", {"tools": [{"type": "web_search"}]}, "a tool of the type 'web_search'"),
        ("chat", {"previous_response_id": "r"}, "'previous_response_id'"),
        ("chat", {"input": [{"type": "item_reference", "id": "i"}]}, "'item_reference'"),
        ("responses", {"stop": ["x"]}, "'stop'"),
        ("responses", {"seed": 7}, "'seed'"),
        ("responses", {"tools": [{"type": "web_search_20250305", "name": "w"}]}, "'web_search_20250305'"),
        ("responses", {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "'input_audio'"),
        ("anthropic", {"response_format": {"type": "json_object"}}, "format 'json_object' without a schema"),
        ("anthropic", {"reasoning": {"effort": "minimal"}}, "the reasoning effort 'minimal'"),
        ("anthropic", {"tools": [{"type": "web_search"}]}, "a tool of the type 'web_search'"),
        ("anthropic", {"frequency_penalty": 1}, "'frequency_penalty'"),
    ],
)
async def test_parts_that_an_api_cannot_express_are_refused(api: str, given: dict[str, Any], named: str) -> None:
    body, heard = await sent(api, given if "input" in given else {"messages": "Hi", **given})
    assert (body, heard.code) == (None, "invalid_input")
    assert named in str(heard.error)


async def test_results_of_parallel_calls_are_one_message_for_anthropic() -> None:
    calls = [{"type": "function_call", "call_id": item, "name": "f", "arguments": ""} for item in "ab"]
    results = [{"type": "function_call_output", "call_id": item, "output": item} for item in "ab"]
    body, _ = await sent("anthropic", {"input": [{"role": "user", "content": "Hi"}, *calls, *results]})
    assert body is not None
    assert [[part["type"] for part in item["content"]] for item in body["messages"][1:]] == [
        ["tool_use"] * 2,
        ["tool_result"] * 2,
    ]


async def test_arguments_with_an_escaped_surrogate_are_sent_to_anthropic() -> None:
    called = {"type": "function_call", "call_id": "a", "name": "f", "arguments": r'{"x":"\ud83d"}'}
    result = {"type": "function_call_output", "call_id": "a", "output": "1"}
    body, _ = await sent("anthropic", {"input": [{"role": "user", "content": "Hi"}, called, result]})
    assert body is not None
    assert body["messages"][1]["content"][0]["input"] == {"x": "\ufffd"}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_becomes_chat_messages(form: str) -> None:
    expected = _with_detail(CHAT["messages"]) if form == "responses" else CHAT["messages"]
    assert messages(FORMS[form]) == expected


@pytest.mark.parametrize("given", ["Hi", {"input": "Hi"}, [{"role": "user", "content": "Hi"}]])
def test_a_text_is_one_message(given: Any) -> None:
    assert messages(given) == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("given", [None, 7, ["Hi"], {"messages": 7}, {"messages": [], "input": "x"}])
def test_inputs_that_are_not_a_conversation(given: Any) -> None:
    with pytest.raises(GenerationError, match="The input"):
        messages(given)


@pytest.mark.parametrize("message", [{}, {"content": "Hi"}, {"role": 7, "content": "Hi"}])
def test_messages_without_a_role_are_refused(message: dict[str, Any]) -> None:
    with pytest.raises(GenerationError, match="no role"):
        messages([{"role": "user", "content": "Hi"}, message])


@pytest.mark.parametrize("convert", [for_anthropic, for_chat, for_responses])
@pytest.mark.parametrize(
    "given",
    [
        {"messages": [{"role": "user", "content": [{"type": ["x"]}]}]},
        {"messages": [{"role": "user", "parts": [{"type": "text"}]}]},
        {"messages": "x", "tool_choice": {"type": ["a"]}},
        {"messages": "x", "tools": [7]},
        {"messages": "x", "text": 7},
    ],
)
def test_malformed_conversations_are_refused(convert: Callable[[Any], Any], given: Any) -> None:
    with pytest.raises(GenerationError, match="The input"):
        convert(given)


def test_only_thinking_with_a_signature_goes_back_to_anthropic() -> None:
    signed = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
    redacted = {"type": "redacted_thinking", "data": "eA=="}
    foreign = [{"type": "thinking", "thinking": "x", "signature": ""}, {"type": "thinking", "thinking": "y"}]
    call = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1"}]}
    asked = {"role": "user", "content": "?"}
    given = [
        asked,
        {"role": "assistant", "content": [*foreign, signed, redacted, call]},
        result,
        {"role": "assistant", "content": foreign},
    ]
    assert for_anthropic({"messages": given})["messages"] == [
        asked,
        {"role": "assistant", "content": [signed, redacted, call]},
        result,
    ]
    for convert in (for_chat, for_responses, messages):
        assert "signature" not in str(convert({"messages": given}))


def test_what_only_anthropics_texts_have_is_left_out_for_others() -> None:
    cached = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    cited = {"type": "text", "text": "Yes", "citations": None}
    given = {
        "betas": ["x"],
        "messages": [{"role": "user", "content": [cached]}, {"role": "assistant", "content": [cited]}],
    }
    body = for_chat(given)
    assert [message["content"] for message in body["messages"]] == [
        [{"type": "text", "text": "Hi"}],
        [{"type": "text", "text": "Yes"}],
    ]
    assert "betas" not in body
    assert "betas" not in for_responses(given)
    assert for_anthropic(given)["messages"] == given["messages"]
