"""Blocks through the file tier over a medium: chosen from everywhere, with their headers, verified where they are read.

What `file_tier` measures of the medium alone, as promotions and write-behind meet it: slots, header pages, checksums.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import mmap
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from bench.harness import Figure, timed
from kvstore import native
from kvstore.clock import SystemClock
from kvstore.tiers.base import Keys, Run, Shape
from kvstore.tiers.data_dir import HEADER_BYTES, Geometry
from kvstore.tiers.file import FileTier
from kvstore.tiers.medium import FileMedium
from kvstore.tiers.page_pool import PagePool

__all__ = ["Blocks"]

DIGEST = bytes(range(32))
BATCH_BYTES = 64 << 20
AT_ONCE = 2  # batches
FILLED = 0.5  # of the tier, before anything is measured: writes find free room


@dataclass(frozen=True, slots=True)
class OneShape:
    block_bytes: int

    def shape(self, ns: int, shard: int) -> Shape | None:
        return Shape(DIGEST, (self.block_bytes,)) if (ns, shard) == (0, 0) else None


@dataclass
class Blocks:
    """Of `block_bytes` each. memory: of it, one half is written from and the other read into."""

    loop: asyncio.AbstractEventLoop
    medium: FileMedium
    geometry: Geometry
    pages: PagePool
    memory: memoryview
    block_bytes: int
    seconds: float
    random: random.Random = field(default_factory=lambda: random.Random(11))

    def __post_init__(self) -> None:
        memory = native.TableConfig(16 << 20, 1 << 20)
        files = native.TableConfig(self.geometry.size, self.geometry.slab_bytes, header_bytes=HEADER_BYTES)
        self._meta = mmap.mmap(-1, native.NodeCore.meta_bytes(memory))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._meta))
        self._core = native.NodeCore(memory, files, meta=address, meta_bytes=len(self._meta), incarnation=1)
        self._core.open_namespace(DIGEST, 0, 16, [[self.block_bytes]])
        self._tier = FileTier(self._core, self.medium, OneShape(self.block_bytes), self.pages, SystemClock())
        half = len(self.memory) // 2
        places = [
            self.memory[at : at + self.block_bytes]
            for at in range(0, len(self.memory) - self.block_bytes + 1, self.block_bytes)
        ]
        self._from, self._into = places[: half // self.block_bytes], places[half // self.block_bytes :]
        self._sums = np.stack([native.part_checksums(place, [self.block_bytes]) for place in self._from])
        self._batch = BATCH_BYTES // self.block_bytes
        self._fresh = itertools.count()
        self._held: list[Keys] = []
        slots = int(self.geometry.size * FILLED) // (self.block_bytes + HEADER_BYTES)
        for _ in range(slots // self._batch):
            self.loop.run_until_complete(self._write())

    def close(self) -> None:
        self._tier.close()

    def reads(self) -> Figure:
        return self._rate(self._read)

    def reads_of_chains(self) -> Figure:
        """Batches as they were written: their cells lie in a row."""
        return self._rate(self._read_chain)

    def writes(self) -> Figure:
        return self._rate(self._write)

    def _rate(self, one: Callable[[int], Awaitable[None]]) -> Figure:
        async def move() -> int:
            count, clock = 0, asyncio.get_running_loop().time
            end = clock() + self.seconds

            async def again(which: int) -> None:
                nonlocal count
                while clock() < end:
                    await one(which)
                    count += 1

            await asyncio.gather(*(again(which) for which in range(AT_ONCE)))
            return count * self._batch * self.block_bytes

        def once() -> float:
            moved = 0

            def work() -> None:
                nonlocal moved
                moved = self.loop.run_until_complete(move())

            took = timed(work)
            return moved / (1 << 30) / took

        return once

    async def _write(self, which: int = 0) -> None:
        del which  # any number may read the same memory
        keys = np.random.default_rng(next(self._fresh)).integers(256, size=(self._batch, 32), dtype=np.uint8)
        picked = self.random.sample(range(len(self._from)), self._batch)
        run = Run(0, 0, keys, None, self._sums[picked], (b"",) * self._batch)
        reservation = self._tier.reserve(run)
        try:
            await reservation.write([self._from[picked[i]] for i in reservation.granted])
            assert reservation.seal() == self._batch, "the tier had no room"
        finally:
            reservation.abort()
        self._held.append(keys)

    async def _read(self, which: int) -> None:
        recent = self._recent()
        drawn = self.random.sample(range(len(recent) * self._batch), self._batch)
        keys = np.stack([recent[i // self._batch][i % self._batch] for i in drawn])
        await self._read_into(which, keys)

    async def _read_chain(self, which: int) -> None:
        await self._read_into(which, self.random.choice(self._recent()))

    def _recent(self) -> list[Keys]:
        """Half of the tier at most has been written since: what was written last is here still."""
        return self._held[-int(self.geometry.size * FILLED) // (self._batch * (self.block_bytes + HEADER_BYTES)) :]

    async def _read_into(self, which: int, keys: Keys) -> None:
        into = self.random.sample(self._into[which::AT_ONCE], self._batch)  # nobody else's
        hold = self._tier.hold(0, 0, keys)
        assert hold is not None and len(hold.run) == self._batch, "a block that was written is not here"
        try:
            assert await hold.read(into) == self._batch, "a block did not verify"
        finally:
            hold.release()
