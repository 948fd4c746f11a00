"""Write-behind: keeps the coldest part of memory written below, so that what is evicted is not lost.

Rules
- No put waits for it. Blocks are held until they are written, at most `WRITES_MAX` batches of them; a put that needs
  room takes warmer ones meanwhile, and what it takes unwritten is dropped and counted by the core.
- Only the coldest `write_behind_bytes_max` are looked at. What was written, or passed over by admission, is not asked
  about again until somebody has touched it: the core keeps that (native/core/node_core_marks.cpp).
- A write that fails leaves its blocks dirty, and not to be asked about while they are as cold as they are; after it,
  nothing is written for `RETRY_S`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kvstore import native
from kvstore.tiers.base import Run, TierKind

if TYPE_CHECKING:
    from kvstore.node.admission import Admission
    from kvstore.tiers.base import Tier
    from kvstore.tiers.memory import MemoryTier

__all__ = ["Demotion", "chains"]

log = logging.getLogger(__name__)

BATCH_BYTES: Final = 16 << 20
BATCH_BLOCKS: Final = 256
WRITES_MAX: Final = 3
RETRY_S: Final = 1.0
MEMORY: Final = int(TierKind.MEMORY)

_Held = tuple[int, list[int]]  # the hold, and which rows it holds: a run in chain order


def chains(keys: list[bytes], parents: list[bytes]) -> list[list[int]]:
    """Indices of blocks as runs in chain order: each block's parent is the one before it in its run."""
    at = {key: i for i, key in enumerate(keys)}
    children: dict[bytes, list[int]] = {}
    starts: list[int] = []
    for i, parent in enumerate(parents):
        if parent in at and at[parent] != i:
            children.setdefault(parent, []).append(i)
        else:
            starts.append(i)
    runs: list[list[int]] = []
    while starts:
        run = [starts.pop()]
        while following := children.pop(keys[run[-1]], None):
            run.append(following[0])
            starts.extend(following[1:])
        runs.append(run)
    # Opaque keys may name each other in a circle; those are runs of one.
    runs.extend([i] for circle in children.values() for i in circle)
    return runs


class Demotion:
    """Called by the mover when memory has crossed its watermark; returns when the coldest part is settled."""

    def __init__(
        self,
        memory: MemoryTier,
        below: Tier,
        admission: Admission,
        write_behind_bytes_max: int,
        room_bytes: Callable[[], int],
    ) -> None:
        """room_bytes: what `below` can take without evicting."""
        self._core = memory.core
        self._owner = self._core.new_owner()
        self._below = below
        self._admission = admission
        self._memory = memory
        self._bytes_max = write_behind_bytes_max
        self._room_bytes = room_bytes
        self._failed: set[int] = set()  # tickets in the coldest part that could not be written
        self.retry_s = RETRY_S
        self.blocks_written = 0
        self.failures = 0

    async def __call__(self) -> None:
        writes: set[asyncio.Task[bool]] = set()
        try:
            while True:
                batch = self._next_batch()
                if batch is not None:
                    writes.add(asyncio.ensure_future(self._write(*batch)))
                if not writes:
                    return
                if batch is None or len(writes) >= WRITES_MAX:
                    done, writes = await asyncio.wait(writes, return_when=asyncio.FIRST_COMPLETED)
                    if not all(task.result() for task in done):
                        await asyncio.sleep(self.retry_s)
        finally:
            for task in writes:
                task.cancel()
            if writes:
                await asyncio.wait(writes)

    def _next_batch(self) -> tuple[native.SlotRows, list[_Held]] | None:
        """The coldest that are to go down, each run of them held by itself: what is written may go at once, so that a
        put that needs room takes nothing warmer instead.
        """
        cold = self._core.dirty_victims(MEMORY, self._bytes_max, native.Dirty.FRESH)
        listed = cold.tolist()
        self._failed.intersection_update(listed)
        fresh = [i for i, ticket in enumerate(listed) if ticket not in self._failed]
        while fresh:
            rows = self._core.info(MEMORY, cold[fresh[:BATCH_BLOCKS]])
            few = max(1, min(len(fresh), BATCH_BLOCKS, BATCH_BYTES // int(rows.bytes.max(initial=1))))
            fresh = fresh[few:]
            chosen = self._choose(rows, min(few, len(rows.tickets)))  # some may be gone already
            if chosen:
                hold, held = self._core.hold_slots(MEMORY, self._owner, rows.tickets[chosen])
                if hold:
                    runs = [
                        (self._core.hold_slots(MEMORY, self._owner, held.tickets[run])[0], run) for run in _runs(held)
                    ]
                    self._core.release(MEMORY, self._owner, hold)
                    return held, [(each, run) for each, run in runs if each]
        return None

    def _choose(self, rows: native.SlotRows, few: int) -> list[int]:
        """Which of the first few go down. The others are marked: clean, as they are there already, or passed over."""
        there = self._there(rows, few)
        self._core.mark_clean(MEMORY, rows.tickets[:few][there])
        left = np.flatnonzero(~there).tolist()
        chosen = self._admission.choose(
            [rows.keys[i].tobytes() for i in left],
            [rows.parents[i].tobytes() for i in left],
            rows.tickets[left].tolist(),
            rows.wanted[left].tolist(),
            self._room_bytes() // int(rows.bytes.max(initial=1)),
        )
        picked = [left[i] for i in chosen]
        self._core.mark_passed(MEMORY, rows.tickets[sorted(set(left) - set(picked))])
        return picked

    def _there(self, rows: native.SlotRows, few: int) -> npt.NDArray[np.bool_]:
        there = np.zeros(few, dtype=np.bool_)
        for ns, shard in set(zip(rows.ns[:few].tolist(), rows.shards[:few].tolist(), strict=True)):
            mine = np.flatnonzero((rows.ns[:few] == ns) & (rows.shards[:few] == shard))
            there[mine] = self._below.lookup(ns, shard, rows.keys[mine])
        return there

    async def _write(self, rows: native.SlotRows, runs: list[_Held]) -> bool:
        """False: the tier below could not take them."""
        written = True
        try:
            while runs:
                hold, run = runs[0]
                written = await self._write_run(rows, run) and written
                del runs[0]
                self._core.release(MEMORY, self._owner, hold)
            return written
        finally:
            for hold, _ in runs:
                self._core.release(MEMORY, self._owner, hold)

    async def _write_run(self, rows: native.SlotRows, picked: list[int]) -> bool:
        run = _run(rows, picked)
        reservation = self._below.reserve(run)
        try:
            sources = [
                self._memory.place(int(rows.offsets[picked[i]]), int(rows.bytes[picked[i]]))
                for i in reservation.granted
            ]
            await reservation.write(sources)
            written = reservation.seal()
            self.blocks_written += written
            self._core.moved(MEMORY, int(self._below.kind), written)
        except OSError as error:
            self.failures += 1
            log.warning("write-behind: %s", error)
            return False
        finally:
            reservation.abort()
            there = self._below.lookup(run.ns, run.shard, run.keys)
            tickets = rows.tickets[picked]
            self._core.mark_clean(MEMORY, tickets[there])
            self._failed.update(tickets[~there].tolist())
        return True


def _runs(rows: native.SlotRows) -> list[list[int]]:
    """Indices of rows as runs in chain order, each of one namespace's shard."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, name in enumerate(zip(rows.ns.tolist(), rows.shards.tolist(), strict=True)):
        groups.setdefault(name, []).append(i)
    runs: list[list[int]] = []
    for members in groups.values():
        keys = [rows.keys[i].tobytes() for i in members]
        parents = [rows.parents[i].tobytes() for i in members]
        runs += [[members[i] for i in run] for run in chains(keys, parents)]
    return runs


def _run(rows: native.SlotRows, picked: list[int]) -> Run:
    first = picked[0]
    parent = rows.parents[first].tobytes()
    at = [0, *np.cumsum(rows.checksum_counts).tolist()]
    checksums, metas = rows.checksums, rows.metas  # copied at each look: a look a block would be a copy of all a block
    return Run(
        ns=int(rows.ns[first]),
        shard=int(rows.shards[first]),
        keys=np.ascontiguousarray(rows.keys[picked]),
        parent=parent if any(parent) else None,
        checksums=np.stack([checksums[at[i] : at[i + 1]] for i in picked]),
        metas=tuple(bytes(metas[i]) for i in picked),
        position=int(rows.positions[first]),
    )
