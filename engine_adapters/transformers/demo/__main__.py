"""Runs the demo. Exit code 1 if a token differs, a poisoned block goes unnoticed, or a death costs the cache."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from . import cluster, one_node

PARTS = {"one": ("one node", one_node.run), "cluster": ("a cluster, and a death", cluster.run)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument(
        "--part", choices=[*PARTS, "all"], default="all", help="one node, a cluster, or one after the other"
    )
    parser.add_argument("--users", type=int, default=3, help="of the first part; the second has three")
    parser.add_argument("--turns", type=int, default=2, help="of the first part; the second has two")
    parser.add_argument("--system-tokens", type=int, default=1536)
    parser.add_argument("--said-tokens", type=int, default=640, help="a user says in a turn")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--memory", default="80MiB", help="of the first part's node: one prompt fits, all do not")
    parser.add_argument("--files", default="32MiB", help="of its file tier, for the same reason")
    arguments = parser.parse_args()
    console = Console()
    wrong: list[str] = []
    for number, (name, (title, run)) in enumerate(PARTS.items(), 1):
        if arguments.part in {name, "all"}:
            console.rule(f"Part {number}: {title}", align="left")
            with tempfile.TemporaryDirectory(prefix="kvstore-demo-") as scratch:
                wrong += run(arguments, console, Path(scratch))
    for line in wrong:
        console.print(f"[bold red]FAILED:[/] {line}")
    if not wrong:
        console.print("[bold green]GOOD: the tokens are the same with and without the store[/]")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
