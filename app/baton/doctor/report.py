"""What a person, or a program, sees of a diagnosis."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import Final

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..settings import Settings
from ..version import __version__
from .examination import Diagnosis, examine
from .finding import Finding, Level, amount

_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}


def run(settings: Settings, *, as_json: bool, strict: bool) -> int:
    """Examine the database and print what was found.

    Return 0 if there is no error (nor, if `strict`, a warning), 1 if there is, and 2 if the database cannot be reached.
    """
    errors = Console(stderr=True)
    if errors.is_terminal:
        with errors.status("Looking at the connection …") as status:
            say = lambda what: status.update(f"Looking at {what} …")  # noqa: E731
            diagnosis = asyncio.run(examine(settings, say=say))
    else:
        diagnosis = asyncio.run(examine(settings))
    if as_json:
        sys.stdout.write(as_document(diagnosis))
    else:
        show(diagnosis, Console(highlight=False))
    return exit_code(diagnosis, strict=strict)


def exit_code(diagnosis: Diagnosis, *, strict: bool) -> int:
    """Return what a script gets."""
    if not diagnosis.complete:
        return 2
    return int(diagnosis.count(Level.ERROR) > 0 or (strict and diagnosis.count(Level.WARNING) > 0))


def as_document(diagnosis: Diagnosis) -> str:
    """Return the findings as JSON."""
    document = {
        "version": __version__,
        "complete": diagnosis.complete,
        "errors": diagnosis.count(Level.ERROR),
        "warnings": diagnosis.count(Level.WARNING),
        "findings": [asdict(finding) for finding in diagnosis.findings],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the findings: a table in a terminal, else a line for each."""
    if console.is_terminal:
        table = Table.grid(padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(ratio=1)
        for finding in diagnosis.findings:
            table.add_row(Text(finding.level, style=_STYLES[finding.level]), _text(finding))
        console.print(table)
    else:
        for finding in diagnosis.findings:
            line = f"{finding.level:8} {finding.code}: {finding.message} {finding.advice}"
            console.print(line.rstrip(), markup=False, soft_wrap=True)
    console.print(_summary(diagnosis), markup=False, soft_wrap=True)


def _text(finding: Finding) -> Text:
    code = "" if finding.level is Level.OK else f"{finding.code}: "
    text = Text.assemble((code, "bold"), finding.message)
    if finding.advice:
        text.append(f"\n→ {finding.advice}")
    return text


def _summary(diagnosis: Diagnosis) -> str:
    errors, warnings = diagnosis.count(Level.ERROR), diagnosis.count(Level.WARNING)
    if not errors + warnings:
        return "All is well."
    return f"{amount(errors, 'error')}, {amount(warnings, 'warning')}."
