"""The file tier: slots of the core's file table over a medium, a header page in front of each payload.

Rules
- Header and payload go out in one write and come back in one read. A block is handed on only if its header names it and
  its payload has the checksums that header and index both say; else it is dropped, counted, and a miss.
- What the medium refuses (EIO, disk full) drops the slot; what was late or cancelled drops nothing.
- A reservation that lapses under way stays quarantined until its write is answered and it is sealed or aborted.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kvstore import native
from kvstore.quiet import quietly
from kvstore.tiers.base import Extent, Run, Shape, Shapes, TierKind
from kvstore.tiers.data_dir import HEADER_BYTES
from kvstore.tiers.page_pool import PAGE_BYTES

if TYPE_CHECKING:
    from kvstore.clock import Clock
    from kvstore.tiers.base import Keys, Medium, Pieces
    from kvstore.tiers.page_pool import PagePool

__all__ = ["FileTier", "Shape", "Shapes"]

FILE: Final = int(TierKind.FILE)
GRANTED: Final = 0  # ReserveStatus
SEALED: Final = 0  # Outcome
GOOD: Final = 0  # SlotVerdict
BATCH_BYTES: Final = 16 << 20  # read, then verified while the next is read
BATCH_BLOCKS: Final = 256
INLINE_VERIFY_BYTES: Final = 256 << 10  # less is hashed sooner than a thread is woken
NOT_THE_SLOTS_FAULT: Final = frozenset({errno.ETIME, errno.ECANCELED, errno.EBUSY, errno.EAGAIN})


@dataclass(slots=True)
class FileCounts:
    """Ever, in blocks, for the metrics."""

    written: int = 0
    write_errors: int = 0
    read: int = 0
    read_errors: int = 0
    not_verified: int = 0
    late: int = 0


class FileTier:
    """Lives on one event loop, as its medium does."""

    def __init__(self, core: native.NodeCore, medium: Medium, shapes: Shapes, pages: PagePool, clock: Clock) -> None:
        self.core = core
        self.medium = medium
        self.shapes = shapes
        self.pages = pages
        self.clock = clock
        self.owner = core.new_owner()
        self.counts = FileCounts()
        # Headers are encoded under the core's lock: into memory that is there already, or puts wait for page faults.
        self.headers = memoryview(bytearray(BATCH_BLOCKS * HEADER_BYTES))
        self._verifiers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="verify")

    @property
    def kind(self) -> TierKind:
        return TierKind.FILE

    def lookup(self, ns: int, shard: int, keys: Keys) -> npt.NDArray[np.bool_]:
        return self.core.find(FILE, ns, shard, keys)

    def reserve(self, run: Run) -> FileReservation:
        shape = self.shapes.shape(run.ns, run.shard)
        if shape is None or not len(run):
            return FileReservation(self, run, None, [], _NONE, _NONE)
        # In place: should the reservation lapse, its range is nobody else's before the medium has answered.
        _, statuses, tickets, offsets = self.core.reserve(
            FILE,
            self.owner,
            run.ns,
            run.shard,
            run.keys,
            run.parent or b"",
            list(run.metas),
            native.Hint(position=run.position),
            True,
            self.clock.now_ns(),
        )
        granted = np.flatnonzero(statuses == GRANTED)
        return FileReservation(self, run, shape, granted.tolist(), tickets[granted], offsets[granted])

    def hold(self, ns: int, shard: int, keys: Keys) -> FileHold | None:
        shape = self.shapes.shape(ns, shard)
        if shape is None:
            return None
        hold, rows = self.core.hold(FILE, self.owner, ns, shard, keys)
        return FileHold(self, shape, hold, rows) if hold else None

    def retire(self, ns: int, keys: Keys) -> int:
        retired = shard = 0
        while self.shapes.shape(ns, shard) is not None:
            for key in keys:
                held = self.hold(ns, shard, key.reshape(1, 32))
                if held is not None:
                    retired += self.core.retire(FILE, held.rows.tickets)
                    held.release()
            shard += 1
        return retired

    def close(self) -> None:
        """After the last read and write were awaited."""
        self._verifiers.shutdown()
        self.core.owner_gone(self.owner)

    async def verify(
        self, shape: Shape, shard: int, rows: native.SlotRows, picked: list[int], batch: _Batch
    ) -> Sequence[int]:
        """A verdict a block (native/core/slot_header.hpp)."""
        checksums = rows.checksums.reshape(len(rows.tickets), -1)

        def check() -> bytes:
            return native.check_slots(
                shape.digest,
                shard,
                list(shape.part_bytes),
                rows.keys[picked],
                rows.offsets[picked],
                checksums[picked],
                batch.headers,
                batch.bodies,
                batch.tails,
            )

        if len(picked) * shape.bytes < INLINE_VERIFY_BYTES:
            return check()
        return await quietly(asyncio.get_running_loop().run_in_executor(self._verifiers, check))


_NONE: Final = np.empty(0, np.uint64)


@dataclass(slots=True)
class _Batch:
    """Where the pieces of some blocks lie: header, whole pages of the payload, and its end in a page of its own."""

    pages: list[memoryview]
    headers: list[memoryview]
    bodies: list[memoryview]
    tails: list[memoryview]  # the part of the last page that is payload; empty where the payload fills its pages
    extents: list[Extent]
    pieces: list[Pieces]


async def _lay_out(pool: PagePool, offsets: npt.NDArray[np.uint64], blocks: Sequence[memoryview], size: int) -> _Batch:
    """offsets: of the payloads. The caller gives `pages` back."""
    whole = size // PAGE_BYTES * PAGE_BYTES
    each = 1 if whole == size else 2
    pages = await pool.take(each * len(blocks))
    headers = pages[: len(blocks)]
    extents = [Extent(int(offset) - HEADER_BYTES, HEADER_BYTES * each + whole) for offset in offsets]
    bodies = [block[:whole] for block in blocks]
    if each == 1:
        return _Batch(pages, headers, bodies, [_EMPTY] * len(blocks), extents, list(zip(headers, bodies, strict=True)))
    ends = pages[len(blocks) :]
    pieces: list[Pieces] = [
        (header, body, end) if whole else (header, end) for header, body, end in zip(headers, bodies, ends, strict=True)
    ]
    return _Batch(pages, headers, bodies, [end[: size - whole] for end in ends], extents, pieces)


_EMPTY: Final = memoryview(b"")


def _batches(count: int, size: int) -> list[range]:
    step = max(1, min(BATCH_BLOCKS, BATCH_BYTES // size))
    return [range(at, min(at + step, count)) for at in range(0, count, step)]


class FileReservation:
    """See tiers/base.py, Reservation."""

    def __init__(
        self,
        tier: FileTier,
        run: Run,
        shape: Shape | None,
        granted: list[int],
        tickets: npt.NDArray[np.uint64],
        offsets: npt.NDArray[np.uint64],
    ) -> None:
        self._tier = tier
        self._run = run
        self._shape = shape
        self._granted = granted
        self._tickets = tickets
        self._offsets = offsets
        self._open = bool(granted)

    @property
    def granted(self) -> Sequence[int]:
        return self._granted

    async def write(self, sources: Sequence[memoryview]) -> None:
        assert len(sources) == len(self._granted)
        if not self._granted or self._shape is None:
            return
        size = self._shape.bytes
        for picked in _batches(len(sources), size):
            await self._write_batch(picked, [sources[i] for i in picked], size)

    async def _write_batch(self, picked: range, sources: list[memoryview], size: int) -> None:
        tier, at = self._tier, slice(picked.start, picked.stop)
        batch = await _lay_out(tier.pages, self._offsets[at], sources, size)
        try:
            checksums = self._run.checksums[[self._granted[i] for i in picked]]
            headers = tier.headers[: HEADER_BYTES * len(sources)]  # until the next await
            if not tier.core.encode_headers(FILE, self._tickets[at], checksums, headers):
                raise OSError(errno.ECANCELED, "the reservation is over")
            for i, page in enumerate(batch.headers):
                page[:] = headers[i * HEADER_BYTES : (i + 1) * HEADER_BYTES]
            whole = size // PAGE_BYTES * PAGE_BYTES
            if whole < size:
                for tail, source in zip(batch.tails, sources, strict=True):
                    tail[:] = source[whole:]
            errors = await tier.medium.write(batch.extents, batch.pieces, background=True)
        finally:
            tier.pages.give(batch.pages)
        failed = [error for error in errors if error is not None]
        tier.counts.write_errors += len(failed)
        tier.counts.written += len(errors) - len(failed)
        if failed:
            raise failed[0]

    def seal(self) -> int:
        if not self._open:
            return 0
        self._open = False
        core, checksums = self._tier.core, self._run.checksums[self._granted]
        outcomes = core.seal(FILE, self._tier.owner, self._tickets, checksums.reshape(-1), self._tier.clock.now_ns())
        return int(np.count_nonzero(outcomes == SEALED))

    def abort(self) -> None:
        if self._open:
            self._open = False
            self._tier.core.abort(FILE, self._tier.owner, self._tickets)


class FileHold:
    """See tiers/base.py, Hold."""

    def __init__(self, tier: FileTier, shape: Shape, hold: int, rows: native.SlotRows) -> None:
        self._tier = tier
        self._shape = shape
        self._hold = hold
        self.rows = rows

    @property
    def run(self) -> Run:
        rows = self.rows
        parent = rows.parents[0].tobytes()
        return Run(
            ns=int(rows.ns[0]),
            shard=int(rows.shards[0]),
            keys=rows.keys,
            parent=parent if any(parent) else None,
            checksums=rows.checksums.reshape(len(rows.tickets), -1),
            metas=tuple(rows.metas),
            position=int(rows.positions[0]),
        )

    async def read(self, into: Sequence[memoryview]) -> int:
        good = await self.read_some(list(range(len(into))), into)
        return next((i for i, arrived in enumerate(good) if not arrived), len(good))

    async def read_some(self, picked: list[int], into: Sequence[memoryview], *, background: bool = False) -> list[bool]:
        """Moves blocks picked[i] of the run into into[i]. Which of them arrived and verify; the others are dropped."""
        parts = _batches(len(picked), self._shape.bytes)
        # return_exceptions: only then does gather wait for all of them, cancelled or not, and memory is quiet.
        arrived = await asyncio.gather(
            *(self._read_batch(picked[p.start : p.stop], into[p.start : p.stop], background) for p in parts),
            return_exceptions=True,
        )
        good: list[bool] = []
        for part in arrived:
            if isinstance(part, BaseException):
                raise part
            good += part
        return good

    async def _read_batch(self, picked: list[int], into: Sequence[memoryview], background: bool) -> list[bool]:
        tier, size = self._tier, self._shape.bytes
        batch = await _lay_out(tier.pages, self.rows.offsets[picked], into, size)
        try:
            errors = await tier.medium.read(batch.extents, batch.pieces, background=background)
            verdicts = await tier.verify(self._shape, int(self.rows.shards[0]), self.rows, picked, batch)
            whole = size // PAGE_BYTES * PAGE_BYTES
            if whole < size:
                for tail, block in zip(batch.tails, into, strict=True):
                    block[whole:] = tail
        finally:
            tier.pages.give(batch.pages)
        return self._judge(picked, errors, verdicts)

    def _judge(self, picked: list[int], errors: Sequence[OSError | None], verdicts: Sequence[int]) -> list[bool]:
        counts, drop = self._tier.counts, []
        arrived = [error is None and verdict == GOOD for error, verdict in zip(errors, verdicts, strict=True)]
        for i, error, came in zip(picked, errors, arrived, strict=True):
            if came:
                counts.read += 1
            elif error is None:
                counts.not_verified += 1
                drop.append(i)
            elif error.errno == errno.EINVAL:
                raise ValueError(f"into: buffers must begin at a multiple of {self._tier.medium.align} bytes")
            elif error.errno in NOT_THE_SLOTS_FAULT:
                counts.late += 1
            else:
                counts.read_errors += 1
                drop.append(i)
        if drop:
            self._tier.core.retire(FILE, self.rows.tickets[drop], True)
        return arrived

    def release(self) -> None:
        if self._hold:
            self._tier.core.release(FILE, self._tier.owner, self._hold)
            self._hold = 0
