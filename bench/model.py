"""How much a number of viewers needs, from measured costs: `python -m bench.model --viewers 1000000`.

It computes the CPU of workers, Postgres and pods from `costs.MEASURED`, divides it by what a machine of each kind may
be loaded with, and adds the prices that are given. `--check` compares the model with runs on this machine: 1, 2 and 4
databases, each with a worker and 100 streams. `--write` renews the block of `docs/scaling.md` that it has written.

Rates, shares and prices are assumptions. They are options, and the answer repeats them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

import uvloop

from .cluster import ROOT
from .costs import MEASURED, Costs, Parts, measured
from .steady import Load

PAGE: Final = ROOT / "docs" / "scaling.md"
BEGIN: Final = "<!-- model: written by `python -m bench.model --write` -->"
END: Final = "<!-- model: end -->"
CHECKED: Final = (1, 2, 4)
# The model is off if a prediction differs from the run by more than this part.
TOLERANCE: Final = 0.25
HINTS: Final = ("postgres", "nats")
# In each database: a small pool and a LISTEN connection of a pod, and what a worker has.
POD_CONNECTIONS: Final = 4
WORKER_CONNECTIONS: Final = 6


@dataclass(frozen=True, slots=True)
class Assumptions:
    """The load, what a machine may carry, and prices in dollars an hour. Each field is an option."""

    viewers: int = 1_000_000
    reading: float = 0.1  # the share of viewers whose answer is being generated
    rate: float = 50  # tokens a second of an answer
    seconds: float = 20  # how long an answer takes
    window: float = 40  # BATON_FLUSH_INTERVAL_MILLISECONDS
    hints: str = "nats"  # BATON_HINTS_URL: whether pods hear the rows of all streams, or of their own
    hint: float = 8  # µs of a worker, of NATS and of a pod, each, for a row's hint: 24 together with 16 pods (docs)
    served: int = 1  # how many databases a worker serves (BATON_WORKER_DATABASES)
    speed: float = 1  # of a core, relative to the measured one
    used: float = 0.7  # the share of a core that may be used
    database_cores: int = 8
    clients: int = 10_000  # of a pod (BATON_MAX_SUBSCRIBERS)
    client_kib: float = 15  # memory of a client in a pod
    zones: int = 3
    database_price: float = 1.2  # an hour: 8 cores, 64 GB, with a standby in another zone
    core_price: float = 0.05  # an hour: a core with 2 GB, for a pod or a worker

    @property
    def streams(self) -> float:
        """How many answers are generated at a time, each for one viewer."""
        return self.viewers * self.reading

    @property
    def tokens(self) -> float:
        """All tokens a second."""
        return self.streams * self.rate


@dataclass(frozen=True, slots=True)
class Layout:
    """How many of each there are."""

    databases: int
    workers: int
    pods: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The smallest layout that carries a load, and the cores that each part of it uses."""

    layout: Layout
    cores: Parts
    hint_cores: float


class DoesNotFit(Exception):
    """No number of machines carries the load: what grows with it is on each of them."""


def rows_of(costs: Costs, rate: float, window: float) -> float:
    """Return the rows a second of a stream: one for each token, or for each flush if there are more tokens."""
    return min(rate, costs.rows_per_second * 40 / window)


def cpu(
    costs: Costs, load: Load, layout: Layout, *, window: float = 40, hint: float | None = None, served: int = 4096
) -> Parts:
    """Return the cores that a load takes.

    Each worker writes to `served` databases at most. A `hint` is what NATS' hint of a row costs a worker, and a pod.
    With it pods hear only what they follow; without, each pod hears every flush.
    """
    rows = load.streams * rows_of(costs, load.rate, window)
    # A worker has a flush for each of its databases.
    pairs = max(layout.workers * min(served, layout.databases), layout.databases)
    flushes = pairs * min(costs.rows_per_second * 40 / window, rows / pairs)
    hearing = costs.flush.pod * layout.pods * flushes if hint is None else hint * rows
    each = costs.token * (load.streams * load.rate) + costs.row * rows + costs.life * (load.streams / load.life_seconds)
    each += Parts(costs.flush.worker * flushes + (hint or 0) * rows, costs.flush.postgres * flushes, hearing)
    each += Parts(0, 0, costs.viewer * (load.viewers - 1) * rows)
    if hint is None:
        each += costs.heard * (rows * (layout.pods - 1))
    idle = costs.idle
    working = idle.worker * pairs + costs.timer * layout.workers
    standing = Parts(working, idle.postgres * layout.databases, idle.pod * layout.pods * layout.databases)
    return each * 1e-6 + standing


def sized(costs: Costs, given: Assumptions) -> Answer:
    """Return the smallest layout, in which each process stays below the share of a core that it may use.

    Raises:
        DoesNotFit: what every pod hears is more than a pod can take, whatever their number.
    """
    load = Load(max(1, round(given.streams)), given.rate, life_seconds=given.seconds)
    most = given.used * given.speed
    layout = Layout(1, 1, max(1, math.ceil(given.viewers / given.clients)))
    while True:
        hint = given.hint if given.hints == "nats" else None
        cores = cpu(costs, load, layout, window=given.window, hint=hint, served=given.served)
        wanted = Layout(
            max(layout.databases, math.ceil(cores.postgres / (most * given.database_cores))),
            max(layout.workers, math.ceil(cores.worker / most)),
            max(layout.pods, math.ceil(cores.pod / most)),
        )
        if wanted == layout:
            rows = load.streams * rows_of(costs, load.rate, given.window)
            return Answer(layout, cores, rows * given.hint * 1e-6 if given.hints == "nats" else 0.0)
        if max(wanted.pods, wanted.workers, wanted.databases) > given.viewers + 100:
            raise DoesNotFit
        layout = wanted


def dollars_per_million_tokens(given: Assumptions, found: Answer) -> float:
    """Return the price of the machines, divided by the tokens that they carry."""
    small = found.layout.workers + found.layout.pods + math.ceil(found.hint_cores / given.used)
    hourly = found.layout.databases * given.database_price + small * given.core_price
    return hourly / (given.tokens * 3600 / 1e6)


def described(costs: Costs, given: Assumptions) -> Iterator[str]:
    """Yield the answer, as lines of Markdown."""
    yield "| | assumed | |"
    yield "| --- | --- | --- |"
    reading = f"{given.viewers:,} viewers; a part of them reads an answer that is being generated"
    yield f"| load | {reading} | {given.reading:.0%} |"
    yield f"| | an answer | {given.rate:g} tokens/s for {given.seconds:g} s |"
    chosen = f"{given.window:g} ms; {given.hints}; {given.served}"
    yield f"| settings | flush window; hints; databases of a worker | {chosen} |"
    machines = f"{given.database_cores}; {given.used:.0%}; {given.clients:,}"
    yield f"| machines | cores of a database; used of each core; clients of a pod | {machines} |"
    prices = f"${given.database_price:g}; ${given.core_price:g} an hour"
    yield f"| prices | a database with its standby; a core of a pod or worker | {prices} |"
    yield ""
    try:
        found = sized(costs, given)
    except DoesNotFit:
        yield "This does not fit: with Postgres' notifications each pod hears every row, and that is more than a core."
        yield "Use NATS for hints, or a wider window."
        return
    layout = found.layout
    yield "| needed | number | for |"
    yield "| --- | --- | --- |"
    rows = given.streams * rows_of(costs, given.rate, given.window)
    yield f"| databases | {layout.databases:,} | {rows:,.0f} rows/s, {found.cores.postgres:,.0f} cores |"
    yield f"| workers | {layout.workers:,} | {given.streams:,.0f} streams at a time, {found.cores.worker:,.0f} cores |"
    yield (
        f"| pods | {layout.pods:,} | {given.viewers:,} clients, {found.cores.pod:,.0f} cores, "
        f"{given.viewers * given.client_kib / 2**20:,.0f} GiB for clients |"
    )
    if found.hint_cores:
        yield f"| NATS | {math.ceil(found.hint_cores / given.used):,} cores | {rows:,.0f} hints/s |"
    workers = math.ceil(layout.workers * min(given.served, layout.databases) / layout.databases)
    yield (
        f"| connections | {layout.pods * POD_CONNECTIONS + workers * WORKER_CONNECTIONS:,} | each database, with "
        f"`BATON_DATABASE_POOL_SIZE={POD_CONNECTIONS - 1}` |"
    )
    dollars = dollars_per_million_tokens(given, found)
    yield f"| money | ${dollars:.4f} | a million tokens, of {given.tokens:,.0f} a second |"
    yield ""
    yield from failures(costs, given, found)


def failures(costs: Costs, given: Assumptions, found: Answer) -> Iterator[str]:
    """Yield what the failure of one database, and of one zone, does."""
    layout, zones = found.layout, given.zones
    share = 1 / layout.databases
    new = (
        f"New streams without a key go to the other databases, which get {1 / (layout.databases - 1):.1%} more each. "
        "New ones of its share with a key or a chat get 503."
        if layout.databases > 1
        else "New streams get 503."
    )
    yield (
        f"- **One database fails**: {share:.1%} of the streams ({given.streams * share:,.0f}) pause, and continue when "
        f"it is back or its standby is promoted. All others continue. {new}"
    )
    rest = layout.pods - math.ceil(layout.pods / zones)
    clients = given.viewers / max(1, rest)
    spare = math.ceil(layout.pods * zones / (zones - 1)) - layout.pods
    more_workers = math.ceil(layout.workers * zones / (zones - 1)) - layout.workers
    yield (
        f"- **One of {zones} zones fails**: {given.viewers / zones:,.0f} clients reconnect, to pods that then have "
        f"{clients:,.0f} each: run {spare:,} more pods and {more_workers:,} more workers "
        "to have room for that. Streams of the lost workers continue on others after 5.5 to 7 s. "
        f"{math.ceil(layout.databases / zones):,} of the databases fail over to their standbys, as above."
    )


def block(costs: Costs) -> str:
    """Return the block of the page."""
    today = Assumptions()
    wide, heard = replace(today, window=200), replace(today, hints="postgres")
    found = sized(costs, wide)
    in_short = (
        f"With a window of 200 ms: {found.layout.databases:,} databases, {found.layout.workers:,} workers, "
        f"{found.layout.pods:,} pods, ${dollars_per_million_tokens(wide, found):.4f} a million tokens."
    )
    most = (
        f"With Postgres' notifications the most is {most_viewers(costs, heard):,} such viewers, and with a window of "
        f"200 ms {most_viewers(costs, replace(heard, window=200)):,}."
    )
    parts = ("\n".join(described(costs, today)), in_short, most)
    return f"{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}"


def most_viewers(costs: Costs, given: Assumptions) -> int:
    """Return how many viewers one installation carries at most, in steps of 10,000."""
    fits, too_many = 0, 1000
    while too_many - fits > 1:
        tried = (fits + too_many) // 2
        try:
            sized(costs, replace(given, viewers=tried * 10_000))
            fits = tried
        except DoesNotFit:
            too_many = tried
    return fits * 10_000


def written(page: str, costs: Costs) -> str:
    """Return the page with the block as it is now."""
    before, found, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise SystemExit(f"{PAGE.name} has no place for the model: {BEGIN}")
    return f"{before}{block(costs)}{after}"


async def compare(folder: Path, databases: int, load: Load, seconds: float) -> tuple[float, float]:
    """Return the µs of CPU for an event that the model predicts, and that a run takes.

    How often a stream is flushed is measured too: it depends on what else runs on the machine.
    """
    found = await measured(load, folder, seconds, workers=databases, databases=databases)
    costs = replace(MEASURED, rows_per_second=found.rows / load.streams)
    predicted = cpu(costs, load, Layout(databases, databases, 1), served=1).total
    return predicted * 1e6 / load.offered, found.cpu.total / found.tokens


def check(seconds: float, turns: int = 5) -> int:
    """Compare predictions with the median of some runs; return the exit status."""
    each = Load(100, 50)
    print(f"A worker and {each.streams} streams of {each.rate:g} tokens/s for each database; one pod.")
    print("µs of CPU for an event, medians:")
    found: dict[int, list[tuple[float, float]]] = {databases: [] for databases in CHECKED}
    for _ in range(turns):
        for databases in CHECKED:
            load = replace(each, streams=each.streams * databases)
            with tempfile.TemporaryDirectory() as folder:
                found[databases].append(uvloop.run(compare(Path(folder), databases, load, seconds)))
    worst = 0.0
    for databases, runs in found.items():
        predicted, took = (statistics.median(figures) for figures in zip(*runs, strict=True))
        worst = max(worst, abs(predicted / took - 1))
        print(f"{databases} databases: predicted {predicted:.0f}, took {took:.0f} ({predicted / took:.2f})")
    return int(worst > TOLERANCE)


def main() -> int:
    """Answer, check or write; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for each in fields(Assumptions):
        kind = type(each.default)
        choices = HINTS if each.name == "hints" else None
        name = f"--{each.name.replace('_', '-')}"
        parser.add_argument(name, type=kind, default=each.default, choices=choices, help=f"default: {each.default}")
    parser.add_argument("--check", action="store_true", help="compare with runs at 1, 2 and 4 databases")
    parser.add_argument("--check-seconds", type=float, default=8, help="how long each run is measured")
    parser.add_argument("--write", action="store_true", help=f"renew the block of {PAGE.name}")
    options = vars(parser.parse_args())
    checks, seconds, writes = options.pop("check"), options.pop("check_seconds"), options.pop("write")
    if checks:
        return check(seconds)
    if writes:
        PAGE.write_text(written(PAGE.read_text(), MEASURED))
        return 0
    print("\n".join(described(MEASURED, Assumptions(**options))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
