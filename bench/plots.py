"""Draws the plots of a report as SVG. Without matplotlib (the dependency group `bench`) there are none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

from .record import Record
from .steady import LEAST_CARRIED

DRAWS: Final = importlib.util.find_spec("matplotlib") is not None
if DRAWS:
    import matplotlib
    from matplotlib import pyplot

PLOTS_NEED: Final = "matplotlib is not installed. `make bench` installs it, with the dependency group `bench`."
STEADY: Final = ("w1", "w2", "w3")
GROWTH: Final = {"streams": "streams of 20 tokens/s", "pods": "pods", "workers": "workers"}
# The same file for the same figures.
SETTINGS: Final = {
    "svg.hashsalt": "baton",
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
}


def draw(record: Record, folder: Path) -> list[str]:
    """Draw every plot that has figures; return the names of the files."""
    if not DRAWS:
        return []
    matplotlib.use("svg")
    matplotlib.rcParams.update(SETTINGS)
    drawn = []
    if any(workload in record.titles for workload in STEADY):
        drawn += [_bars(record, folder, "cpu-of-an-event", "cpu_us", "µs of CPU for a delivered event")]
        drawn += [_bars(record, folder, "p99-of-the-delay", "p99_ms", "p99 of the delay, ms")]
    if any(key.startswith("w9.") for key in record.titles):
        drawn += [_growth(record, folder)]
    return drawn


def _bars(record: Record, folder: Path, name: str, figure: str, label: str) -> str:
    """Draw a group of bars for each workload, with the range of its turns."""
    shown = [workload for workload in STEADY if workload in record.titles]
    chart, every = pyplot.subplots(
        1, len(shown), figsize=(4 * len(shown) + 2, 0.4 * len(record.peers) + 1.4), sharey=True
    )
    for axes, workload in zip(every if len(shown) > 1 else [every], shown, strict=True):
        for row, peer in enumerate(record.peers):
            found = record.range(workload, peer, figure)
            if found is None:
                axes.annotate(" failed", (0, row), xycoords=("axes fraction", "data"), va="center")
                continue
            error = [[found.median - found.lowest], [found.highest - found.median]]
            carried = record.range(workload, peer, "carried")
            whole = carried is not None and carried.median >= LEAST_CARRIED
            axes.barh(row, found.median, xerr=error, color=_colour(peer), alpha=1 if whole else 0.4)
            axes.annotate(f" {_number(found.median)}{'' if whole else ' saturated'}", (found.highest, row), va="center")
        axes.set(xscale="log", title=record.titles[workload], xlabel=label)
        axes.margins(x=0.9)
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(record.peers)), list(record.peers))
    (every if len(shown) == 1 else every[0]).invert_yaxis()
    return _saved(chart, folder, name)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _colour(peer: str) -> str:
    return "tab:orange" if peer.startswith("Baton") else "tab:grey"


def _growth(record: Record, folder: Path) -> str:
    """Draw the cost of an event against a count."""
    chart, every = pyplot.subplots(1, len(GROWTH), figsize=(12, 3))
    for axes, (kind, label) in zip(every, GROWTH.items(), strict=True):
        keys = {int(key.rpartition(".")[2]): key for key in record.titles if key.startswith(f"w9.{kind}.")}
        for peer in record.peers:
            found = {size: record.range(key, peer, "cpu_us") for size, key in sorted(keys.items())}
            points = [(size, costs.median) for size, costs in found.items() if costs]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", color=_colour(peer))
        axes.set(xscale="log", xlabel=label)
        axes.set_xticks(sorted(keys), [f"{size:,}" for size in sorted(keys)])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
    every[0].set_ylabel("µs of CPU for an event")
    return _saved(chart, folder, "growth")


def _saved(chart: Any, folder: Path, name: str) -> str:
    chart.tight_layout()
    chart.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight")
    pyplot.close(chart)
    return f"{name}.svg"
