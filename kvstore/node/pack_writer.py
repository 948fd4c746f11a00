"""Writes what the tier above is about to lose into packs of the object tier.

Rules
- No put waits for it. It looks at the coldest part of one tier (files, or memory where there are none) whenever that
  tier runs short of room, and marks clean what lies in a pack. Where there are files, it looks at the coldest part of
  memory too, for what files have let go before it was in a pack. What is evicted before its turn is dropped and counted
  by the core.
- A pack is an aligned group: the victim and its ancestors back to the group's start, wherever above they lie. Whole
  groups go first; a chain's tail makes a partial pack. A group of which an ancestor is not here is passed over and
  counted.
- What the sweeper took for room is not offered again until it is touched (native/core/node_core_marks.cpp).
- Blocks are copied into memory of the pack's own and verified on the way: nothing is held while the store is slow, and
  a cancelled upload touches nobody's memory. At most `write_bytes_max` of such copies exist.
- While the store does not answer, nothing is copied and nothing asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kvstore import native
from kvstore.quiet import quietly
from kvstore.tiers.base import Hold, Run, TierKind
from kvstore.tiers.packs import pack_blocks

if TYPE_CHECKING:
    from kvstore.tiers.base import Keys, Shape, Tier
    from kvstore.tiers.object_tier import PackTier

__all__ = ["Group", "PackWriter"]

log = logging.getLogger(__name__)

Key = npt.NDArray[np.uint8]  # (32,)
Tickets = npt.NDArray[np.uint64]

COLD_BYTES_MAX: Final = 256 << 20  # how much of the cold end is kept clean
COLD_SHARE: Final = 0.25  # but no more of the tier than this
FREE_SHARE: Final = 0.25  # writing begins when less of the tier is free
ROWS: Final = 1024  # victims looked at at once
LOOK_S: Final = 0.25  # how often it is looked whether room runs short
RETRY_S: Final = 1.0
FORGIVE_S: Final = 30.0  # how long a group that could not be written is passed over
ALIGN: Final = 4096  # of buffers that a file tier reads into
EVERYTHING: Final = 1 << 62
MEMORY: Final = int(TierKind.MEMORY)


@dataclass(frozen=True, slots=True)
class Group:
    """One pack to be: keys from the group's start to its last block."""

    ns: int
    shard: int
    keys: Keys
    position: int
    bytes: int
    whole: bool
    victim: int  # the ticket for whose sake it is written


class PackWriter:
    """Lives on one event loop from `start` to `stop`.

    source: the tier whose victims are written. above: every tier that may have a group's members, `source` first.
    admit: whether so many bytes more may be stored.
    """

    def __init__(
        self,
        core: native.NodeCore,
        source: TierKind,
        above: Sequence[Tier],
        objects: PackTier,
        write_bytes_max: int,
        admit: Callable[[int], bool],
    ) -> None:
        self._core = core
        self._source = int(source)
        self._above = above
        self._objects = objects
        self._bytes_max = write_bytes_max
        self._admit = admit
        self._owner = core.new_owner()
        self._passed: set[int] = set()  # tickets whose group could not be put together, or was refused
        self._kicked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.blocks_written = 0
        self.blocks_passed = 0
        self.failures = 0

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self, flush_s: float = 0.0) -> None:
        """flush_s: for so long, what lies in no pack yet is written, all of it."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if flush_s > 0:
            try:
                async with asyncio.timeout(flush_s):
                    await self.flush()
            except TimeoutError:
                log.warning("object tier: not everything was written within %g s", flush_s)
        self._core.owner_gone(self._owner)

    async def kick(self) -> None:
        """There is something to do: for the mover, which has no tier between memory and this one."""
        self._kicked.set()

    async def flush(self) -> None:
        """Everything of every tier above."""
        self._passed.clear()
        for tier in self._above:
            while await self._write_cold(int(tier.kind), EVERYTHING):
                pass

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        forgive = loop.time() + FORGIVE_S
        while True:
            if loop.time() >= forgive:
                self._passed.clear()
                forgive = loop.time() + FORGIVE_S
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):  # wait_for of 3.11 may lose a cancellation, and so a stop
                    await self._kicked.wait()
            self._kicked.clear()
            try:
                while self._short() and await self._write_short():
                    pass
            except Exception:
                log.exception("object tier: writing packs failed")
                await asyncio.sleep(RETRY_S)

    async def _write_short(self) -> bool:
        """Memory first, where files have lost something: nothing else has it any more."""
        lost = self._source != MEMORY and await self._write_cold(MEMORY, self._cold_bytes(MEMORY), native.Dirty.LOST)
        return await self._write_cold(self._source, self._cold_bytes(self._source), native.Dirty.FRESH) or lost

    def _capacity(self, tier: int) -> int:
        stats = self._core.stats(tier)
        return stats["bytes_free"] + stats["payload_bytes_sealed"]

    def _short(self) -> bool:
        return self._core.stats(self._source)["bytes_free"] < FREE_SHARE * self._capacity(self._source)

    def _cold_bytes(self, tier: int) -> int:
        return min(COLD_BYTES_MAX, int(COLD_SHARE * self._capacity(tier)))

    # ---- one round --------------------------------------------------------------------------------------------------

    async def _write_cold(self, tier: int, cold_bytes: int, which: native.Dirty = native.Dirty.ALL) -> bool:
        """Some of the coldest blocks that are in no pack. False: there are none, or the store does not take them."""
        if self._objects.store.circuit.is_open:
            return False
        rows = self._victims(tier, cold_bytes, which)
        if rows is None:
            return False
        left = self._mark_known(tier, rows)
        groups = self._groups(rows, left)
        if not groups:
            await asyncio.sleep(0)
            return True  # what was there has been marked or passed over
        written = True
        uploads: set[asyncio.Task[bool]] = set()
        under_way = 0
        try:
            for group in groups:
                while uploads and under_way + group.bytes > self._bytes_max:
                    done, uploads = await asyncio.wait(uploads, return_when=asyncio.FIRST_COMPLETED)
                    written = written and all(task.result() for task in done)
                    under_way = sum(int(task.get_name()) for task in uploads)
                if not written:
                    break
                uploads.add(asyncio.create_task(self._write(group), name=str(group.bytes)))
                under_way += group.bytes
            if uploads:
                done, uploads = await asyncio.wait(uploads)
                written = written and all(task.result() for task in done)
        finally:
            for task in uploads:
                task.cancel()
            if uploads:
                await asyncio.wait(uploads)
        return written

    def _victims(self, tier: int, cold_bytes: int, which: native.Dirty) -> native.SlotRows | None:
        cold = self._core.dirty_victims(tier, cold_bytes, which)
        fresh = [i for i, ticket in enumerate(cold.tolist()) if ticket not in self._passed]
        rows = self._core.info(tier, cold[fresh[:ROWS]]) if fresh else None
        return rows if rows is not None and len(rows.tickets) else None

    def _mark_known(self, tier: int, rows: native.SlotRows) -> list[int]:
        """Marks clean what lies in a known pack already. Returns the others."""
        known = np.zeros(len(rows.tickets), dtype=np.bool_)
        for ns, shard in set(zip(rows.ns.tolist(), rows.shards.tolist(), strict=True)):
            mine = np.flatnonzero((rows.ns == ns) & (rows.shards == shard))
            known[mine] = self._objects.lookup(ns, shard, rows.keys[mine])
        self._core.mark_clean(tier, rows.tickets[known])
        return np.flatnonzero(~known).tolist()

    def _groups(self, rows: native.SlotRows, picked: list[int]) -> list[Group]:
        """Packs that cover the victims, each as long as its deepest one; whole ones first."""
        parents = {(int(rows.ns[i]), int(rows.shards[i]), rows.keys[i].tobytes()): rows.parents[i] for i in picked}
        covered: set[tuple[int, int, bytes]] = set()
        groups: list[Group] = []
        dropped: list[int] = []
        for i in sorted(picked, key=lambda i: -int(rows.positions[i])):
            ns, shard = int(rows.ns[i]), int(rows.shards[i])
            if (ns, shard, rows.keys[i].tobytes()) in covered:
                continue
            shape = self._objects.shapes.shape(ns, shard)
            keys = self._back_to_start(ns, shard, rows, i, shape, parents) if shape is not None else None
            if shape is None or keys is None:
                dropped.append(i)
                continue
            position = int(rows.positions[i])
            covered.update((ns, shard, key.tobytes()) for key in keys)
            size = _stride(shape.bytes) * len(keys)
            start = position + 1 - len(keys)
            whole = len(keys) == pack_blocks(shape.bytes)
            groups.append(Group(ns, shard, keys, start, size, whole, int(rows.tickets[i])))
        if dropped:
            self._passed.update(rows.tickets[dropped].tolist())
            self.blocks_passed += len(dropped)
        return sorted(groups, key=lambda group: not group.whole)

    def _back_to_start(
        self,
        ns: int,
        shard: int,
        rows: native.SlotRows,
        at: int,
        shape: Shape,
        parents: dict[tuple[int, int, bytes], Key],
    ) -> Keys | None:
        """Keys from the start of its group to this block; None where the chain is broken."""
        keys = [rows.keys[at]]
        parent = rows.parents[at]
        for _ in range(int(rows.positions[at]) % pack_blocks(shape.bytes)):
            if not parent.any():
                return None
            keys.append(parent)
            known = parents.get((ns, shard, parent.tobytes()))
            before = known if known is not None else self._parent_of(ns, shard, parent)
            if before is None:
                return None
            parent = before
        return np.stack(keys[::-1])

    def _parent_of(self, ns: int, shard: int, key: Key) -> Key | None:
        for tier in self._above:
            hold, rows = self._core.hold(int(tier.kind), self._owner, ns, shard, key.reshape(1, 32))
            if hold:
                self._core.release(int(tier.kind), self._owner, hold)
                parent: Key = rows.parents[0]
                return parent
        return None

    # ---- one pack ---------------------------------------------------------------------------------------------------

    async def _write(self, group: Group) -> bool:
        """False: the store did not take it. A group that has fallen apart meanwhile is no failure."""
        shape = self._objects.shapes.shape(group.ns, group.shard)
        if shape is not None and not self._admit(group.bytes):
            return False
        copy = await self._copied(group, shape) if shape is not None else None
        if copy is None:
            self._passed.add(group.victim)
            return True
        run, sources, places = copy
        reservation = self._objects.reserve(run)
        try:
            await reservation.write(sources)
            sealed = reservation.seal()
        except OSError as error:  # counted there and here, and told there
            self.failures += 1
            self._passed.add(group.victim)  # so that one that is never taken does not stand before all others
            log.debug("object tier: %s", error)
            return False
        finally:
            reservation.abort()
        if not sealed:  # cleared meanwhile
            self._passed.add(group.victim)
            return True
        self.blocks_written += sealed
        for kind, tickets in places:
            self._core.mark_clean(kind, tickets)
            self._core.moved(kind, int(TierKind.OBJECT), len(tickets))
        return True

    async def _copied(
        self, group: Group, shape: Shape
    ) -> tuple[Run, list[memoryview], list[tuple[int, Tickets]]] | None:
        """The group's blocks, verified, in memory of their own; and which slots they lie in."""
        stride, count = _stride(shape.bytes), len(group.keys)
        memory = memoryview(mmap.mmap(-1, stride * count))
        blocks = [memory[i * stride : i * stride + shape.bytes] for i in range(count)]
        runs: list[Run] = []
        places: list[tuple[int, Tickets]] = []
        at = 0
        while at < count:
            kind, hold = self._hold(group, at)
            if hold is None:
                return None
            try:
                run = hold.run
                into = blocks[at : at + len(run)]
                if await hold.read(into) < len(run) or not await _right(into, run, shape):
                    return None
                places.append((kind, self._tickets(kind, run)))
            finally:
                hold.release()
            runs.append(run)
            at += len(run)
        return _joined(runs, group), [block.toreadonly() for block in blocks], places

    def _tickets(self, kind: int, run: Run) -> Tickets:
        hold, rows = self._core.hold(kind, self._owner, run.ns, run.shard, run.keys)
        if hold:
            self._core.release(kind, self._owner, hold)
        tickets: Tickets = rows.tickets
        return tickets

    def _hold(self, group: Group, at: int) -> tuple[int, Hold | None]:
        for tier in self._above:
            hold = tier.hold(group.ns, group.shard, group.keys[at:])
            if hold is not None:
                return int(tier.kind), hold
        return 0, None


def _stride(block_bytes: int) -> int:
    return -(-block_bytes // ALIGN) * ALIGN


async def _right(blocks: Sequence[memoryview], run: Run, shape: Shape) -> bool:
    """Whether copies have the checksums that were taken when the blocks landed."""
    parts = list(shape.part_bytes)

    def check() -> bool:
        found = [native.part_checksums(block, parts) for block in blocks]
        return all(bool((one == row).all()) for one, row in zip(found, run.checksums, strict=True))

    return await quietly(asyncio.get_running_loop().run_in_executor(None, check))


def _joined(runs: list[Run], group: Group) -> Run:
    return Run(
        ns=group.ns,
        shard=group.shard,
        keys=group.keys,
        parent=runs[0].parent,
        checksums=np.concatenate([run.checksums for run in runs]),
        metas=tuple(meta for run in runs for meta in run.metas),
        position=group.position,
    )
