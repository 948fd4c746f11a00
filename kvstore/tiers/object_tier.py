"""The object tier as a base.Tier: runs of blocks over packs that this node knows of.

Rules
- lookup, reserve and hold decide over the pack index alone and ask no store. Packs that are not known yet are found by
  probes (node/prober.py), never here.
- A hold keeps nothing in the store: a pack may be swept under it, and then fewer blocks arrive.
- A reservation is for one pack: granted are the blocks of the run's first group, if it begins where a group does.
- A pack holds what a namespace says or is not listed: sizes, parts, and keys that are those of the chain asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore.tiers.base import Run, TierKind
from kvstore.tiers.object import NotAnsweredError
from kvstore.tiers.packs import PackHead, head_bytes_of, pack_blocks, pack_name

if TYPE_CHECKING:
    import numpy.typing as npt

    from kvstore.tiers.base import Keys, Shape, Shapes
    from kvstore.tiers.object import ObjectTier
    from kvstore.tiers.pack_index import PackIndex, Stretch

__all__ = ["PackTier", "fits"]

HOLD_BYTES: Final = 64 << 20  # of one hold: two full packs, read at once


def fits(head: PackHead, shape: Shape, keys: Keys, position: int) -> bool:
    """Whether a pack found for `keys`, which begin at `position` of their chain, is what it must be."""
    parts = len(shape.part_bytes)
    if head.block_bytes != shape.bytes or head.checksums.shape[1] != parts or head.digest != shape.digest:
        return False
    if head.position % pack_blocks(shape.bytes):
        return False
    first = max(head.position, position)  # of what both tell of
    theirs, ours = head.keys[first - head.position :], keys[first - position :]
    count = min(len(theirs), len(ours))
    return count > 0 and bool((theirs[:count] == ours[:count]).all())


class PackTier:
    """Lives on one event loop."""

    kind = TierKind.OBJECT

    def __init__(self, store: ObjectTier, index: PackIndex, shapes: Shapes) -> None:
        self.store = store
        self.index = index
        self.shapes = shapes
        self._deleting: dict[str, asyncio.Task[set[str]]] = {}

    def lookup(self, ns: int, shard: int, keys: Keys) -> npt.NDArray[np.bool_]:
        return self.index.knows(ns, shard, keys)

    def reserve(self, run: Run) -> PackReservation:
        shape = self.shapes.shape(run.ns, run.shard)
        if shape is None or not len(run) or run.position % pack_blocks(shape.bytes):
            return PackReservation(self, run, shape, 0)
        return PackReservation(self, run, shape, min(len(run), pack_blocks(shape.bytes)))

    def hold(self, ns: int, shard: int, keys: Keys) -> PackHold | None:
        shape = self.shapes.shape(ns, shard)
        if shape is None or self.store.circuit.is_open:
            return None
        stretches = self.index.stretches(ns, shard, keys, max(1, HOLD_BYTES // shape.bytes))
        return PackHold(self, ns, shape, stretches) if stretches else None

    def retire(self, ns: int, keys: Keys) -> int:
        """Whole packs go, since a part of one cannot; they are deleted in the background."""
        shards = 0
        while self.shapes.shape(ns, shards) is not None:
            shards += 1
        names = self.index.packs_of(ns, keys, shards)
        retired = sum(int(self.index.knows(ns, shard, keys).sum()) for shard in range(shards))
        for name in names:
            self.index.gone(name, swept=False)
        if names:
            task = asyncio.ensure_future(self.store.delete(names))
            self._deleting.update(dict.fromkeys(names, task))
            task.add_done_callback(lambda done: self._deleted(names, done))
        return retired

    def _deleted(self, names: Sequence[str], done: asyncio.Task[set[str]]) -> None:
        for name in names:
            if self._deleting.get(name) is done:
                del self._deleting[name]

    async def settled(self, name: str) -> None:
        """Whether a pack is there can be asked: no delete of it is under way."""
        task = self._deleting.get(name)
        if task is not None:
            await asyncio.wait({task})

    async def close(self) -> None:
        deleting = set(self._deleting.values())
        for task in deleting:
            task.cancel()
        await asyncio.gather(*deleting, return_exceptions=True)


class PackReservation:
    """See tiers/base.py, Reservation."""

    def __init__(self, tier: PackTier, run: Run, shape: Shape | None, blocks: int) -> None:
        self._tier = tier
        self._run = run
        self._shape = shape
        self.granted: Sequence[int] = range(blocks)
        self._written: PackHead | None = None

    async def write(self, sources: Sequence[memoryview]) -> None:
        """`sources`: memory that nobody writes to any more, even when this is cancelled. A pack that is there already
        is not sent again.
        """
        if not self.granted or self._shape is None:
            return
        run, count, store = self._run, len(self.granted), self._tier.store
        last = run.keys[count - 1].tobytes()
        name = pack_name(self._shape.digest, run.shard, last)
        await self._tier.settled(name)
        there = None
        with contextlib.suppress(NotAnsweredError):  # creating it will tell as well
            there = await store.head(self._shape.digest, run.shard, last)
        if there is not None and fits(there, self._shape, run.keys[:count], run.position):
            store.counts.packs_there_already += 1
            self._written = there
            return
        parts = len(self._shape.part_bytes)
        head = PackHead(
            digest=self._shape.digest,
            shard=run.shard,
            position=run.position,
            parent=run.parent or bytes(32),
            block_bytes=self._shape.bytes,
            keys=run.keys[:count],
            checksums=run.checksums[:count],
            metas=run.metas[:count],
            head_bytes=head_bytes_of(count, parts, run.metas[:count]),
        )
        if not await store.write(head, sources):
            raise OSError(errno.EIO, f"the object store did not take {name}")
        self._written = head

    def seal(self) -> int:
        head, self._written = self._written, None
        if head is None or self._tier.shapes.shape(self._run.ns, self._run.shard) is None:
            return 0
        self._tier.index.add(self._run.ns, head)
        return len(self.granted)

    def abort(self) -> None:
        self._written = None


class PackHold:
    """See tiers/base.py, Hold."""

    def __init__(self, tier: PackTier, ns: int, shape: Shape, stretches: list[Stretch]) -> None:
        self._tier = tier
        self._shape = shape
        self._stretches = stretches
        self._ns = ns

    @property
    def run(self) -> Run:
        pieces = [(one.head, slice(one.first, one.first + one.count)) for one in self._stretches]
        head, first = self._stretches[0].head, self._stretches[0].first
        parent = head.keys[first - 1].tobytes() if first else head.parent
        return Run(
            ns=self._ns,
            shard=head.shard,
            keys=np.concatenate([one.keys[part] for one, part in pieces]),
            parent=parent if any(parent) else None,
            checksums=np.concatenate([one.checksums[part] for one, part in pieces]),
            metas=tuple(meta for one, part in pieces for meta in one.metas[part]),
            position=head.position + first,
        )

    async def read(self, into: Sequence[memoryview]) -> int:
        """One request a pack, all at once."""
        parts = np.array(self._shape.part_bytes, dtype=np.uint64)
        asked: list[int] = []
        reads = []
        at = 0
        for one in self._stretches:
            count = min(one.count, len(into) - at)
            if count > 0:
                reads.append(self._tier.store.read(one.head, one.first, into[at : at + count], parts))
                asked.append(count)
            at += one.count
        # return_exceptions: only then does gather wait for all of them, cancelled or not, and memory is quiet.
        arrived = await asyncio.gather(*reads, return_exceptions=True)
        self._tier.index.used(self._stretches[: len(asked)])
        blocks = 0
        for count, came in zip(asked, arrived, strict=True):
            if isinstance(came, BaseException):
                raise came
            blocks += came
            if came < count:
                break
        return blocks

    def release(self) -> None:
        """Nothing is kept."""
