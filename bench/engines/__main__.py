"""`make bench-engines`, or `python -m bench.engines [--quick]`: one run, written to bench/results/engines.json.

Everything runs in a network namespace of its own, where that is allowed: some of the stores listen on all interfaces.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click

from bench import harness
from bench.engines import first_token, hits, misses, thread
from bench.engines.contender import Contender, Wrong
from bench.engines.first_token import Taken
from bench.engines.installed import install
from bench.engines.statistics import EngineRow
from bench.engines.stores import NONE as NO_STORE
from bench.engines.stores import OURS, PEERS, Store
from bench.peers.network import loopback_only
from bench.peers.process import alone
from tests.engines.run import EngineFailed
from tests.engines.venvs import RECIPES, ready

SEED = 1_000


@dataclass(frozen=True, slots=True)
class Size:
    blocks: int = 20  # of the prompts
    rounds: int = 10
    pairs: int = 16  # more, of ours and no store
    decodes: int = 6
    requests: int = 20
    conversations: int = 8
    turns: int = 4


QUICK = Size(blocks=4, rounds=1, pairs=1, decodes=1, requests=2, conversations=3, turns=2)


def say(text: str) -> None:
    click.echo(f"engines: {text}", err=True)


def load() -> float:
    return os.getloadavg()[0]


def brought(store: Store, own_network: bool) -> str | None:
    """Why a peer cannot be had; None: it can."""
    if store.alone and not own_network:
        return "it listens on all interfaces, and wants a network namespace of its own"
    return install(store.needs, say) if store.needs else None


def slow_rows(folder: Path, size: Size, own_network: bool) -> Iterator[list[EngineRow]]:
    """Of the large model: times to first tokens, and then what misses and steps cost."""
    taken, contenders = Taken(), []
    with ExitStack() as pair_stack:
        with ExitStack() as peers_stack:
            for store in (NO_STORE, OURS, *PEERS):
                stack = peers_stack if store in PEERS else pair_stack
                if why := brought(store, own_network):
                    failed: Exception = Wrong(why)
                else:
                    say(f"starting {store.label}")
                    try:
                        contenders.append(Contender.start(store, folder, stack, "slow"))
                        continue
                    except (EngineFailed, Wrong, RuntimeError) as error:
                        failed = error
                if store not in PEERS:
                    raise failed
                say(f"{store.label}: not started: {failed}")
                taken.missing[store.label] = str(failed).strip().splitlines()[0]
            begun = load()
            say("time to first token")
            first_token.compare(contenders, size.blocks, size.rounds, SEED, say, taken)
            yield first_token.rows(taken, size.blocks, begun)
        pair = (contenders[0], contenders[1])
        say("cost where nothing is found")
        begun = load()
        misses.computed(pair, size.blocks, size.pairs, SEED + 1_000, taken)
        yield misses.rows(taken, size.blocks, begun)
        begun = load()
        yield [misses.decode_row(misses.decoded(pair, size.decodes, SEED + 2_000), begun)]


def small_rows(folder: Path, size: Size) -> Iterator[list[EngineRow]]:
    """Of the small model: what no computing must hide."""
    for block in (128, 32):
        with ExitStack() as stack:
            say(f"scheduler's thread, blocks of {block}")
            ours = Contender.start(OURS, folder / f"blocks{block}", stack, "llama", block_size=block)
            begun = load()
            if block == 32:
                counted = hits.converse(ours, block, size.conversations, size.turns, SEED)
                yield [hits.row(counted, size.conversations, size.turns, begun)]
            spent = thread.spend(ours, size.requests, SEED + 3_000)
            yield thread.rows(spent, block, begun)
            for line in spent.shares():
                say(line)


def show(rows: list[EngineRow]) -> None:
    harness.show("engines", rows)
    click.echo("Intervals of the medians, at 95 %:")
    for row in rows:
        each = ", ".join(f"{label} {found.low:.4g} to {found.high:.4g}" for label, found in row.intervals.items())
        if each:
            click.echo(f"  {row.name}: {each} ({row.rounds} rounds)")


@click.command()
@click.option("--quick", is_flag=True, help="few rounds of short prompts: to see that it runs; nothing is written")
@click.option("--inside", is_flag=True, hidden=True)
def main(quick: bool, inside: bool) -> None:
    """Exit code 1 where a target was missed on a quiet machine."""
    if not ready(RECIPES["vllm"]):
        raise click.ClickException("build/engines/vllm is not there: make setup-engines")
    prefix = [] if inside else alone()
    if prefix:
        for store in PEERS:  # while there is a network
            brought(store, True)
        again = [*prefix, sys.executable, "-m", "bench.engines", "--inside", *(["--quick"] if quick else [])]
        os.execvp(again[0], again)
    if inside:
        loopback_only()
    size = QUICK if quick else Size()
    folder = Path(tempfile.mkdtemp(prefix="kv"))
    try:
        rows: list[EngineRow] = []
        for part in chain(slow_rows(folder, size, inside), small_rows(folder, size)):
            rows += part
            if not quick:  # what is there survives an interruption
                harness.write("engines", rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    show(rows)
    sys.exit(1 if any(row.met is False for row in rows) else 0)


if __name__ == "__main__":
    main()
