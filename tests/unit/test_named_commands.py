"""The commands and settings that Baton's own sentences name exist: error messages, help, log lines, docstrings."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import typer.main

from baton.cli import app
from baton.settings import Settings

PACKAGE = Path(__file__).parents[2] / "app" / "baton"
COMMAND = re.compile(r"`baton ((?:[a-z-]+ ?)+)")
COMMANDS = typer.main.get_command(app)
SETTING = re.compile(r"BATON_[A-Z_]*[A-Z]")
# The last two are of `baton tail`.
SETTINGS = {f"BATON_{name.upper()}" for name in Settings.model_fields} | {"BATON_URL", "BATON_KEY"}


def sentences(path: Path) -> Iterator[str]:
    """Yield the strings of a module. The parser has joined those that were broken into lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield " ".join(node.value.split())


def is_command(words: list[str]) -> bool:
    """Whether these words begin with a command, or a command of a group."""
    found: object = COMMANDS
    while hasattr(found, "commands") and words:
        if words[0] not in found.commands:
            return False
        found, words = found.commands[words[0]], words[1:]
    return True


def faults(sentence: str) -> Iterator[str]:
    """Yield what a sentence names that does not exist."""
    for command in COMMAND.findall(sentence):
        if not is_command(command.split()):
            yield f"`baton {command.strip()}` is no command: {sentence}"
    for name in SETTING.findall(sentence):
        if name not in SETTINGS:
            yield f"{name} is no setting: {sentence}"


def test_named_commands_and_settings_exist() -> None:
    assert [fault for path in PACKAGE.rglob("*.py") for sentence in sentences(path) for fault in faults(sentence)] == []
