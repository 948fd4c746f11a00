"""`python -m bench [NAME...] [--quick] [--peers]`: runs all benchmarks, or those named, and writes
bench/results/NAME.json.

A benchmark is a module of this folder with `rows(quick: bool) -> list[Row]`, or `rows(quick: bool, peers: Peers)` where
other stores are asked to do the same work.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

import click

from bench import harness
from bench.peers.process import NO_PEERS, Peers

PARTS = ("__init__", "__main__", "harness", "machine")


def names() -> list[str]:
    """The modules of this folder that have rows."""
    found = sorted(path.stem for path in Path(__file__).parent.glob("*.py"))
    return [
        name
        for name in found
        if name not in PARTS and "def rows(" in (Path(__file__).parent / f"{name}.py").read_text()
    ]


def rows(name: str, quick: bool, peers: Peers) -> list[harness.Row]:
    """Of one benchmark, with the peers if it has any; they stop with it."""
    benchmark = importlib.import_module(f"bench.{name}").rows
    if "peers" not in inspect.signature(benchmark).parameters:
        return list(benchmark(quick))
    with peers:
        return list(benchmark(quick, peers))


def say(text: str) -> None:
    click.echo(f"peers: {text}", err=True)


@click.command()
@click.argument("wanted", metavar="[NAME]...", nargs=-1)
@click.option("--quick", is_flag=True, help="few rounds: to see that it runs, not to measure")
@click.option("--peers", "with_peers", is_flag=True, help="other stores too, in a venv of their own in build/peers")
def main(wanted: tuple[str, ...], quick: bool, with_peers: bool) -> None:
    """Measures ours beside the machine's limit. Exit code 1 where a target was missed on a quiet machine."""
    known = names()
    if unknown := [name for name in wanted if name not in known]:
        raise click.UsageError(f"no benchmark {unknown[0]!r}: there are {', '.join(known)}")
    peers = Peers.installed(say) if with_peers else NO_PEERS
    missed = False
    for name in wanted or known:
        made = rows(name, quick, peers)
        harness.show(name, made)
        missed |= any(row.met is False for row in made)
        if not quick:
            harness.write(name, made)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
