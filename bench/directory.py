"""The directory: memory a claim, how evenly homes share a trace's claims, and what a lookup and an announcement cost as
nodes grow.

    python -m bench.directory --trace conversation.jsonl      # Mooncake's published form; else a synthetic trace

Costs are of the real state machines and tables in one process, with no connection between them: a cluster of N nodes of
which one is looked up at, every home answering. Messages are counted, not timed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from bench.harness import Row, Target, at_most, measure, median_of, no_target, row_of, show
from bench.replay import Trace, load, published, synthetic
from kvstore.directory.directory import Directory
from kvstore.directory.homes import Places
from kvstore.directory.locating import longest_boundary
from kvstore.directory.messages import Bytes
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.native import ClaimTable
from kvstore.testing.models.holdings import MEMORY, HoldingsModel, keys_array

__all__ = ["rows"]

NODES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000)
CHAIN = 1_024
SIZES = (2_000, 20_000, 200_000, 2_000_000)  # below a thousand, fixed parts of 16 KiB are most of it
NS = hashlib.sha256(b"a namespace").digest()
SETTINGS = DirectorySettings(claims_max=1 << 20)


def node_ids(count: int) -> list[bytes]:
    return [hashlib.sha256(f"node {number}".encode()).digest()[:16] for number in range(count)]


def keys_of(numbers: Sequence[int]) -> Bytes:
    return keys_array([hashlib.sha256(f"block {number}".encode()).digest() for number in numbers])


def counted(name: str, value: float, unit: str, target: Target, limit: float | None = None, limit_is: str = "") -> Row:
    """A figure that is the same on every machine."""
    return row_of(
        name, unit=unit, ours=float(value), limit=limit, limit_is=limit_is, target=target, taken=(), steady=(), load=0.0
    )


def memory_rows(sizes: Sequence[int]) -> list[Row]:
    out = []
    for size in sizes:
        table = ClaimTable()
        nodes = [table.add_node() for _ in range(5)]
        worst = 0.0
        random = np.random.default_rng(size)
        for at in range(0, size, 500):
            keys = random.integers(0, 256, (min(500, size - at), 16), np.uint8)
            ones = np.ones(len(keys))
            table.apply(nodes[at // 500 % 5], 1, keys, ones.astype(np.uint64), ones.astype(np.uint8))
            if len(table) >= size // 2:  # at any size on the way, not at the best one
                worst = max(worst, table.memory_bytes / len(table))
        out.append(counted(f"memory a claim, {size // 2:,} to {size:,}, worst", worst, "bytes", at_most(64, "bytes")))
    return out


def share_rows(trace: Trace, what: str) -> list[Row]:
    """The home with most claims against the mean; both homes of each key have its claim."""
    keys = keys_of(range(trace.unique))
    out = []
    for count in (5, 16):
        homes = Places(node_ids(count), SETTINGS.width).of(NS)
        first, second = homes.of(keys)
        for label, places in (("first homes", first), ("both homes", np.concatenate([first, second]))):
            shares = np.bincount(places, minlength=count)
            name = f"largest share of claims on one home, {what}, {count} nodes, {label}"
            out.append(counted(name, shares.max() / shares.mean(), "x the mean", at_most(1.3, "x the mean")))
    return out


class Cluster:
    """`count` nodes of which the first two hold a chain, told to its homes. Every node is settled from the start."""

    def __init__(self, count: int) -> None:
        ids = node_ids(count)
        live = dict.fromkeys(ids, 1)
        self.keys = keys_of(range(CHAIN))
        asked = set(Places(ids, SETTINGS.width).of(NS).ids) | set(ids[:2])
        self.nodes: dict[bytes, Directory] = {}
        self.announcements = 0
        self.now = 0
        for node in sorted(asked):  # the others are asked nothing
            holdings = HoldingsModel()
            if node in ids[:2]:
                for key in self.keys:
                    holdings.put((NS, key.tobytes()), 0, MEMORY, 0)
            directory = Directory(node, 1, holdings, ClaimTable(SETTINGS.claims_max), SETTINGS)
            directory.view_changed(live, 0)
            self.nodes[node] = directory
        self.asking = self.nodes[ids[0]]
        self.later(SETTINGS.settle_ms)
        quiet = 0
        while quiet < 10:  # what a node tells itself is not sent
            quiet = 0 if sum([self.poll(node) for node in self.nodes.values()]) else quiet + 1
            self.later(SETTINGS.announce_ms)

    def later(self, ms: int) -> None:
        self.now += ms * MS

    def poll(self, node: Directory) -> int:
        """How many messages were sent and answered."""
        sent = node.poll(self.now)
        for to, message in sent:
            home = self.nodes.get(to)
            self.announcements += 1
            answer = home.handle(message, self.now) if home is not None else None
            node.answered(to, message, answer, self.now)
        return len(sent)

    def lookup(self) -> tuple[int, int]:
        """Messages sent, blocks found: one chain, all homes answering at once."""
        locating = self.asking.locate(NS, self.keys, self.now)
        messages = 0
        for to, message in locating.start():
            messages += to != self.asking.me
            answer = self.nodes[to].handle(message, self.now)
            locating.answered(message, answer)  # type: ignore[arg-type]
        return messages, longest_boundary([], locating.holders().together())


def growth_rows(counts: Sequence[int], rounds: int) -> list[Row]:
    out = []
    for count in counts:
        cluster = Cluster(count)
        messages, found = cluster.lookup()
        assert found == CHAIN, f"{found} of {CHAIN} found with {count} nodes"
        width = at_most(SETTINGS.width, "messages")
        out.append(counted(f"messages a lookup of {CHAIN:,} keys, {count:,} nodes", messages, "messages", width))
        label = f"announcing {CHAIN:,} blocks, {count:,} nodes"
        out.append(counted(label, cluster.announcements / len(cluster.nodes), "messages a node", no_target()))
        out.append(
            measure(
                f"lookup of {CHAIN:,} keys at all homes, no connections, {count:,} nodes",
                unit="us",
                ours=lambda cluster=cluster: _timed(cluster),  # type: ignore[misc]
                limit=None,
                limit_is="",
                target=no_target(),
                rounds=rounds,
            )
        )
    return out


def _timed(cluster: Cluster) -> float:
    return median_of(cluster.lookup, 5, scale=1e6)


def rows(quick: bool) -> list[Row]:
    """Shares of the published trace too, where it is at hand."""
    made = memory_rows(SIZES[:2] if quick else SIZES)
    made += share_rows(synthetic(seed=1, sessions=100 if quick else 2000), "synthetic trace")
    path = published()
    if path is not None:
        made += share_rows(load(path), "Mooncake's conversation trace")
    return made + growth_rows(NODES[:3] if quick else NODES, 2 if quick else 7)


@click.command()
@click.option("--trace", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="JSON lines with hash_ids")
def main(trace: Path | None) -> None:
    """How evenly homes share the claims of a trace."""
    loaded = load(trace) if trace is not None else synthetic(1, 2000)
    what = trace.name if trace is not None else "synthetic trace"
    show("directory", share_rows(loaded, f"{what}, {loaded.unique:,} blocks"))


if __name__ == "__main__":
    main()
