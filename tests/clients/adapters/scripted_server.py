"""A fake provider that continues a conversation: each request gets the first turn that it does not contain yet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.support.openai_server import Item, OpenAIServer
from tests.support.pacing import Pace


def text(*tokens: str) -> Item:
    return Item(tokens, id=f"text-{tokens[0].strip()}")


def reasoning(*tokens: str) -> Item:
    return Item(tokens, "reasoning", id="thought")


def call(call_id: str, name: str, *arguments: str) -> Item:
    return Item(arguments, "function_call", name, call_id)


class ScriptedServer(OpenAIServer):
    """Says `turns`, in their order. `requests` counts the ones for each turn."""

    def __init__(self, *turns: Sequence[Item], pace: Pace | None = None) -> None:
        super().__init__(pace=pace)
        self.turns = list(turns)
        self.inputs: list[Any] = []
        self.asked: list[int] = []

    def items_for(self, body: dict[str, Any]) -> Sequence[Item]:
        given = json.dumps(body["input"], ensure_ascii=False)
        number = next(number for number, turn in enumerate(self.turns) if _mark(turn) not in given)
        self.inputs.append(body["input"])
        self.asked.append(number)
        return self.turns[number]


def _mark(turn: Sequence[Item]) -> str:
    return turn[-1].id if turn[-1].kind == "function_call" else "".join(turn[-1].tokens)
