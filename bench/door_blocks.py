"""Blocks that a node holds, and the same bytes in the caller's memory: what the door's benchmarks move.

Chains are drawn in random order from memory that no cache holds.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bench.harness import Figure, timed
from kvstore import Client, KVLayout, native

__all__ = ["GIB", "KIB", "MIB", "Bytes", "Held", "layout"]

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
HELD_BYTES = 512 * MIB  # that gets draw from: far more than any cache
PUT_KEYS = 32_768
Bytes = npt.NDArray[np.uint8]
Work = Callable[[], object]
Draw = Callable[[], Work]


def layout(block_bytes: int, parts: int = 1) -> KVLayout:
    """Blocks of one token of one head, so that a chain of n blocks needs n tokens."""
    return KVLayout.uniform(
        engine="bench",
        model=f"{block_bytes}x{parts}",
        revision="1",
        dtype="int8",
        block_tokens=1,
        layers=parts,
        kv_heads=1,
        head_dim=block_bytes // parts // 2,
    )


class Held:
    """Chains of `batch` blocks that the node has, and buffers as large to copy between."""

    def __init__(self, client: Client, block_bytes: int, batch: int, parts: int = 1) -> None:
        self.space = client.namespace(layout(block_bytes, parts))
        self.block_bytes, self.batch = block_bytes, batch
        self.random = np.random.default_rng(1)
        self.source = self.random.integers(0, 256, HELD_BYTES, dtype=np.uint8)
        self.target = np.zeros_like(self.source)
        self.fresh = 1 << 10
        chain = self.space.chain(np.arange(HELD_BYTES // block_bytes))
        for first in range(0, len(chain), PUT_KEYS):  # a call takes no more keys than it may
            some = chain[first : first + PUT_KEYS]
            source = self.source[first * block_bytes : (first + len(some)) * block_bytes]
            if self.space.put(some, source).stored < len(some):
                raise RuntimeError("the node did not take what was put")
        self.chains = np.split(chain, len(chain) // batch)

    def piece(self, buffer: Bytes, i: int) -> Bytes:
        """Place `i` of the buffer, modulo its length, for one batch."""
        size = self.block_bytes * self.batch
        at = i % (len(buffer) // size) * size
        return buffer[at : at + size]

    # Each draws what to move and names it, and hands over the work alone: dice and the hashing of names are not timed.

    def get(self, into: object = None) -> Work:
        chain = self.chains[int(self.random.integers(len(self.chains)))]
        target = self.piece(self.target, int(self.random.integers(1 << 20))) if into is None else into

        def work() -> None:
            if self.space.get(chain, target).blocks != self.batch:
                raise RuntimeError("a block that was held did not come")

        return work

    def put(self, of: object = None) -> Work:
        self.fresh += 1
        chain = self.space.chain(np.arange(self.fresh << 20, (self.fresh << 20) + self.batch) % (1 << 31))
        source = self.piece(self.source, int(self.random.integers(1 << 20))) if of is None else of

        def work() -> None:
            if self.space.put(chain, source).stored != self.batch:
                raise RuntimeError("the node did not take a put")

        return work

    def copy(self, kind: str) -> Work:
        """The same bytes from a random place to another, block by block."""
        drawn = self.random.integers(HELD_BYTES // self.block_bytes, size=self.batch).tolist()
        return lambda: native.copy_blocks(kind, self.target, self.source, self.block_bytes, drawn)

    def rate(self, draw: Draw) -> Figure:
        return lambda: self.block_bytes * self.batch / GIB / timed(draw())

    def best_copy(self) -> Figure:
        libc, stream = self.rate(lambda: self.copy("memcpy")), self.rate(lambda: self.copy("stream"))
        return lambda: max(libc(), stream())
