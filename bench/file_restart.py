"""How long a node with 100,000 blocks of 16 KiB in files takes to serve them: `kvstore node`, as a user starts it.

From starting the process to the first blocks that a client has read from files and verified. All blocks are listed by
then, which is looked at off the clock. The limit is the same way with nothing in the files: the interpreter, its
imports, memory, sockets, one put and one get.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.harness import Row, at_most, measure
from bench.serving import node
from kvstore import Client, KVLayout, Namespace
from kvstore.tiers.base import TierKind

__all__ = ["rows"]

MIB, GIB = 1 << 20, 1 << 30
BLOCKS = 100_000
CHAIN = 500  # blocks that are put, looked up and got at once
MEMORY = 64 * MIB
SETS = (f"file.bytes={3 * GIB}", "file.admission=always")
FILL_MAX_S = 120.0
LAYOUT = KVLayout.uniform(
    engine="bench", model="m", revision="1", dtype="int8", block_tokens=1, layers=1, kv_heads=1, head_dim=8 << 10
)
Bytes = npt.NDArray[np.uint8]


class Blocks:
    """Chains of `CHAIN` blocks each, that differ in their bytes."""

    def __init__(self, count: int) -> None:
        self.chains = count // CHAIN
        self._bytes = np.random.default_rng(1).integers(256, size=(CHAIN, 16 << 10), dtype=np.uint8)

    def chain(self, ns: Namespace, which: int) -> Bytes:
        return ns.chain(np.arange(which * CHAIN, (which + 1) * CHAIN, dtype=np.uint32))

    def bytes_of(self, which: int) -> Bytes:
        self._bytes[:, :8] = np.frombuffer(np.uint64(which).tobytes(), np.uint8)
        return self._bytes

    def get(self, ns: Namespace, which: int, blocks: int) -> None:
        into = np.zeros((blocks, 16 << 10), np.uint8)
        if ns.get(self.chain(ns, which)[:blocks], into).blocks != blocks:
            raise RuntimeError("blocks that were written did not come")
        if not np.array_equal(into, self.bytes_of(which)[:blocks]):
            raise RuntimeError("blocks came back as others")

    def in_files(self, ns: Namespace, which: int) -> int:
        return int(np.count_nonzero(ns.lookup(self.chain(ns, which)).tiers == TierKind.FILE))


def _fill(folder: Path, blocks: Blocks) -> None:
    """Until every block has been written behind and has left memory: what came too fast is put again."""
    end = time.monotonic() + FILL_MAX_S
    with node(folder, MEMORY, *SETS) as served, Client(served.address) as client:
        ns, missing = client.namespace(LAYOUT), list(range(blocks.chains))
        push = blocks.chains  # a chain that nobody counts, to push others out
        while missing:
            if time.monotonic() > end:
                raise RuntimeError(f"{len(missing)} of {blocks.chains} chains did not come to the files")
            for which in missing:
                ns.put(blocks.chain(ns, which), blocks.bytes_of(which))
                time.sleep(0.01)
            for _ in range(2 * MEMORY // (CHAIN * 16 << 10)):
                ns.put(blocks.chain(ns, push), blocks.bytes_of(push))
                push += 1
                time.sleep(0.01)
            missing = [which for which in range(blocks.chains) if blocks.in_files(ns, which) < CHAIN]


def _seconds(folder: Path, blocks: Blocks, *, filled: bool) -> float:
    """From the process's start to the first blocks there; its end is not measured."""
    start = time.perf_counter()
    with node(folder, MEMORY, *SETS) as served, Client(served.address) as client:
        ns = client.namespace(LAYOUT)
        if not filled:
            ns.put(blocks.chain(ns, 0)[:1], blocks.bytes_of(0)[:1])
        blocks.get(ns, 0, 1)
        took = time.perf_counter() - start
        listed = sum(blocks.in_files(ns, which) for which in range(1, blocks.chains)) if filled else 0
        if filled and listed != (blocks.chains - 1) * CHAIN:
            raise RuntimeError(f"{listed} of {(blocks.chains - 1) * CHAIN} blocks are listed")
        return took


def _empty(blocks: Blocks) -> Iterator[float]:
    while True:
        with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir=Path.cwd()) as folder:
            yield _seconds(Path(folder), blocks, filled=False)


def rows(quick: bool) -> list[Row]:
    count = BLOCKS // 10 if quick else BLOCKS
    blocks = Blocks(count)
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir=Path.cwd()) as name:
        folder = Path(name)
        _fill(folder, blocks)
        empty = _empty(blocks)
        return [
            measure(
                f"restart with {count:,} blocks of 16 KiB in files, from starting the process to the first get",
                unit="s",
                ours=lambda: _seconds(folder, blocks, filled=True),
                limit=lambda: next(empty),
                limit_is="the same node with nothing in its files",
                target=at_most(2.0, "s"),
                rounds=1 if quick else 5,
            )
        ]
