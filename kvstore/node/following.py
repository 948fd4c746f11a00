"""Blocks in this node's memory that somebody is publishing, held for one who follows and read by him part by part.

 reservation: part, part, ... seal -> the core wakes the watch -> new blocks held, new parts granted -> answer -> read

Rules
- Granted are parts whose checksums are recorded, and nothing else of their slots: what lay there before is another's.
- A slot that is held here is not reused, whatever becomes of its reservation.
- What was told of as sealed stays so. An end without a seal is told, and nothing after it.
- The next question says that the bytes of the answer before it were read: its grant is taken back then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore import native
from kvstore.errors import Rejected, Unavailable
from kvstore.lifecycle import SlotState
from kvstore.node.bridge import MEMORY_TIER
from kvstore.wire import framed
from transfer.errors import LimitReached, StillTouched

if TYPE_CHECKING:
    from kvstore.node.leases import Allowance, MovingHost
    from kvstore.node.namespaces import Opened
    from kvstore.node.streams import Prefix
    from kvstore.node.watches import Watch
    from transfer.base import Grant, Region
    from transfer.offers import Carrier

__all__ = ["GIVEN_UP", "Following"]

log = logging.getLogger(__name__)

GIVEN_UP: Final = "whoever published it gave it up"
CLEARED: Final = "the namespace was cleared"


@dataclass(frozen=True, slots=True)
class _News:
    """Of each block held: how many parts may be read. sums: of those that are new. sealed: leading blocks."""

    ready: list[int]
    sums: list[int]
    sealed: int


@dataclass(slots=True)
class Following:
    """Of one chain, from `begin` to `end`; one question at a time. owner: whose the holds are, in the core."""

    host: MovingHost
    owner: int
    allowance: Allowance
    opened: Opened
    shard: int
    prefix: Prefix
    regions: Mapping[Carrier, Region]
    watch: Watch
    why: str = ""  # nothing more will come
    sealed: int = 0
    _offsets: list[int] = field(default_factory=list)
    _tickets: list[int] = field(default_factory=list)
    _tiers: bytes = b""
    _ready: list[int] = field(default_factory=list)
    _told: int = 0  # blocks
    _holds: list[int] = field(default_factory=list)
    _taken: int = 0
    _grants: dict[Carrier, Grant] = field(default_factory=dict)

    @staticmethod
    def begin(
        host: MovingHost,
        owner: int,
        allowance: Allowance,
        opened: Opened,
        shard: int,
        prefix: Prefix,
        carriers: Sequence[int],
    ) -> Following:
        """Raises ValueError naming the field, Rejected."""
        regions = {carrier: region for carrier, region in host.regions.items() if int(carrier) in carriers}
        if not regions:
            raise ValueError(f"carriers: {list(carriers)}, by which this node moves no blocks")
        watch = host.bridge.watches.begin(opened.handle, shard, prefix.keys)
        return Following(host, owner, allowance, opened, shard, prefix, regions, watch)

    @property
    def part_bytes(self) -> Sequence[int]:
        return self.opened.shards[self.shard].part_bytes

    async def ask(self, wait_s: float) -> framed.FollowResponse:
        """What is new, after at most so long. Raises Rejected, Unavailable."""
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        try:
            await self._take_back()
        except StillTouched as error:
            raise Unavailable(str(error)) from error
        while True:
            self.watch.look()
            await self._extend(max(0.0, until - loop.time()))
            news, left_s = self._look(), until - loop.time()
            if news is not None or self.why or self.sealed == len(self.prefix.keys) or left_s <= 0:
                return await self._answer(news)
            await self.watch.wait(left_s)

    async def _extend(self, wait_s: float) -> None:
        """Holds what has come behind the blocks that are held."""
        block_bytes, limits = sum(self.part_bytes), self.host.limits
        at = len(self._offsets)
        rest = self.prefix.keys[at:]
        room = self.allowance.left // block_bytes
        if self.why or not len(rest):
            return
        if not room:
            if not at:
                self.allowance.take(block_bytes)  # which says why not
            return
        run = await self.host.bridge.fetch(
            self.owner,
            self.opened.handle,
            self.shard,
            rest[:room],
            kind=native.HoldKind.VIEW,
            hint=self.prefix.hint(at),
            wait_s=min(wait_s, limits.hold_wait_ms_max / 1e3),
            lease_s=limits.lease_ms_max / 1e3,
            following=True,
        )
        if run.status == native.Status.STALE_NAMESPACE:
            self.why = CLEARED
            return
        if run.status != native.Status.OK:
            raise Rejected(f"{run.field}: the limit is {run.limit}", limit=run.field)
        if not run.hold:
            return
        blocks = len(run.offsets)
        if blocks * block_bytes > self.allowance.left:  # others took it meanwhile
            self.host.bridge.core.release(MEMORY_TIER, self.owner, run.hold)
            return
        self.allowance.take(blocks * block_bytes)
        self._taken += blocks * block_bytes
        self._holds.append(run.hold)
        self._offsets += run.offsets.tolist()
        self._tickets += run.tickets.tolist()
        self._tiers += run.tiers[:blocks]
        self._ready += [0] * blocks

    def _look(self) -> _News | None:
        """What the table says of the blocks that are held; None: nothing new. An end without a seal is kept."""
        rows = self.host.bridge.core.info(MEMORY_TIER, np.array(self._tickets, np.uint64))
        assert len(rows.tickets) == len(self._tickets), "what is held stays what it is"
        ready, sums, sealed, leading, first = self._ready.copy(), list[int](), self.sealed, True, 0
        checksums = rows.checksums.tolist()
        for i, (state, count) in enumerate(zip(rows.states.tolist(), rows.checksum_counts.tolist(), strict=True)):
            mine = checksums[first : first + count]
            first += count
            if i < self.sealed:
                continue
            if state in {SlotState.RESERVED, SlotState.SEALED}:
                sums += mine[ready[i] :]
                ready[i] = count
            else:  # retired: it was given up, or it is nobody's word any more
                self.why = self.why or GIVEN_UP
            leading = leading and state == SlotState.SEALED
            sealed += int(leading)
        if self.watch.abandoned and sealed < len(self.prefix.keys):
            self.why = self.why or GIVEN_UP
        return _News(ready, sums, sealed) if sums or sealed > self.sealed else None

    async def _answer(self, news: _News | None) -> framed.FollowResponse:
        answer = framed.FollowResponse(
            lease_ms=self.host.limits.lease_ms_max, abandoned=bool(self.why), why=self.why, sealed=self.sealed
        )
        if news is None:
            answer.ready.extend(self._ready[: self._told])
            return answer
        if news.sums:
            answer.section.CopyFrom(await self._granted(news.ready))
        answer.offsets.extend(self._offsets[self._told :])
        answer.tickets.extend(self._tickets[self._told :])
        answer.tiers = self._tiers[self._told :]
        answer.ready.extend(news.ready)
        answer.checksums = np.array(news.sums, "<u8").tobytes()
        self._ready, self.sealed, self._told = news.ready, news.sealed, len(self._offsets)
        answer.sealed = self.sealed
        return answer

    async def _granted(self, ready: list[int]) -> framed.LeaseSection:
        """Of parts that are new. Raises Rejected, Unavailable."""
        starts = [0, *accumulate(self.part_bytes)]
        ranges = [
            (offset + starts[old], starts[new] - starts[old])
            for offset, old, new in zip(self._offsets, self._ready, ready, strict=True)
            if new > old
        ]
        lease_s = self.host.limits.lease_ms_max / 1e3
        try:
            for carrier, region in self.regions.items():
                transport = self.host.transfers.transport(carrier)
                self._grants[carrier] = await transport.grant(region, ranges, lifetime_s=lease_s)
        except LimitReached as error:
            raise Rejected(str(error), limit=error.limit) from error
        except ValueError as error:  # its region is not open any more: the node stops, or it is poisoned
            raise Unavailable(str(error)) from error
        return framed.LeaseSection(
            blocks=len(ranges),
            incarnation=self.host.bridge.core.incarnation,
            offer=self.host.transfers.connector.offer.encode(),
            grants=[
                framed.LeaseGrant(carrier=int(carrier), descriptor=grant.descriptor)
                for carrier, grant in self._grants.items()
            ],
        )

    async def _take_back(self) -> None:
        """Raises StillTouched."""
        while self._grants:
            carrier, grant = next(iter(self._grants.items()))
            await self.host.transfers.transport(carrier).revoke([grant])
            del self._grants[carrier]

    async def end(self, request: framed.ReleaseRequest) -> bool:
        """Whether all was let go: what somebody still touches stays held until the process ends."""
        self.host.bridge.watches.end(self.watch)
        core = self.host.bridge.core
        for ticket in set(request.corrupt) & set(self._tickets):
            core.report_corrupt(self.owner, ticket)
        for read in request.reads:
            for carrier in self.regions:
                if int(carrier) == read.carrier and read.bytes:
                    self.host.transfers.served(carrier, min(read.bytes, self._taken))
        try:
            await self._take_back()
        except StillTouched as error:
            log.error("%d followed blocks are kept: %s", len(self._offsets), error)
            return False
        for hold in self._holds:
            core.release(MEMORY_TIER, self.owner, hold)
        self._holds.clear()
        self.allowance.give(self._taken)
        self._taken = 0
        return True
