"""Puts of connections that map no segment: this node reads the client's memory into slots of its own.

  reserve -> read (checksums as bytes land) -> seal what arrived, give back the rest

Rules
- Only this node writes its slots. They are reserved as written in place, so that a reservation which lapses under a
  read is kept from reuse until the read is quiet.
- Checksums are taken as bytes land. Where a part lies in two of the client's grants, whose bytes may come by different
  requests, they are taken right after, of what lies in slots that nobody else may write.
- What did not arrive whole is not sealed. Where memory does not become quiet, its slots stay taken until the process
  ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore import native
from kvstore.errors import Rejected
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.leases import Allowance, MovingHost
from kvstore.node.namespaces import NotOpen
from kvstore.wire import convert
from transfer.batch import EXTENTS_MAX, Batch
from transfer.errors import PeerUnreachable, Reason, TransferError, TransferFault

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvstore.node.namespaces import Opened
    from kvstore.node.streams import Prefix
    from kvstore.node.visitors import Visitor
    from kvstore.wire import framed
    from transfer.base import Landed, Region
    from transfer.paths import Connection

__all__ = ["PENDING", "Filling", "Slots"]

log = logging.getLogger(__name__)

PENDING: Final = 2  # of PutOutcome
LAPSED: Final = 5
MARGIN: Final = 0.9  # of the time until slots lapse, that a read may take
_PIECE: Final = 3


class Slots:
    """Reserved slots of one shard, of an owner of their own. `statuses`: one a key, 0 for what was granted."""

    def __init__(self, host: MovingHost, opened: Opened, shard: int, allowance: Allowance) -> None:
        self._host, self._core, self._opened = host, host.bridge.core, opened
        self._shard, self._allowance = shard, allowance
        self.part_bytes = list(opened.shards[shard].part_bytes)
        self.block_bytes = sum(self.part_bytes)
        self._owner = self._core.new_owner()
        self._began = host.clock.now_ns()
        self._taken = 0
        self._lost = False
        self.statuses: NDArray[np.uint8]
        self.granted: NDArray[np.int64]
        self._tickets: NDArray[np.uint64]
        self._offsets: NDArray[np.int64]

    def reserve(self, prefix: Prefix, metas: Sequence[bytes]) -> None:
        """Raises ValueError naming the field, NotOpen, Rejected."""
        convert.check_metas("meta", metas, len(prefix.keys))
        status, self.statuses, tickets, offsets = self._core.reserve(
            MEMORY_TIER,
            self._owner,
            self._opened.handle,
            self._shard,
            prefix.keys,
            prefix.parent,
            list(metas),
            prefix.hint(0),
            True,  # see the rules above
            self._began,
        )
        if status == native.Status.STALE_NAMESPACE:
            raise NotOpen
        if status != native.Status.OK:
            raise Rejected("reserve: the node took none of it", limit="keys_per_call_max")
        self.granted = np.flatnonzero(self.statuses == 0)
        self._tickets = np.ascontiguousarray(tickets[self.granted])
        self._offsets = offsets[self.granted].astype(np.int64)
        wanted = len(self.granted) * self.block_bytes
        self._allowance.take(wanted)
        self._taken = wanted

    @property
    def left_s(self) -> float:
        """Until these slots should be sealed."""
        lapse_s = self._host.limits.reserve_lapse_ms / 1e3
        return max(0.0, lapse_s * MARGIN - (self._host.clock.now_ns() - self._began) / 1e9)

    async def read(
        self, visitor: Visitor, source: framed.Source, part: int | None, deadline_s: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], str]:
        """One part of every granted block, or (None) all parts. pieces: of all keys for whole blocks, of the granted
        ones for a part. Which blocks arrived, their checksums (blocks, parts), and why others did not. Raises
        ValueError naming the field.
        """
        parts = self.part_bytes if part is None else [self.part_bytes[part]]
        before = 0 if part is None else sum(self.part_bytes[:part])
        pieces = self._pieces(source, len(self.statuses) if part is None else len(self.granted), sum(parts))
        if part is None:
            pieces = pieces[self.granted]
        none = np.zeros(len(self.granted), np.bool_), np.zeros((len(self.granted), len(parts)), np.uint64)
        apart = _apart(pieces, parts)
        carrier, region = self._host.region("source.carrier", source.carrier)
        deadline_s = min(deadline_s, self.left_s)
        until = asyncio.get_running_loop().time() + deadline_s
        try:
            way = await visitor.way(carrier, source.incarnation, deadline_s)
            landed = await self._landed(
                way,
                region,
                list(source.descriptors),
                pieces,
                before,
                None if apart else parts * len(self.granted),
                until,
            )
        except TransferError as error:
            self._lost |= error.poisoned
            if error.poisoned or not (apart or len(error.checksums)):
                return *none, str(error)
            arrived = np.asarray(error.arrived.reshape(len(self.granted), -1).all(axis=1), dtype=np.bool_)
            sums, failure = error.checksums, str(error)
        except TransferFault as error:
            return *none, str(error)
        except asyncio.CancelledError as error:
            self._lost |= isinstance(error.__cause__, TransferError) and error.__cause__.poisoned
            raise
        else:
            arrived, sums, failure = ~none[0], landed.checksums, ""
        if apart:
            sums = await asyncio.to_thread(self._checksums, region.memory, arrived, parts, before)
        return arrived, sums.reshape(len(self.granted), -1), failure

    async def read_from(
        self, way: Connection, descriptor: bytes, starts: NDArray[np.int64], deadline_s: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.uint64], str, bool]:
        """As read, of whole blocks that lie in one piece each in another node's memory, and whether nothing comes by
        this way any more. starts: of the granted.
        """
        blocks, parts = len(self.granted), self.part_bytes
        pieces = np.stack((np.zeros(blocks, np.int64), starts, np.full(blocks, self.block_bytes)), axis=1)[:, None]
        none = np.zeros(blocks, np.bool_), np.zeros((blocks, len(parts)), np.uint64)
        _, region = self._host.region("carrier", int(way.chosen.path.carrier))
        until = asyncio.get_running_loop().time() + min(deadline_s, self.left_s)
        try:
            landed = await self._landed(way, region, [descriptor], pieces, 0, parts * blocks, until)
        except TransferError as error:
            self._lost |= error.poisoned
            gone = any(failure.reason is Reason.PEER_GONE for failure in error.failures)
            if error.poisoned or not len(error.checksums):
                return *none, str(error), gone
            arrived = np.asarray(error.arrived.reshape(blocks, -1).all(axis=1), dtype=np.bool_)
            return arrived, error.checksums.reshape(blocks, -1), str(error), gone
        except TransferFault as error:
            return *none, str(error), isinstance(error, PeerUnreachable)
        except asyncio.CancelledError as error:
            self._lost |= isinstance(error.__cause__, TransferError) and error.__cause__.poisoned
            raise
        return ~none[0], landed.checksums.reshape(blocks, -1), "", False

    async def _landed(
        self,
        way: Connection,
        region: Region,
        descriptors: list[bytes],
        pieces: NDArray[np.int64],
        before: int,
        parts: list[int] | None,
        until: float,
    ) -> Landed:
        """Raises TransferFault. until: of the loop's time."""
        loop = asyncio.get_running_loop()
        shown = await way.present(descriptors, deadline_s=max(0.001, until - loop.time()), fresh=True)
        batch = self._batch(pieces, np.array([one.handle for one in shown], np.int64), region.id, before)
        return await way.read(batch, deadline_s=max(0.0, until - loop.time()), parts=parts)

    def _checksums(
        self, memory: NDArray[np.uint8], arrived: NDArray[np.bool_], parts: Sequence[int], before: int
    ) -> NDArray[np.uint64]:
        """(blocks, parts), as they lie in the slots; 0 of what did not arrive."""
        sums = np.zeros((len(arrived), len(parts)), np.uint64)
        for block in np.flatnonzero(arrived).tolist():
            start = int(self._offsets[block]) + before
            sums[block] = native.part_checksums(memory[start : start + sum(parts)], parts)
        return sums

    def _pieces(self, source: framed.Source, blocks: int, length: int) -> NDArray[np.int64]:
        """(blocks, k, 3), checked as far as can be without the grants."""
        row = 8 * _PIECE
        if not blocks or len(source.pieces) % (row * blocks) or not source.pieces:
            raise ValueError(f"source.pieces: {len(source.pieces)} bytes, must be {row} for each of k pieces a block")
        if len(source.pieces) // row > EXTENTS_MAX:
            raise ValueError(f"source.pieces: {len(source.pieces) // row} of them, at most {EXTENTS_MAX} a call")
        pieces = np.frombuffer(source.pieces, dtype="<i8").astype(np.int64).reshape(blocks, -1, _PIECE)
        which, lengths = pieces[:, :, 0], pieces[:, :, 2]
        if which.min() < 0 or which.max() >= len(source.descriptors):
            raise ValueError(f"source.pieces: name descriptors beyond the {len(source.descriptors)} given")
        if pieces.min() < 0 or lengths.min() < 1 or lengths.max() > length or (lengths.sum(axis=1) != length).any():
            raise ValueError(f"source.pieces: the lengths of a block must be positive and add up to {length}")
        return pieces

    def _batch(self, pieces: NDArray[np.int64], handles: NDArray[np.int64], region: int, before: int) -> Batch:
        lengths = pieces[:, :, 2]
        table = np.empty((*lengths.shape, 5), dtype=np.int64)
        table[:, :, 0] = region
        table[:, :, 1] = self._offsets[:, None] + before + np.cumsum(lengths, axis=1) - lengths
        table[:, :, 2] = handles[pieces[:, :, 0]]
        table[:, :, 3] = pieces[:, :, 1]
        table[:, :, 4] = lengths
        return Batch(table.reshape(-1, 5))

    def publish(self, part: int, sums: NDArray[np.uint64]) -> None:
        for ticket, checksum in zip(self._tickets.tolist(), sums.tolist(), strict=True):
            self._core.publish_part(self._owner, ticket, part, checksum)

    def seal(
        self,
        arrived: NDArray[np.bool_],
        sums: NDArray[np.uint64],
        path: native.MovePath = native.MovePath.PUT_TRANSFERRED,
    ) -> NDArray[np.uint8]:
        """sums: (blocks, parts not published yet). An outcome a granted block: 0 sealed."""
        outcomes = np.full(len(self.granted), LAPSED, np.uint8)
        if arrived.any():
            now = self._host.clock.now_ns()
            tickets = np.ascontiguousarray(self._tickets[arrived])
            told = self._core.seal(
                MEMORY_TIER,
                self._owner,
                tickets,
                np.ascontiguousarray(sums[arrived]).reshape(-1),
                now,
                path=path,
                elapsed_ns=now - self._began,
            )
            outcomes[arrived] = np.where(told == 0, 0, LAPSED)
        return outcomes

    def close(self) -> None:
        """Gives back what was not sealed, unless something may still write there: that counts as being put for good."""
        if self._lost:
            log.error("slots of a put are kept: a transfer into them did not become quiet")
            return
        self._allowance.give(self._taken)
        self._taken = 0
        self._core.owner_gone(self._owner)


def _apart(pieces: NDArray[np.int64], parts: Sequence[int]) -> bool:
    """Whether a part lies in two of the source's grants. pieces: (blocks, k, 3), each block's as long as the parts."""
    ends = np.cumsum(pieces[:, :, 2], axis=1)[:, :-1]
    changes = pieces[:, 1:, 0] != pieces[:, :-1, 0]
    return bool((changes & ~np.isin(ends, np.cumsum(parts))).any())


@dataclass(slots=True)
class Filling:
    """A reservation that is filled part by part. `busy`: one thing at a time."""

    slots: Slots
    lapse: asyncio.TimerHandle
    published: int = 0
    sums: dict[int, NDArray[np.uint64]] = field(default_factory=dict)
    busy: asyncio.Lock = field(default_factory=asyncio.Lock)
    closed: bool = False
