"""Hit rates of the store's eviction policies on a block trace, beside the offline optimum.

    python -m bench.hit_rate --trace conversation.jsonl [--policy NAME]... [--blocks 1000,3000] [--json]

The trace is Mooncake's published form; without one, a synthetic trace from a seed is used. `--hints` replays once more
with a word at each request on whether its session ends with it: always right, a fifth wrong, and a coin's.

Mooncake's conversation trace, percent of references that hit (percent of the optimum), partial last blocks counted:

    blocks                   1,000        3,000       10,000       30,000      100,000
    optimum (Belady)         19.07        29.45        36.64        36.64        36.64
    leaf_lru             4.45 (23)    6.53 (22)   21.16 (58)   32.57 (89)   36.37 (99)
      ends               4.60 (24)    8.79 (30)   24.57 (67)   35.06 (96)  36.48 (100)
        a fifth wrong    4.56 (24)    8.10 (28)   23.43 (64)   34.20 (93)   36.42 (99)
        a coin's         4.42 (23)    7.26 (25)   20.69 (56)   33.13 (90)   36.38 (99)
      ends, returns      5.05 (26)   12.10 (41)   26.90 (73)   35.23 (96)  36.53 (100)
        a fifth wrong    4.88 (26)   10.02 (34)   24.43 (67)   34.32 (94)  36.47 (100)
    s3_fifo              5.48 (29)    8.78 (30)   19.26 (53)   30.39 (83)   36.24 (99)
      ends, returns      5.51 (29)    8.81 (30)   20.14 (55)   31.91 (87)   36.36 (99)
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench.harness import Row
from bench.replay import Trace, belady, infinite, load, replay, session_ends, synthetic
from kvstore.eviction import POLICIES

__all__ = ["measure", "rows"]

BLOCKS = (1000, 3000, 10_000, 30_000, 100_000)
SYNTHETIC_BLOCKS = (200, 600, 2000)
# How often what is told is wrong, and after how many requests those who go on are said to be back (0: not said; 400 is
# two minutes in the conversation trace, its median gap).
HINTS = {
    "ends": (0.0, 0),
    "ends, a fifth wrong": (0.2, 0),
    "ends, a coin's": (0.5, 0),
    "ends, returns": (0.0, 400),
    "ends, returns, a fifth wrong": (0.2, 400),
}


def measure(trace: Trace, policies: list[str], blocks: list[int], hints: bool) -> dict[str, dict[int, float]]:
    """Shares of references that hit, by row and capacity; the first row is the optimum."""
    table = {"optimum (Belady)": {c: belady(trace, c) for c in blocks}}
    for policy in policies:
        table[policy] = {c: replay(trace, policy, c) for c in blocks}
        for label, (wrong, returns) in HINTS.items() if hints else ():
            ends = session_ends(trace, wrong)
            table[f"{policy} + {label}"] = {c: replay(trace, policy, c, ends, returns) for c in blocks}
    return table


def rows(quick: bool) -> list[Row]:
    """The synthetic trace only: published traces are not part of the repository."""
    trace = synthetic(seed=1, sessions=100 if quick else 2000)
    blocks = [60, 200] if quick else list(SYNTHETIC_BLOCKS)
    table = measure(trace, list(POLICIES), blocks, hints=True)
    best = table.pop("optimum (Belady)")
    return [
        Row(
            name=f"hit rate, {label}, {capacity:,} blocks",
            ours=100 * share,
            unit="%",
            limit=100 * best[capacity],
            limit_is="Belady's offline optimum, same trace",
            ratio=share / best[capacity],
            peers={},
            target="",
            met=None,
            spread=0.0,
            load=0.0,
        )
        for label, shares in table.items()
        for capacity, share in shares.items()
    ]


def show(table: dict[str, dict[int, float]], trace: Trace, policies: list[str]) -> None:
    best = table["optimum (Belady)"]
    printed = Table()
    printed.add_column("% of references that hit", no_wrap=True)
    for capacity in best:
        printed.add_column(f"{capacity:,}", no_wrap=True)
    for label, shares in table.items():
        cells = [f"{100 * s:.2f} ({100 * s / best[c]:.0f})" if best[c] else "-" for c, s in shares.items()]
        printed.add_row(label, *cells)
    console = Console()
    console.width = max(console.width, 120)  # a row is worth nothing cut off
    console.print(
        f"{len(trace.requests):,} requests, {trace.references:,} references, {trace.unique:,} blocks, "
        f"infinite cache {100 * infinite(trace):.2f} %"
    )
    console.print(printed)
    for policy in policies:
        console.print(f"{policy}: {POLICIES[policy](trace.unique).parameters}")


def _numbers(_context: click.Context, _parameter: click.Parameter, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        numbers = [int(word) for word in text.split(",")]
    except ValueError:
        numbers = [0]
    if min(numbers) < 1:
        raise click.BadParameter("numbers of blocks, separated by commas")
    return numbers


@click.command()
@click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON lines with hash_ids")
@click.option("--policy", "policies", multiple=True, type=click.Choice(sorted(POLICIES)), default=list(POLICIES))
@click.option("--blocks", callback=_numbers, help="capacities, e.g. 1000,3000")
@click.option("--hints/--no-hints", default=True, help="replay with session ends told, too")
@click.option("--seed", default=1, help="of the synthetic trace")
@click.option("--json", "as_json", is_flag=True)
def main(
    trace: Path | None, policies: tuple[str, ...], blocks: list[int] | None, hints: bool, seed: int, as_json: bool
) -> None:
    """Replays a trace through the store's eviction policies."""
    try:
        loaded = load(trace) if trace is not None else synthetic(seed, 2000)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    chosen = blocks or list(BLOCKS if trace is not None else SYNTHETIC_BLOCKS)
    table = measure(loaded, list(policies), chosen, hints)
    if as_json:
        json.dump({"infinite": infinite(loaded), "hit_rate": table}, sys.stdout)
        sys.stdout.write("\n")
    else:
        show(table, loaded, list(policies))


if __name__ == "__main__":
    main()
