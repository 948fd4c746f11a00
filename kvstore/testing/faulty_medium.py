"""A medium in memory whose faults are chosen by a seed: it fails, tears, flips, delays, and loses what was not synced.

It keeps what is durable apart from what the program sees, in sectors, so that `crash()` can be asked at any point: each
sector written since the last sync is then kept or lost on its own, as a disk's cache may do.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from kvstore.tiers.base import Extent, Pieces

__all__ = ["Faults", "FaultyMedium"]

SECTOR: Final = 512


@dataclass(slots=True)
class Faults:
    """Shares of requests, 0 to 1; may be changed at any time."""

    read_error: float = 0.0
    write_error: float = 0.0
    disk_full: float = 0.0
    flip_on_read: float = 0.0  # one bit, in what is handed out
    torn_write: float = 0.0  # says that it is done; only some sectors are
    lost_write: float = 0.0  # says that it is done; nothing is
    delay_turns: int = 0  # of the event loop, at most, before bytes move


class FaultyMedium:
    """As FileMedium, in memory. Sectors that were never written are zero."""

    def __init__(self, size: int, rng: random.Random, faults: Faults | None = None) -> None:
        self._seen = bytearray(size)
        self._durable = bytearray(size)
        self._unsynced: set[int] = set()
        self._rng = rng
        self.faults = faults or Faults()
        self.reads = 0
        self.writes = 0

    @property
    def name(self) -> str:
        return "faulty"

    @property
    def size(self) -> int:
        return len(self._seen)

    @property
    def align(self) -> int:
        return 4096

    async def open(self) -> None:
        """There is nothing to allocate."""

    async def close(self) -> None:
        """Bytes stay, so that it can be opened again."""

    async def read(
        self,
        extents: Sequence[Extent],
        into: Sequence[Pieces],
        *,
        background: bool = False,
    ) -> Sequence[OSError | None]:
        await self._delay()
        return [self._read(extent, _pieces(buffer)) for extent, buffer in zip(extents, into, strict=True)]

    async def write(
        self,
        extents: Sequence[Extent],
        sources: Sequence[Pieces],
        *,
        background: bool = False,
    ) -> Sequence[OSError | None]:
        await self._delay()
        return [self._write(extent, _pieces(buffer)) for extent, buffer in zip(extents, sources, strict=True)]

    async def sync(self) -> None:
        for sector in self._unsynced:
            self._durable[sector : sector + SECTOR] = self._seen[sector : sector + SECTOR]
        self._unsynced.clear()

    def crash(self) -> None:
        """Power is cut: of what was not synced, each sector is kept or lost by chance."""
        for sector in sorted(self._unsynced):
            if self._rng.random() < 0.5:
                self._durable[sector : sector + SECTOR] = self._seen[sector : sector + SECTOR]
        self._unsynced.clear()
        self._seen[:] = self._durable

    def flip(self, offset: int, bit: int = 0) -> None:
        """Rot, on the disk itself."""
        self._seen[offset] ^= 1 << bit
        self._durable[offset] ^= 1 << bit

    async def _delay(self) -> None:
        for _ in range(self._rng.randint(0, self.faults.delay_turns)):
            await asyncio.sleep(0)

    def _happens(self, share: float) -> bool:
        return share > 0 and self._rng.random() < share

    def _read(self, extent: Extent, pieces: Sequence[memoryview]) -> OSError | None:
        self.reads += 1
        if extent.offset + extent.length > self.size:
            return _error(errno.ENODATA)
        if self._happens(self.faults.read_error):
            return _error(errno.EIO)
        raw = bytearray(self._seen[extent.offset : extent.offset + extent.length])
        if self._happens(self.faults.flip_on_read):
            raw[self._rng.randrange(len(raw))] ^= 1 << self._rng.randrange(8)
        at = 0
        for piece in pieces:
            piece[:] = raw[at : at + len(piece)]
            at += len(piece)
        return None

    def _write(self, extent: Extent, pieces: Sequence[memoryview]) -> OSError | None:
        self.writes += 1
        if extent.offset + extent.length > self.size:
            return _error(errno.ENOSPC)
        if self._happens(self.faults.write_error):
            self._put(extent.offset, b"".join(pieces), torn=True)  # a failed write leaves anything behind
            return _error(errno.EIO)
        if self._happens(self.faults.disk_full):
            return _error(errno.ENOSPC)
        if not self._happens(self.faults.lost_write):
            self._put(extent.offset, b"".join(pieces), torn=self._happens(self.faults.torn_write))
        return None

    def _put(self, offset: int, raw: bytes, *, torn: bool) -> None:
        for at in range(0, len(raw), SECTOR):
            if torn and self._rng.random() < 0.5:
                continue
            self._seen[offset + at : offset + at + SECTOR] = raw[at : at + SECTOR]
            self._unsynced.add(offset + at)


def _pieces(buffer: Pieces) -> Sequence[memoryview]:
    return buffer if isinstance(buffer, tuple) else (buffer,)


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
