"""The report of a run: tables in Markdown (`table.md`, and between marks in a `README.md` beside it), and plots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from .plots import DRAWS, PLOTS_NEED, draw
from .record import Range, Record
from .steady import LEAST_CARRIED

BEGIN: Final = "<!-- results: written by `make bench` -->"
END: Final = "<!-- end of results -->"
STEADY: Final = ("w1", "w2", "w3", "w6")

Cell = Callable[[Record, str, str], str]


def write_report(record: Record, folder: Path) -> None:
    """Write the record, tables and plots into a folder."""
    record.write(folder)
    write_tables(record, folder, draw(record, folder))


def write_tables(record: Record, folder: Path, plots: list[str]) -> None:
    """Write the tables, which show the plots that are files of these names."""
    text = "\n".join(sections(record, plots))
    (folder / "table.md").write_text(text + "\n")
    readme = folder / "README.md"
    if readme.exists():
        readme.write_text(replaced(readme.read_text(), text))


def replaced(page: str, text: str) -> str:
    """Return a page with the text replaced between its marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n{END}{after}"


def sections(record: Record, plots: list[str]) -> Iterator[str]:
    """Yield the lines of the report."""
    yield from machine(record)
    yield from table(record, "CPU and delay of a delivered event", STEADY, steady_cell)
    yield from table(record, "By process, µs of CPU for a delivered event", STEADY, parts_cell)
    others = {"w4": replay_cell, "w5": storm_cell, "w7": delay_cell, "w8": memory_cell, "highest": highest_cell}
    yield from table(
        record, "Replays, first tokens, memory, and how far it goes", others, lambda r, w, p: others[w](r, w, p)
    )
    yield from growth(record)
    yield from wrong(record)
    for plot in plots:
        yield f"![{plot.removesuffix('.svg').replace('-', ' ')}]({plot})\n"
    if not DRAWS:
        yield f"There are no plots: {PLOTS_NEED}\n"


def machine(record: Record) -> Iterator[str]:
    """Yield the lines about the machine."""
    m = record.machine
    python = f"Python {m['python']} ({m['python_additions_per_second'] / 1e6:.0f} million additions a second)"
    yield (
        f"{m['day']}, commit {m['commit']}: {m['processor']}, {m['cores']} cores, {m['memory_gigabytes']} GB, "
        f"{m['system']}, {python}; medians of {record.options['turns']} turns (lowest to highest), steady loads "
        f"measured for {record.options['seconds']:g} s each; load average before: {m['load_before']}.\n"
    )
    yield f"Postgres: {_pairs(m['postgres'])}. Baton: {_pairs(m['baton'])}.\n"
    for name, peer in record.peers.items():
        yield f"- {name}: {_pairs(peer['versions'])}; {'keeps' if peer['keeps'] else 'does not keep'} its events"
    for name, reason in record.missing.items():
        yield f"- {name}: not run. {reason}"
    yield ""


def table(record: Record, heading: str, workloads: Iterable[str], cell: Cell) -> Iterator[str]:
    """Yield a table with a row for each system and a column for each measured workload."""
    shown = [workload for workload in workloads if workload in record.titles]
    if not shown:
        return
    yield f"### {heading}\n"
    yield f"| system | {' | '.join(record.titles[workload] for workload in shown)} |"
    yield "| --- " * (len(shown) + 1) + "|"
    for peer in record.peers:
        cells = [failed(record, workload, peer) or cell(record, workload, peer) for workload in shown]
        if any(text != "n/a" for text in cells):
            yield f"| {peer} | {' | '.join(cells)} |"
    yield ""


def failed(record: Record, workload: str, peer: str) -> str:
    """Return the text that replaces missing figures, if any."""
    if record.figures(workload, peer):
        return ""
    errors = record.errors(workload, peer)
    return f"failed: {errors[0].splitlines()[0][:120]}" if errors else "n/a"


def steady_cell(record: Record, workload: str, peer: str) -> str:
    """Return the cost and the delays, or the rate if the load was not sustained."""
    carried, rate = record.range(workload, peer, "carried"), record.range(workload, peer, "rate")
    assert carried is not None
    assert rate is not None
    cost, p50, p99 = (record.range(workload, peer, name) for name in ("cpu_us", "p50_ms", "p99_ms"))
    text = f"{_show(cost)} µs, p50 {_ms(p50)}, p99 {_ms(p99)}"
    return text if carried.median >= LEAST_CARRIED else f"{text}; saturated at {rate.median:,.0f}/s"


def parts_cell(record: Record, workload: str, peer: str) -> str:
    """Return the cost by process."""
    first = record.figures(workload, peer)[0]
    parts = ((part, record.range(workload, peer, "parts_us", part)) for part in first["parts_us"])
    return ", ".join(f"{part} {found.median:.1f}" for part, found in parts if found)


def replay_cell(record: Record, workload: str, peer: str) -> str:
    """Return how long replays take, and how often a batch was read."""
    text = f"{_show(record.range(workload, peer, 'seconds'), 2)} s"
    missed = record.range(workload, peer, "missed_by")
    if missed and missed.highest:
        text += f"; {missed.highest:.0f} clients were cut off"
    reads = record.range(workload, peer, "reads_of_a_batch")
    return f"{text}; each batch read {reads.median:.1f} times" if reads else text


def storm_cell(record: Record, workload: str, peer: str) -> str:
    """Return how long a reconnect storm takes, and how often a stream was read."""
    reads = record.range(workload, peer, "reads_per_stream")
    assert reads is not None
    return f"{_show(record.range(workload, peer, 'seconds'), 2)} s; {reads.median:.1f} reads of a stream"


def delay_cell(record: Record, workload: str, peer: str) -> str:
    """Return the delays."""
    p50, p99 = (record.range(workload, peer, name) for name in ("p50_ms", "p99_ms"))
    return f"p50 {_ms(p50)}, p99 {_ms(p99)}"


def memory_cell(record: Record, workload: str, peer: str) -> str:
    """Return the memory of a connection."""
    return f"{_show(record.range(workload, peer, 'kibibytes'))} KiB"


def highest_cell(record: Record, workload: str, peer: str) -> str:
    """Return the highest rate."""
    rate = record.range(workload, peer, "rate")
    return f"{rate.median:,.0f}/s" if rate and rate.median else "not even the lowest tried"


def growth(record: Record) -> Iterator[str]:
    """Yield the table of W9, a row for each size."""
    keys = [key for key in record.titles if key.startswith("w9.")]
    if not keys:
        return
    yield "### Growth, of Baton\n"
    yield "| | CPU for an event | p99 | carried |"
    yield "| --- | --- | --- | --- |"
    for key in keys:
        for peer in record.peers:
            carried = record.range(key, peer, "carried")
            if carried:
                cost, p99 = record.range(key, peer, "cpu_us"), record.range(key, peer, "p99_ms")
                yield f"| {record.titles[key]} | {_show(cost)} µs | {_ms(p99)} | {carried.median:.0%} |"
            elif record.errors(key, peer):
                yield f"| {record.titles[key]} | {failed(record, key, peer)} | | |"
    yield ""


def wrong(record: Record) -> Iterator[str]:
    """Yield the gaps and repeats of each system."""
    yield "| system | events that were checked | gaps | repeats | streams cut short | refused |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for peer in record.peers:
        found = [run["figures"] for run in record.runs if run["peer"] == peer]
        names = ("all_events", "gaps", "repeats", "lost", "failed")
        yield f"| {peer} | " + " | ".join(f"{sum(f.get(name, 0) for f in found):,}" for name in names) + " |"
    yield ""


def _show(found: Range | None, digits: int = 1) -> str:
    if found is None:
        return "?"
    if found.lowest == found.highest:
        return f"{found.median:,.{digits}f}"
    return f"{found.median:,.{digits}f} ({found.lowest:,.{digits}f} to {found.highest:,.{digits}f})"


def _ms(found: Range | None) -> str:
    if found is None:
        return "?"
    return f"{found.median / 1000:,.1f} s" if found.median >= 1000 else f"{found.median:.3g} ms"


def _pairs(values: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
