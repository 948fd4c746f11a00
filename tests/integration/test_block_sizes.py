"""The smallest block, an odd one and the largest, down the ladder and up again; and sizes that follow each other."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client, KVLayout, Namespace
from tests.integration.nodes import BLOCK_TOKENS, NodeProcess, block_of, blocks_of, eventually, tokens

KIB, MIB = 1 << 10, 1 << 20
MOVING_S = 60.0


def layout_of(layers: int, heads: int, dim: int) -> KVLayout:
    """A block has 4 tokens x 2 x 2 bytes of that many layers, heads and numbers."""
    return KVLayout.uniform(
        engine="test", model="sizes", revision="1", dtype="bfloat16", block_tokens=BLOCK_TOKENS, layers=layers,
        kv_heads=heads, head_dim=dim,
    )  # fmt: skip


def put(ns: Namespace, seed: int, blocks: int) -> int:
    chain = ns.chain(tokens(blocks, seed))
    return ns.put(chain, blocks_of(chain, ns.shard_bytes[0])).stored


def sink(ns: Namespace, chain: np.ndarray, tier: int, each: int) -> None:
    """Puts others until the blocks of chain 1 lie in that tier and no nearer one."""
    seed, until = 1000, time.monotonic() + MOVING_S
    while ns.lookup(chain).tiers.tolist() != [tier] * len(chain):
        assert time.monotonic() < until, f"still in {ns.lookup(chain).tiers.tolist()}"
        if ns.lookup(chain).blocks < len(chain):  # a busy machine did not get to write it: then it is gone
            put(ns, 1, len(chain))
        put(ns, seed, each)
        seed += 1
        # Write-behind is given its turn, at 64 MiB a second: what it does not get to is dropped.
        time.sleep(max(0.05, each * ns.shard_bytes[0] / (64 * MIB)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "size", "memory", "sets"),
    [
        (layout_of(1, 4, 64), 4 * KIB, "1MiB", ("file.bytes=4MiB", "file.slab_bytes=1MiB")),
        (layout_of(3, 5, 60), 14_400, "2MiB", ("file.bytes=4MiB", "file.slab_bytes=1MiB")),
        (
            layout_of(32, 64, 2048),
            64 * MIB,
            "256MiB",
            ("memory.slab_bytes=64MiB", "file.bytes=257MiB", "file.slab_bytes=67239936"),
        ),
    ],
    ids=["4 KiB", "odd", "64 MiB"],
)
def test_blocks_of_any_size_go_down_and_come_up(
    tmp_path: Path, layout: KVLayout, size: int, memory: str, sets: tuple[str, ...]
) -> None:
    objects = f"object.url=file://{tmp_path}/objects"
    ladder = ("file.enabled=true", "file.admission=always", objects, *sets)
    with NodeProcess(tmp_path, *ladder, memory=memory) as node, Client(node.address, deadline_s=60) as client:
        ns = client.namespace(layout)
        assert ns.shard_bytes[0] == size
        chain = ns.chain(tokens(2, 1))
        into = np.empty((2, size), np.uint8)
        assert put(ns, 1, 2) == 2
        for tier in (2, 3):
            sink(ns, chain, tier, max(1, 2 * MIB // 16 // size))
            into[:] = 0
            got = ns.get(chain, into, wait_s=10)
            assert (got.blocks, got.tiers.tolist()) == (2, [tier] * 2)
            for key, block in zip(chain, into, strict=True):
                assert np.array_equal(block, block_of(key, size))


def held(ns: Namespace, seeds: Sequence[int], blocks: int) -> int:
    return sum(ns.lookup(ns.chain(tokens(blocks, seed))).blocks for seed in seeds)


def test_a_tier_full_of_one_size_is_nine_tenths_of_the_next(tmp_path: Path) -> None:
    """Of memory, and of files: each filled with one size, then with another, without a restart."""
    files = ("file.enabled=true", "file.admission=always", "file.bytes=16MiB", "file.slab_bytes=1MiB")
    with NodeProcess(tmp_path, *files, memory="8MiB") as node, Client(node.address, deadline_s=20) as client:
        first, second = client.namespace(layout_of(4, 4, 128)), client.namespace(layout_of(3, 4, 32))
        large, small = first.shard_bytes[0], second.shard_bytes[0]
        assert (large, small) == (32 * KIB, 6 * KIB)
        for seed in range(60):
            put(first, seed, 16)
            time.sleep(0.02)
        filling = itertools.count(1000)

        def is_full() -> bool:
            """A disk that was slow for a while is given more."""
            put(first, next(filling), 16)
            return node.counters(2)["used"] >= 0.9 * (16 * MIB - 16 * MIB // large * 4 * KIB)

        eventually(is_full)
        assert node.counters(1)["used"] >= 0.9 * 8 * MIB
        cell, slab = 8 * KIB, MIB  # 6 KiB and what fills its pages; with a header page before it, in files
        memory_most = 8 * (MIB // cell) * small
        file_most = 16 * (slab // (cell + 4 * KIB)) * small
        seed, until = 100, time.monotonic() + MOVING_S
        others = [*range(60), *range(1000, next(filling))]
        while node.counters(2)["used"] + node.counters(1)["used"] > memory_most + file_most or held(first, others, 16):
            assert time.monotonic() < until, "the first size keeps its slabs"
            for _ in range(20):
                put(second, seed, 16)
                seed += 1
            time.sleep(0.05)
        assert node.counters(1)["used"] >= 0.9 * memory_most

        def is_full_again() -> bool:
            put(second, next(filling), 16)
            return node.counters(2)["used"] >= 0.9 * file_most

        eventually(is_full_again, MOVING_S)
