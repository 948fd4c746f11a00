"""The memory tier as a base.Tier: slots of the native table over the payload segment. Here the mover's reads and
writes are copies between mappings, done in the loop's thread pool with the GIL given back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kvstore import native
from kvstore.clock import Clock
from kvstore.quiet import quietly
from kvstore.tiers.base import Checksums, Keys, Run, TierKind

T = TypeVar("T")

GRANTED = 0  # ReserveStatus
SEALED = 0  # Outcome


class MemoryTier:
    """payload: the whole segment, writable. part_bytes: of a shard of a namespace; () once it is cleared. owner:
    under which the mover holds and reserves.
    """

    kind = TierKind.MEMORY

    def __init__(
        self,
        core: native.NodeCore,
        payload: memoryview,
        part_bytes: Callable[[int, int], tuple[int, ...]],
        clock: Clock,
    ) -> None:
        self._core = core
        self.part_bytes = part_bytes
        self._payload = payload
        self._clock = clock
        self._owner = core.new_owner()

    def lookup(self, ns: int, shard: int, keys: Keys) -> npt.NDArray[np.bool_]:
        return self._core.find(self.kind, ns, shard, keys)

    def reserve(self, run: Run) -> MemoryReservation:
        """For a promotion: what is brought up may take the place of its own chain's beginning."""
        hint = native.Hint(position=run.position, from_below=True)
        parent = run.parent or b""
        now = self._clock.now_ns()
        status, statuses, tickets, offsets = self._core.reserve(
            # In place: should it lapse while a device still writes there, its slots are nobody else's before abort.
            self.kind,
            self._owner,
            run.ns,
            run.shard,
            run.keys,
            parent,
            list(run.metas),
            hint,
            True,
            now,
        )
        granted = np.flatnonzero(statuses == GRANTED) if status == 0 else np.empty(0, np.int64)
        return MemoryReservation(self, run, granted, tickets[granted], offsets[granted])

    def hold(self, ns: int, shard: int, keys: Keys) -> MemoryHold | None:
        hold, rows = self._core.hold(self.kind, self._owner, ns, shard, keys)
        return MemoryHold(self, hold, rows) if hold else None

    def hold_slots(self, tickets: npt.NDArray[np.uint64]) -> MemoryHold | None:
        """Slots by ticket, of one namespace and shard; those gone meanwhile are left out."""
        hold, rows = self._core.hold_slots(self.kind, self._owner, tickets)
        return MemoryHold(self, hold, rows) if hold else None

    def retire(self, ns: int, keys: Keys) -> int:
        return int(self._core.retire_keys(ns, keys))

    @property
    def size(self) -> int:
        return len(self._payload)

    def place(self, offset: int, length: int) -> memoryview:
        return self._payload[offset : offset + length]

    def now(self) -> int:
        return self._clock.now_ns()

    @property
    def core(self) -> native.NodeCore:
        return self._core

    @property
    def owner(self) -> int:
        return self._owner


class MemoryReservation:
    """Exits: seal, abort. `places`: where the granted blocks are to lie, for who would rather fill them itself."""

    def __init__(
        self,
        tier: MemoryTier,
        run: Run,
        granted: npt.NDArray[np.int64],
        tickets: npt.NDArray[np.uint64],
        offsets: npt.NDArray[np.uint64],
    ) -> None:
        self._tier = tier
        self._run = run
        self.granted: Sequence[int] = granted.tolist()
        self.block_bytes = sum(tier.part_bytes(run.ns, run.shard))
        self._tickets = tickets
        self._offsets: list[int] = offsets.tolist()
        self._left = len(self.granted)

    @property
    def places(self) -> list[memoryview]:
        return [self._tier.place(offset, self.block_bytes) for offset in self._offsets]

    async def write(self, sources: Sequence[memoryview]) -> None:
        await _copied(self.places, list(sources))

    def seal(self, count: int | None = None) -> int:
        """The first `count` granted blocks (all, if not said); what is left over is given back."""
        if self._left == 0:
            return 0
        count = self._left if count is None else count
        checksums = self._run.checksums[np.asarray(self.granted[:count], dtype=np.int64)].reshape(-1)
        outcomes = self._tier.core.seal(
            self._tier.kind, self._tier.owner, self._tickets[:count], checksums, self._tier.now()
        )
        self._tickets, self._left = self._tickets[count:], 0
        self._give_back()
        return int((outcomes == SEALED).sum())

    def abort(self) -> None:
        self._left = 0
        self._give_back()

    def _give_back(self) -> None:
        tickets, self._tickets = self._tickets, self._tickets[:0]
        if len(tickets):
            self._tier.core.abort(self._tier.kind, self._tier.owner, tickets)


class MemoryHold:
    """Exit: release. `places`: where each block lies, read-only."""

    def __init__(self, tier: MemoryTier, hold: int, rows: native.SlotRows) -> None:
        self._tier = tier
        self._hold = hold
        self.tickets = rows.tickets
        self.run = run_of(rows)
        self._offsets: list[int] = rows.offsets.tolist()
        self._lengths: list[int] = rows.bytes.tolist()

    @property
    def places(self) -> list[memoryview]:
        pairs = zip(self._offsets, self._lengths, strict=True)
        return [self._tier.place(offset, length).toreadonly() for offset, length in pairs]

    async def read(self, into: Sequence[memoryview]) -> int:
        """Not verified on the way: memory is checked by whoever reads it next, and by `verifies`."""
        await _copied(list(into), self.places[: len(into)])
        return len(into)

    async def verifies(self) -> bool:
        """Whether every block has the checksums that were taken when it landed."""
        parts = self._tier.part_bytes(self.run.ns, self.run.shard)
        if not parts:
            return True  # cleared meanwhile: nobody can reach it
        found = [await _in_thread(native.part_checksums, place, list(parts)) for place in self.places]
        return all(bool((one == row).all()) for one, row in zip(found, self.run.checksums, strict=True))

    def release(self) -> None:
        hold, self._hold = self._hold, 0
        if hold:
            self._tier.core.release(self._tier.kind, self._tier.owner, hold)


def run_of(rows: native.SlotRows) -> Run:
    """What rows of one namespace and shard say of their blocks."""
    parts = int(rows.checksum_counts[0])
    checksums: Checksums = rows.checksums.reshape(len(rows.tickets), parts)
    parent = rows.parents[0].tobytes()
    return Run(
        ns=int(rows.ns[0]),
        shard=int(rows.shards[0]),
        keys=rows.keys,
        parent=parent if any(parent) else None,
        checksums=checksums,
        metas=tuple(bytes(meta) for meta in rows.metas),
        position=int(rows.positions[0]),
    )


async def _copied(to: list[memoryview], source: list[memoryview]) -> None:
    await _in_thread(native.copy_parts, to, source, [place.nbytes for place in to])


async def _in_thread(call: Callable[..., T], *arguments: object) -> T:
    """A cancellation waits until the thread is back, since only then the memory is quiet."""
    return await quietly(asyncio.ensure_future(asyncio.to_thread(call, *arguments)))
