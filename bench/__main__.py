"""Compares Baton with other systems, by the same workloads on this machine in one run: `python -m bench`.

Every measurement restarts its system. In each turn all systems run a workload one after the other, and each turn starts
with another system, so that other load on the machine affects all of them. The report has medians and ranges. The
record is written after each measurement, and the report is made from it.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sys
import tempfile
from pathlib import Path
from typing import Final

import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .cluster import ROOT
from .machine import described
from .missing import Missing
from .native import compiled
from .peers import Peer
from .peers.bare import Bare
from .peers.baton import Baton, with_window
from .peers.by_hand import ByHand
from .peers.durable_streams import DurableStreams
from .peers.nchan import Nchan
from .peers.resumable_stream import ResumableStream
from .record import Record
from .report import write_report
from .steady import Figures
from .workloads import Workload, all_workloads, quick_workloads

PEERS: Final[tuple[Peer, ...]] = (
    Baton(),
    with_window(2),
    Bare(),
    Nchan(),
    ResumableStream(),
    ByHand(),
    DurableStreams(keeps=False),
    DurableStreams(keeps=True),
)
# Systems left out of the quick run, which others represent.
LEFT_OUT_QUICKLY: Final = 2
REPORT: Final = ROOT / "docs" / "benchmarks"
QUICK_REPORT: Final = ROOT / ".cache" / "bench" / "quick"
# Added to each measurement for its start and its end. One that takes longer has failed.
MORE_SECONDS: Final = 120

console = Console()


def installed(peers: list[Peer], record: Record) -> list[Peer]:
    """Install the peers; return those that can run. The others are recorded with the reason."""
    found = []
    for peer in peers:
        try:
            peer.install()
        except Missing as reason:
            record.missing[peer.name] = str(reason)
            console.print(f"{peer.name} is not run: {reason}")
        else:
            record.peers[peer.name] = {"keeps": peer.keeps, "versions": dict(peer.versions())}
            found.append(peer)
    return found


def plan(workloads: list[Workload], peers: list[Peer], turns: int) -> list[tuple[int, Workload, Peer]]:
    """Return the measurements, in order."""
    return [
        (turn, workload, peer)
        for turn in range(turns)
        for workload in workloads
        if turn < workload.turns
        for peer in peers[turn % len(peers) :] + peers[: turn % len(peers)]
        if workload.is_for(peer)
    ]


async def bounded(workload: Workload, peer: Peer, seconds: float) -> Figures:
    """Measure once. A failure is returned instead of figures, so that other systems are still measured."""
    limit = (seconds + MORE_SECONDS) * workload.starts
    with tempfile.TemporaryDirectory(prefix="baton-bench-", ignore_cleanup_errors=True) as folder:
        try:
            async with asyncio.timeout(limit):
                return await workload.measure(peer, Path(folder))
        except TimeoutError:
            return {"error": f"did not finish within {limit:.0f} s"}
        except Exception as error:  # noqa: BLE001 - any failure of a system is its result
            return {"error": f"{type(error).__name__}: {error}"}


def run(record: Record, peers: list[Peer], workloads: list[Workload], given: argparse.Namespace) -> None:
    """Run all measurements, and show the progress."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    steps = plan(workloads, peers, given.turns)
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(steps))
        for turn, workload, peer in steps:
            step = f"turn {turn + 1}: {workload.key}, {peer.name}"
            progress.update(task, description=step)
            if not console.is_terminal:
                # Without a terminal the bar is drawn only at the end.
                print(step, flush=True)
            figures = uvloop.run(bounded(workload, peer, given.seconds))
            record.add(workload.key, workload.title, peer.name, turn, figures)
            record.write(given.out)
            if "error" in figures:
                progress.console.print(f"{workload.key}, {peer.name}: {figures['error']}")
            progress.advance(task)


def chosen(given: argparse.Namespace) -> tuple[list[Peer], list[Workload]]:
    """Return the peers and workloads to measure."""
    peers = list(PEERS[:-LEFT_OUT_QUICKLY] if given.quick else PEERS)
    workloads = quick_workloads(given.seconds) if given.quick else all_workloads(given.seconds)
    if given.peers:
        peers = [peer for peer in peers if any(part.lower() in peer.name.lower() for part in given.peers)]
    if given.only:
        # `w9` stands for `w9.pods.2` and the others.
        workloads = [
            w for w in all_workloads(given.seconds) if any(f"{w.key}.".startswith(f"{o}.") for o in given.only)
        ]
    return peers, workloads


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the main workloads, once, and not into docs")
    parser.add_argument("--seconds", type=float, help="how long a steady load is measured (12; quick: 4)")
    parser.add_argument("--turns", type=int, help="how often each is measured (3; quick: 1)")
    parser.add_argument("--only", nargs="+", metavar="KEY", help="workloads: w1 … w9, highest")
    parser.add_argument("--peers", nargs="+", metavar="NAME", help="systems, by parts of their names")
    parser.add_argument("--out", type=Path, help="where the report goes")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the report from what is recorded")
    given = parser.parse_args()
    given.seconds = given.seconds or (4 if given.quick else 12)
    given.turns = given.turns or (1 if given.quick else 3)
    given.out = given.out or (QUICK_REPORT if given.quick else REPORT)
    return given


def main() -> int:
    """Measure and report; return the exit status."""
    given = arguments()
    if given.report:
        write_report(Record.read(given.out), given.out)
        return 0
    try:
        compiled("viewers")
        compiled("publisher")
    except Missing as reason:
        console.print(str(reason))
        return 1
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    peers, workloads = chosen(given)
    record = Record(described(), {"seconds": given.seconds, "turns": given.turns})
    peers = installed(peers, record)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        run(record, peers, workloads, given)
    except KeyboardInterrupt:
        console.print("Interrupted: the report has what was measured.")
    write_report(record, given.out)
    print(f"\n{(given.out / 'table.md').read_text()}\nThe report is in {given.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
