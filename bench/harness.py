"""One row a figure: ours and the machine's limit, interleaved, medians, and whether the target was met.

A measurement is a function that does the work once and returns the figure in the row's unit (GiB/s, ms, keys/s).
Ours, the limit and the peers take turns, so that what disturbs the machine disturbs all of them.

A peer that fails drops out: its figure is "not installed", and the row is ours all the same.

`met` is None where the machine was too busy to tell: its load was above what the cores can carry, or the limit
itself, whose work is always the same, did not come out the same twice. An absolute target that is met all the same
is met.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from bench.machine import describe

__all__ = [
    "NOT_INSTALLED",
    "RESULTS",
    "Figure",
    "PeerFailed",
    "Row",
    "Skipped",
    "Target",
    "at_least",
    "at_most",
    "measure",
    "median_of",
    "no_target",
    "peer",
    "ratio_at_least",
    "ratio_at_most",
    "row_of",
    "show",
    "timed",
    "write",
]

Figure: TypeAlias = Callable[[], float]
NOT_INSTALLED = "not installed"
RESULTS = Path(__file__).with_name("results")
LIMIT_SPREAD_MAX = 0.25  # of the limit's own median, between its quartiles
LOAD_PER_CORE_MAX = 1.5


class PeerFailed(Exception):
    """A peer's figure could not be had; the text says why."""


class Skipped(Exception):
    """This machine lacks what a benchmark measures; the text says what."""


@dataclass(frozen=True, slots=True)
class Target:
    """`holds(ours, limit)`; `relative` where the limit has a say, so that noise can fake either answer."""

    text: str
    holds: Callable[[float, float | None], bool] | None
    relative: bool


@dataclass(frozen=True, slots=True)
class Row:
    """As it is written: `ratio` is ours / limit; `spread` is between the quartiles of ours, as a share of its
    median.
    """

    name: str
    ours: float
    unit: str
    limit: float | None
    limit_is: str
    ratio: float | None
    peers: dict[str, float | str]
    target: str
    met: bool | None
    spread: float
    load: float


def ratio_at_least(ratio: float) -> Target:
    """For figures of which more is better."""
    return Target(f">= {ratio:g} of the limit", lambda ours, limit: limit is not None and ours >= ratio * limit, True)


def ratio_at_most(ratio: float, plus: float = 0.0, unit: str = "") -> Target:
    """For durations: at most so many times the limit, and a constant for what the limit does not have to do."""
    text = f"<= {ratio:g} x the limit" + (f" + {plus:g} {unit}" if plus else "")
    return Target(text, lambda ours, limit: limit is not None and ours <= ratio * limit + plus, True)


def at_least(value: float, unit: str) -> Target:
    return Target(f">= {value:g} {unit}", lambda ours, _limit: ours >= value, False)


def at_most(value: float, unit: str) -> Target:
    return Target(f"<= {value:g} {unit}", lambda ours, _limit: ours <= value, False)


def no_target() -> Target:
    return Target("", None, False)


def timed(work: Callable[[], object], *, scale: float = 1.0) -> float:
    """Seconds that `work` took, times `scale` (1e3: milliseconds)."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * scale


def median_of(call: Callable[[], object], calls: int, *, scale: float) -> float:
    """Seconds that one of `calls` calls took, the median of them, times `scale`."""
    return statistics.median(timed(call, scale=scale) for _ in range(calls))


def peer(package: str, figure: Figure) -> Figure | str:
    """A peer's measurement where its package is installed."""
    return figure if importlib.util.find_spec(package) is not None else NOT_INSTALLED


def measure(
    name: str,
    *,
    unit: str,
    ours: Figure,
    limit: Figure | None,
    limit_is: str,
    target: Target,
    peers: Mapping[str, Figure | str] | None = None,
    rounds: int = 15,
) -> Row:
    """Takes turns for `rounds` rounds after one that does not count, and gives medians."""
    load = os.getloadavg()[0]
    figures: dict[str, Figure] = {"limit": limit} if limit is not None else {}
    figures["ours"] = ours
    others = peers or {}
    figures |= {f"peer {label}": figure for label, figure in others.items() if not isinstance(figure, str)}
    taken: dict[str, list[float]] = {label: [] for label in figures}
    for turn in range(rounds + 1):
        # Forwards and backwards by turns: nobody always runs in the caches that the same other left behind.
        for label in list(figures) if turn % 2 else list(figures)[::-1]:
            try:
                figure = figures[label]()
            except PeerFailed:
                del figures[label], taken[label]
                continue
            if turn:
                taken[label].append(figure)
    medians = {label: statistics.median(values) for label, values in taken.items()}
    return row_of(
        name,
        unit=unit,
        ours=medians["ours"],
        limit=medians.get("limit"),
        limit_is=limit_is,
        target=target,
        taken=taken["ours"],
        steady=taken.get("limit", taken["ours"]),
        load=load,
        peers={label: medians.get(f"peer {label}", NOT_INSTALLED) for label in others},
    )


def row_of(
    name: str,
    *,
    unit: str,
    ours: float,
    limit: float | None,
    limit_is: str,
    target: Target,
    taken: Sequence[float],
    steady: Sequence[float],
    load: float,
    peers: Mapping[str, float | str] | None = None,
) -> Row:
    """For figures that are not a median of rounds. taken: pieces of ours, for its spread; steady: pieces of what should
    come out the same each time, by which a busy machine is known.
    """
    return Row(
        name=name,
        ours=ours,
        unit=unit,
        limit=limit,
        limit_is=limit_is,
        ratio=ours / limit if limit else None,
        peers=dict(peers or {}),
        target=target.text,
        met=judge(target, ours, limit, _busy(load, steady)),
        spread=_spread(taken),
        load=load,
    )


def judge(target: Target, ours: float, limit: float | None, busy: bool) -> bool | None:
    if target.holds is None:
        return None
    held = target.holds(ours, limit)
    if busy and (target.relative or not held):
        return None
    return held


def _busy(load: float, steady: Sequence[float]) -> bool:
    return load > LOAD_PER_CORE_MAX * len(os.sched_getaffinity(0)) or _spread(steady) > LIMIT_SPREAD_MAX


def _spread(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle if middle else 0.0


def write(name: str, rows: Sequence[Row], folder: Path = RESULTS) -> Path:
    """Writes `folder`/NAME.json: the machine, and the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"benchmark": name, "machine": asdict(describe()), "rows": [_rounded(asdict(row)) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def _rounded(row: dict[str, object]) -> dict[str, object]:
    """Four digits are more than any of these runs can tell."""

    def short(value: object) -> object:
        if isinstance(value, dict):
            return {key: short(each) for key, each in value.items()}
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return {key: short(value) for key, value in row.items()}


def show(name: str, rows: Sequence[Row], console: Console | None = None) -> None:
    table = Table(title=name, title_justify="left")
    for column in ("what", "ours", "limit", "ratio", "peers", "target", "met", "spread"):
        table.add_column(column, justify="right" if column in ("ours", "limit", "ratio", "spread") else "left")
    for row in rows:
        limit = "" if row.limit is None else f"{row.limit:.4g}\n[dim]{row.limit_is}[/]"
        peers = "\n".join(f"{label} {_figure(value)}" for label, value in row.peers.items())
        met = {True: "[green]yes[/]", False: "[red]no[/]", None: "busy" if row.target else ""}[row.met]
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        ours = f"{row.ours:.4g} {row.unit}"
        table.add_row(row.name, ours, limit, ratio, peers, row.target, met, f"{row.spread:.0%}")
    if console is None:
        console = Console()
        if not console.is_terminal:  # a log has no width
            console = Console(width=160)
    console.print(table)


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"
