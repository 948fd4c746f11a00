"""The native index: longest prefixes, lookups, and the memory that a block costs beyond its payload."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from bench.harness import Row, at_most, measure, timed
from bench.peers.process import NO_PEERS, Peers
from bench.peers.work import LONGEST
from kvstore.identity import Keys
from kvstore.native import SlotTable

__all__ = ["rows"]

HELD = 256_000
PREFIX = 128
LOOKUP = 1024
BLOCK_BYTES = 4096
MEMORY_BLOCKS = 1 << 20
ENTRY_BYTES = 128  # the target: this, and 8 a part

HERE = Path(__file__).parent
LIBRARY = HERE.parent / "build" / "bench" / "libbare_table.so"


def random_keys(seed: int, count: int) -> Keys:
    return np.random.default_rng(seed).integers(0, 256, (count, 32), np.uint8)


def filled(count: int, policy: str = "leaf_lru", parts: int = 1, batch: int = PREFIX) -> SlotTable:
    """A table of `count` blocks of 4 KiB, put as prompts of `batch` blocks. It never touches payload: there is none."""
    table = SlotTable(count * BLOCK_BYTES, slab_bytes=1 << 20, policy=policy)
    table.add_namespace(0, bytes(range(32)), [[BLOCK_BYTES // parts] * parts])
    for at in range(0, count, batch):
        keys = random_keys(at + 1, min(batch, count - at))
        statuses, tickets, _ = table.reserve(1, 0, 0, keys, now=at)
        assert not statuses.any()
        assert not table.seal(1, tickets, np.zeros((len(keys), parts), np.uint64)).any()
    return table


def bare_library() -> ctypes.CDLL | None:
    """The limit, built where a compiler is there."""
    LIBRARY.parent.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CXX", "c++")
    command = [compiler, "-O3", "-shared", "-fPIC", "-o", str(LIBRARY), str(HERE / "bare_table.cpp")]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    except (OSError, subprocess.SubprocessError):
        return None
    library = ctypes.CDLL(str(LIBRARY))
    library.bare_make.restype = ctypes.c_void_p
    return library


class BareTable:
    """A hash table of keys and nothing else."""

    def __init__(self, library: ctypes.CDLL, keys: Keys) -> None:
        self._library = library
        self._table = ctypes.c_void_p(library.bare_make(ctypes.c_void_p(keys.ctypes.data), ctypes.c_uint64(len(keys))))

    def longest_each(self, keys: Keys, per_chain: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
        out = np.empty(len(keys) // per_chain, np.uint32)
        self._library.bare_longest_each(
            self._table,
            ctypes.c_void_p(keys.ctypes.data),
            ctypes.c_uint64(len(out)),
            ctypes.c_uint64(per_chain),
            ctypes.c_void_p(out.ctypes.data),
        )
        return out

    def __del__(self) -> None:
        self._library.bare_free(self._table)


def lookup_rows(rounds: int, peers: Peers) -> list[Row]:
    table = filled(HELD)
    held = np.concatenate([random_keys(at + 1, PREFIX) for at in range(0, HELD, PREFIX)])
    order = np.random.default_rng(7).permutation(len(held) // PREFIX)
    chains = held.reshape(-1, PREFIX, 32)[order].reshape(-1, 32).copy()  # prompts in no order of their own
    assert (table.longest_each(0, 0, chains, PREFIX) == PREFIX).all()
    half = held.copy()
    half[1::2] = random_keys(9, len(half) // 2)
    library = bare_library()
    bare = BareTable(library, held) if library is not None else None
    if bare is not None:
        assert (bare.longest_each(chains, PREFIX) == PREFIX).all()

    def per(work: Callable[[], object], calls: int) -> float:
        return timed(work, scale=1e6 / calls)

    prompts = len(chains) // PREFIX
    longest = peers.of(LONGEST)  # from Python in both rows: they have no batch of prompts
    one_by_one = list(chains.reshape(-1, PREFIX, 32)[:500])
    batches = [half[at : at + LOOKUP] for at in range(0, HELD - LOOKUP, LOOKUP)]
    return [
        measure(
            f"longest prefix of {PREFIX} blocks, {HELD:,} held",
            unit="us",
            ours=lambda: per(lambda: table.longest_each(0, 0, chains, PREFIX), prompts),
            limit=None if bare is None else lambda: per(lambda: bare.longest_each(chains, PREFIX), prompts),
            limit_is="a bare hash table of the same keys",
            target=at_most(3, "us"),
            peers=longest,
            rounds=rounds,
        ),
        measure(
            f"one prefix of {PREFIX} blocks, called from Python",
            unit="us",
            ours=lambda: per(lambda: [table.longest(0, 0, chain) for chain in one_by_one], len(one_by_one)),
            limit=None if bare is None else lambda: per(lambda: bare.longest_each(chains, PREFIX), prompts),
            limit_is="a bare hash table, without the call",
            target=at_most(5, "us"),
            peers=longest,
            rounds=rounds,
        ),
        measure(
            f"find of {LOOKUP:,} keys, half of them held",
            unit="us",
            ours=lambda: per(lambda: [table.find(0, 0, batch) for batch in batches], len(batches)),
            limit=None if bare is None else lambda: per(lambda: bare.longest_each(chains, LOOKUP), HELD // LOOKUP),
            limit_is="a bare hash table, all held",
            target=at_most(60, "us"),
            rounds=rounds,
        ),
    ]


def grown(policy: str, parts: int, batch: int, blocks: int) -> float:
    """Bytes of memory a block costs, by this process's resident set; run in a process of its own."""
    filled(4096, policy, parts)  # code, allocator and numpy are resident from here on
    page = resource.getpagesize()
    statm = Path("/proc/self/statm")
    before = int(statm.read_text().split()[1]) * page
    table = filled(blocks, policy, parts, batch)
    after = int(statm.read_text().split()[1]) * page
    assert table.stats()["slots_sealed"] == blocks
    return (after - before) / blocks


def memory_rows(blocks: int) -> list[Row]:
    def figure(*case: object) -> float:
        command = [sys.executable, "-m", "bench.index", *map(str, case), str(blocks)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, cwd=HERE.parent)
        return float(done.stdout)

    cases = [
        ("leaf_lru", 1, PREFIX),
        ("leaf_lru", 8, PREFIX),
        ("leaf_lru", 1, 4),
        ("leaf_lru", 1, 1),
        ("s3_fifo", 1, PREFIX),
    ]
    return [
        measure(
            f"memory a block, {policy}, {parts} part{'s' * (parts > 1)}, prompts of {batch}",
            unit="bytes",
            ours=partial(figure, policy, parts, batch),
            limit=lambda: 32 + 8 * 4 / 3,
            limit_is="32-byte keys and 8-byte buckets at 3/4 load",
            target=at_most(ENTRY_BYTES + 8 * parts, "bytes"),
            rounds=1,
        )
        for policy, parts, batch in cases
    ]


def rows(quick: bool, peers: Peers = NO_PEERS) -> list[Row]:
    return lookup_rows(5 if quick else 31, peers) + memory_rows(1 << 17 if quick else MEMORY_BLOCKS)


if __name__ == "__main__":
    print(grown(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
