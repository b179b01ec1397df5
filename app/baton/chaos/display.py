"""Displays a run of chaos: one line of progress while it runs, tables at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from time import monotonic
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .faults import Director
from .memory import Samples
from .workload import Violation, Workload

LINE_EVERY_SECONDS: Final = 10
SHOWN: Final = 20


class Display:
    """Writes to the console. Use it as a context manager while chaos runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(Text(), console=console, refresh_per_second=4, transient=True)
        self._written_at = 0.0
        self._violations = 0

    def __enter__(self) -> Display:
        """Start the progress line, if this is a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the progress line."""
        self._live.stop()

    def say(self, text: str, style: str | None = None) -> None:
        """Write a line."""
        self._console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    def progress(self, elapsed: float, seconds: float, workload: Workload, director: Director) -> None:
        """Show the progress: in a terminal at once, otherwise a line every ten seconds."""
        traffic = workload.traffic
        line = (
            f"{elapsed:4.0f} of {seconds:.0f} s   {traffic.events:>9,} events   {workload.live:>3} streams   "
            f"{traffic.connected:>4} viewers   {director.counts.total():>3} faults   {self._violations} violations"
        )
        if self._console.is_terminal:
            last = director.last[-1] if director.last else ""
            self._live.update(Text(f"{line}\n{last}", no_wrap=True))
        elif monotonic() - self._written_at >= LINE_EVERY_SECONDS:
            self._written_at = monotonic()
            self.say(line)

    def violation(self, found: Violation, text: str) -> None:
        """Print a violation, up to twenty of them."""
        del found
        self._violations += 1
        if self._violations <= SHOWN:
            self.say(text, "bold red")
        elif self._violations == SHOWN + 1:
            self.say("More violations follow. All of them are in violations.log, in the folder of logs.", "bold red")

    def faults(self, counts: Mapping[str, int]) -> None:
        """Print the table of faults."""
        self._table(("fault", "count"), [(kind, str(count)) for kind, count in sorted(counts.items())])

    def workload(self, workload: Workload, seconds: float) -> None:
        """Print the table of what the clients saw."""
        traffic = workload.traffic
        rows = [
            ("events delivered", f"{traffic.events:,} ({traffic.events / seconds:,.0f} a second)"),
            ("streams", f"{workload.judged:,}"),
            *((f"  {kind}", f"{count:,}") for kind, count in sorted(workload.kinds.items())),
            *self._of_databases(workload),
            ("connections", f"{traffic.connections:,}"),
            *((f"  reconnected after: {why}", f"{count:,}") for why, count in traffic.leavings.most_common()),
            *self._by_reason("continued by another run", workload.resumes),
            *self._by_reason("started over (reset)", workload.resets),
            ("healed after a promotion", f"{workload.healed:,}"),
            ("steps", f"{workload.steps:,}"),
            ("  whose tool ran again, before a result was kept", f"{workload.repeated_steps:,}"),
            ("inputs accepted", f"{workload.inputs.sent:,}"),
            ("  received by the generator", f"{workload.inputs.received:,}"),
            ("  longest from the reply to the event", f"{workload.inputs.longest_seconds:.1f} s"),
            *self._by_reason("waits", workload.inputs.waits, "for"),
            *self._at_ends(workload),
            ("ends", f"{workload.outcomes.total():,}"),
            *((f"  {outcome}", f"{count:,}") for outcome, count in workload.outcomes.most_common()),
            ("missing", str(workload.missing)),
            ("repeated", str(workload.repeated)),
            ("out of order", str(workload.misplaced)),
            ("no end", str(workload.without_end)),
        ]
        self._table(("what clients saw", ""), rows)

    @staticmethod
    def _of_databases(workload: Workload) -> list[tuple[str, str]]:
        if len(workload.by_database) < 2:
            return []
        unkeyed = workload.unkeyed
        return [
            *((f"  in the database {name}", f"{count:,}") for name, count in sorted(workload.by_database.items())),
            ("created without a key", f"{unkeyed.created:,}"),
            ("  tries that faults made fail", f"{unkeyed.failed:,}"),
            ("  longest create", f"{unkeyed.longest_seconds:.1f} s"),
            ("  created without an answer, and cancelled at the end", f"{workload.strays:,}"),
        ]

    @staticmethod
    def _at_ends(workload: Workload) -> list[tuple[str, str]]:
        if not workload.saved:
            return []
        return [
            ("answers saved by the end hook", f"{workload.saved:,}"),
            ("  ends without it (hook_failed)", f"{workload.hook_failed:,}"),
            ("webhooks", f"{workload.webhooks['arrived']:,}"),
            *((f"  {what}", f"{workload.webhooks[what]:,}") for what in ("repeated", "refused", "reply lost")),
        ]

    @staticmethod
    def _by_reason(what: str, counts: Counter[str], word: str = "because of") -> list[tuple[str, str]]:
        rows = [(f"  {word} {reason}", f"{count:,}") for reason, count in counts.most_common()]
        return [(what, f"{counts.total():,}"), *rows]

    def memory(self, survivors: Iterable[Samples]) -> None:
        """Print the table of memory by the minute."""
        rows = []
        for item in survivors:
            sizes = " ".join(f"{size:.1f}" for size in item.per_minute)
            growth = "" if item.growth is None else f"{item.growth:+.2f} MB"
            rows.append((f"{item.name} (pid {item.pid})", sizes, growth))
        if rows:
            self._table(("memory of survivors", "MB by the minute", "growth per minute, from the 3rd"), rows)

    def _table(self, heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
        table = Table(*heads, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*row)
        self.say("")
        self._console.print(table)
