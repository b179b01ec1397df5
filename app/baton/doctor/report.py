"""Prints a diagnosis, for people or as JSON for programs."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..settings import Settings
from ..version import __version__
from .examination import Diagnosis, examine
from .finding import Finding, Level, amount
from .survey import Survey, survey

_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}


def run(settings: Settings, *, as_json: bool, strict: bool) -> int:
    """Examine the database, or several of them, and print the findings; return the exit code.

    It is 0 without errors (with `strict`, without warnings too), 1 with some, and 2 if a database is unreachable.
    """
    errors = Console(stderr=True)
    if errors.is_terminal:
        with errors.status("Checking the connection …") as status:
            found = asyncio.run(_found(settings, lambda what: status.update(f"Checking {what} …")))
    else:
        found = asyncio.run(_found(settings, lambda _what: None))
    if as_json:
        sys.stdout.write(as_document(found))
    else:
        show(found, Console(highlight=False))
    return exit_code(found, strict=strict)


async def _found(settings: Settings, say: Callable[[str], None]) -> Diagnosis | Survey:
    return await (survey if settings.databases else examine)(settings, say=say)


def exit_code(found: Diagnosis | Survey, *, strict: bool) -> int:
    """Return the exit code of the command: see `run`."""
    if not found.complete:
        return 2
    return int(found.count(Level.ERROR) > 0 or (strict and found.count(Level.WARNING) > 0))


def as_document(found: Diagnosis | Survey) -> str:
    """Return the findings as JSON. Of several databases, `findings` are those about all of them together."""
    document: dict[str, Any] = {"version": __version__}
    if isinstance(found, Survey):
        document |= _counts(found) | {"findings": _listed(found.together)}
        document["databases"] = {
            name: _counts(diagnosis) | {"findings": _listed(diagnosis)} for name, diagnosis in found.databases.items()
        }
    else:
        document |= _counts(found) | {"findings": _listed(found)}
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def _counts(found: Diagnosis | Survey) -> dict[str, Any]:
    return {"complete": found.complete, "errors": found.count(Level.ERROR), "warnings": found.count(Level.WARNING)}


def _listed(diagnosis: Diagnosis) -> list[dict[str, Any]]:
    return [asdict(finding) for finding in diagnosis.findings]


def show(found: Diagnosis | Survey, console: Console) -> None:
    """Print the findings: as tables in a terminal, otherwise one per line, after the name of its database."""
    if isinstance(found, Survey):
        for name, diagnosis in found.databases.items():
            _show_group(name, diagnosis, console)
        _show_group("(all)", found.together, console)
    else:
        _show_findings(found, console)
    console.print(_summary(found), markup=False, soft_wrap=True)


def _show_group(name: str, diagnosis: Diagnosis, console: Console) -> None:
    if console.is_terminal:
        console.print(Text(name, style="bold"))
    _show_findings(diagnosis, console, f"{name}: ")


def _show_findings(diagnosis: Diagnosis, console: Console, prefix: str = "") -> None:
    if console.is_terminal:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        for finding in diagnosis.findings:
            table.add_row(Text(finding.level, style=_STYLES[finding.level]), _text(finding))
        console.print(table)
    else:
        for finding in diagnosis.findings:
            line = f"{prefix}{finding.level:8} {finding.code}: {finding.message} {finding.advice}"
            console.print(line.rstrip(), markup=False, soft_wrap=True)


def _text(finding: Finding) -> Text:
    code = "" if finding.level is Level.OK else f"{finding.code}: "
    text = Text.assemble((code, "bold"), finding.message)
    if finding.advice:
        text.append(f"\n→ {finding.advice}")
    return text


def _summary(found: Diagnosis | Survey) -> str:
    errors, warnings = found.count(Level.ERROR), found.count(Level.WARNING)
    if not errors + warnings:
        return "No problems found."
    return f"{amount(errors, 'error')}, {amount(warnings, 'warning')}."
