"""`python -m bench [NAME...] [--quick] [--peers]`: runs all benchmarks, or those named, and writes
bench/results/NAME.json.

A benchmark is a module of this folder with `rows(quick: bool) -> list[Row]`, or `rows(quick: bool, peers: Peers)` where
other stores are asked to do the same work.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path

import click

from bench import harness, machine
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


def over_huge_pages() -> None:
    """Starts this program again with a /dev/shm of its own that gives huge pages, as an operator's would after what
    `kvstore doctor` says. Nobody else sees it: it is mounted in a namespace that ends with the program.
    """
    script = 'mount -t tmpfs -o huge=advise tmpfs /dev/shm && exec "$@"'
    again = [sys.executable, "-m", "bench", *(word for word in sys.argv[1:] if word != "--huge-pages")]
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    os.execvp(own[0], [*own, "sh", "-c", script, "sh", *again])


@click.command()
@click.argument("wanted", metavar="[NAME]...", nargs=-1)
@click.option("--quick", is_flag=True, help="few rounds: to see that it runs, not to measure")
@click.option("--peers", "with_peers", is_flag=True, help="other stores too, in a venv of their own in build/peers")
@click.option("--huge-pages", is_flag=True, help="with a /dev/shm that gives huge pages, into NAME.huge.json")
def main(wanted: tuple[str, ...], quick: bool, with_peers: bool, huge_pages: bool) -> None:
    """Measures ours beside the machine's limit. Exit code 1 where a target was missed on a quiet machine."""
    known = names()
    if unknown := [name for name in wanted if name not in known]:
        raise click.UsageError(f"no benchmark {unknown[0]!r}: there are {', '.join(known)}")
    if huge_pages:
        over_huge_pages()
    peers = Peers.installed(say) if with_peers else NO_PEERS
    missed, suffix = False, "" if machine.describe().huge_pages == "never" else ".huge"
    for name in wanted or known:
        try:
            made = rows(name, quick, peers)
        except harness.Skipped as why:
            click.echo(f"{name}: skipped: {why}", err=True)
            continue
        harness.show(name, made)
        missed |= any(row.met is False for row in made)
        if not quick:
            harness.write(f"{name}{suffix}", made)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
