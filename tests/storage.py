"""A node's storage without doors: a real core, memory in private mappings, a file tier over any medium, the mover."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from kvstore import native
from kvstore.clock import SystemClock
from kvstore.node.admission import Admission
from kvstore.node.demotion import Demotion
from kvstore.node.mover import Mover
from kvstore.tiers.base import Keys, Medium, Run, Shape, TierKind
from kvstore.tiers.data_dir import HEADER_BYTES, Geometry
from kvstore.tiers.file import FileTier
from kvstore.tiers.ladder import Ladder
from kvstore.tiers.memory import MemoryTier
from kvstore.tiers.page_pool import PagePool

MEMORY, FILE = int(TierKind.MEMORY), int(TierKind.FILE)
GEOMETRY = Geometry(slab_bytes=256 << 10, slabs_per_file=4, slabs=64)


def name_of(*what: object) -> bytes:
    return hashlib.sha256(repr(what).encode()).digest()


def chain_of(seed: object, count: int) -> Keys:
    return np.frombuffer(b"".join(name_of(seed, i) for i in range(count)), np.uint8).reshape(count, 32)


def content(key: bytes, size: int) -> bytes:
    """What the block of this key is, whoever asks."""
    return random.Random(key).randbytes(size)


@dataclass
class Shapes:
    """One namespace a row: its digest and the parts of its shards."""

    rows: dict[int, tuple[bytes, tuple[tuple[int, ...], ...]]] = field(default_factory=dict)

    def shape(self, ns: int, shard: int) -> Shape | None:
        row = self.rows.get(ns)
        return Shape(row[0], row[1][shard]) if row is not None and shard < len(row[1]) else None

    def part_bytes(self, ns: int, shard: int) -> tuple[int, ...]:
        shape = self.shape(ns, shard)
        return shape.part_bytes if shape is not None else ()


class Storage:
    """Made on a running loop. `parts`: of the one shard of the one namespace, "a"."""

    def __init__(
        self,
        medium: Medium | None,
        *,
        parts: tuple[int, ...] = (4096, 8192, 4096),
        memory_bytes: int = 4 << 20,
        geometry: Geometry = GEOMETRY,
        admission: str = "always",
        write_behind_bytes: int = 1 << 20,
    ) -> None:
        self.clock = SystemClock()
        memory = native.TableConfig(memory_bytes, 256 << 10)
        file = native.TableConfig(geometry.size, geometry.slab_bytes, header_bytes=HEADER_BYTES)
        self.payload = memoryview(mmap.mmap(-1, memory_bytes))
        self.meta = mmap.mmap(-1, native.NodeCore.meta_bytes(memory))
        address = np.frombuffer(self.meta, np.uint8).ctypes.data
        self.core = native.NodeCore(
            memory,
            file if medium is not None else None,
            meta=address,
            meta_bytes=len(self.meta),
            incarnation=1,
        )
        self.shapes = Shapes()
        self.parts = parts
        self.block_bytes = sum(parts)
        self.memory = MemoryTier(self.core, self.payload, self.shapes.part_bytes, self.clock)
        self.ns = -1
        self.medium = medium
        self.owner = self.core.new_owner()
        if medium is not None:
            self.pages = PagePool(1024)
            self.file = FileTier(self.core, medium, self.shapes, self.pages, self.clock)
            self.demotion = Demotion(
                self.memory,
                self.file,
                Admission(admission),
                write_behind_bytes,
                lambda: int(self.core.stats(FILE)["bytes_free"]),
            )
            self.mover = Mover(self.core, self.memory, Ladder((self.file,)), self.clock, self.demotion)

    def open_namespace(self, label: str = "a") -> int:
        digest = name_of("namespace", label)
        self.ns = self.core.open_namespace(digest, 0, 16, [list(self.parts)])
        self.shapes.rows[self.ns] = (digest, (self.parts,))
        return self.ns

    # ---- as a client does --------------------------------------------------------------------------------------

    def run(self, keys: Keys, parent: bytes | None = None, position: int = 0) -> Run:
        sums = [native.part_checksums(content(key.tobytes(), self.block_bytes), list(self.parts)) for key in keys]
        return Run(self.ns, 0, keys, parent, np.stack(sums), (b"meta",) * len(keys), position)

    async def put(self, keys: Keys, parent: bytes | None = None) -> int:
        reservation = self.memory.reserve(self.run(keys, parent))
        blocks = [content(keys[i].tobytes(), self.block_bytes) for i in reservation.granted]
        for place, block in zip(reservation.places, blocks, strict=True):
            place[:] = block
        return reservation.seal()

    async def get(self, keys: Keys, wait_s: float = 10.0) -> int:
        """The run that arrived, every byte of it compared with what it must be."""
        done = await self.fetch(keys, wait_s)
        for key, offset in zip(keys, done.offsets, strict=False):
            assert bytes(self.payload[offset : offset + self.block_bytes]) == content(key.tobytes(), self.block_bytes)
        if done.hold:
            self.core.release(MEMORY, self.owner, done.hold)
        return len(done.offsets)

    async def fetch(self, keys: Keys, wait_s: float = 10.0) -> native.FetchDone:
        now = self.clock.now_ns()
        self.core.fetch(1, self.owner, self.ns, 0, keys, 0, False, native.Hint(), now, now + int(wait_s * 1e9), 0)
        while not (done := self.core.take_completions()):
            await asyncio.sleep(0.001)
            self.core.tick(self.clock.now_ns())
        return done[0]

    async def settle(self, holds: Callable[[], bool], turns: int = 5000) -> None:
        for _ in range(turns):
            if holds():
                return
            await asyncio.sleep(0.001)
        raise AssertionError("did not come to hold")

    def forget_memory(self) -> None:
        """Everything in memory is evicted."""
        rows, _ = self.core.scan(MEMORY, -1, 1 << 20)
        self.core.retire(MEMORY, rows.tickets)

    def sealed(self, tier: int) -> int:
        return int(self.core.stats(tier)["slots_sealed"])

    def check(self) -> None:
        self.core.check_integrity(MEMORY)
        self.core.check_integrity(FILE)
