"""What a connection that maps no segment holds of this node's memory, to be read by transfers: leases.

Rules
- A lease is a hold without an end of its own and a grant of exactly its blocks; one that is only a hold has no grant.
  It ends once: first the grant, then, when no peer touches the bytes any more, the hold. So a slot that has another
  block now is never read by an old lease.
- Where a grant does not become quiet, its blocks stay held until the process ends, and the log says so.
- The bytes of a lease count as leased until its hold goes: who releases what he still reads leases no more for that. A
  lease for which others, that are ending, leave too little room waits for them first.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from kvstore import native
from kvstore.errors import Rejected, Unavailable
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.crowding import names_of
from kvstore.node.namespaces import NotOpen
from kvstore.node.streams import Prefix
from kvstore.wire import framed
from transfer.errors import LimitReached, StillTouched
from transfer.offers import Carrier

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from kvstore.clock import Clock
    from kvstore.config import LimitsConfig
    from kvstore.node.bridge import CoreBridge
    from kvstore.node.crowding import Crowd, Name
    from kvstore.node.namespaces import Opened
    from kvstore.transfers import Transfers
    from transfer.base import Grant, Region

__all__ = ["Allowance", "Leases", "MovingHost"]

log = logging.getLogger(__name__)

METAS_ANSWER_BYTES: Final = 4 << 20  # of metas and checksums in one answer, which is half a frame
_Id = bytes  # of a node, where a field has the name of the type


@dataclass(frozen=True, slots=True)
class MovingHost:
    """What moving blocks needs of its node. regions: the payload segment, as each transport has it registered."""

    bridge: CoreBridge
    clock: Clock
    limits: LimitsConfig
    transfers: Transfers
    regions: Mapping[Carrier, Region]

    def region(self, field_: str, carrier: int) -> tuple[Carrier, Region]:
        """Raises ValueError naming the field for a carrier by which no blocks move here."""
        for known, region in self.regions.items():
            if known == carrier:
                return known, region
        raise ValueError(f"{field_}: {carrier}, by which this node moves no blocks")


@dataclass(slots=True)
class Allowance:
    """Of one connection: bytes that it may have leased or be putting at one time."""

    most: int
    taken: int = 0

    @property
    def left(self) -> int:
        return max(0, self.most - self.taken)

    def take(self, wanted: int) -> None:
        if wanted > self.left:
            raise Rejected(
                f"moving_bytes_max: {self.taken} of {self.most} bytes are under way on this connection",
                limit="moving_bytes_max",
            )
        self.taken += wanted

    def give(self, back: int) -> None:
        self.taken -= back


@dataclass(frozen=True, slots=True)
class _Lease:
    hold: int
    grants: Mapping[Carrier, Grant]  # the same bytes by several carriers; none: only a hold
    bytes: int
    tickets: frozenset[int]
    lapse: asyncio.TimerHandle
    crowd: Sequence[Name] = ()  # counted as readers of these
    node: _Id = b""  # which reads them


@dataclass(slots=True)
class Leases:
    """Of one connection, from its first lease to `close`. `owner`: whose the holds are, in the core."""

    host: MovingHost
    owner: int
    allowance: Allowance
    crowd: Crowd
    _leases: dict[int, _Lease] = field(default_factory=dict)
    _leasing: dict[int, asyncio.Task[object]] = field(default_factory=dict)
    _ending: set[asyncio.Task[None]] = field(default_factory=set)
    _kept: int = 0  # leases whose grant did not become quiet

    async def lease(
        self, opened: Opened, prefix: Prefix, request: framed.LeaseRequest, node: bytes = b""
    ) -> framed.LeaseResponse:
        """Of a shard that the namespace has. node: another one, for its client: busy where the first block has too many
        such readers. Raises ValueError naming the field, NotOpen, Rejected, Unavailable.
        """
        number, task = request.lease, asyncio.current_task()
        assert task is not None
        if number in self._leasing or number in self._leases:
            raise ValueError(f"lease: {number} is the number of another one")
        self._leasing[number] = task
        try:
            if request.hold_only:
                return await self._held(opened, prefix, request)
            if not node:
                return await self._leased(opened, prefix, request)
            return await self._crowded(opened, prefix, request, node)
        finally:
            del self._leasing[number]

    async def _crowded(
        self, opened: Opened, prefix: Prefix, request: framed.LeaseRequest, node: bytes
    ) -> framed.LeaseResponse:
        names = self.crowd.enter(names_of(opened.handle, request.shard, prefix.keys))
        if not names:
            return framed.LeaseResponse(busy=True)
        blocks = 0
        try:
            run = Prefix(prefix.keys[: len(names)], prefix.parent, prefix.hint)
            answer = await self._leased(opened, run, request)
            lease = self._leases.get(request.lease)
            if lease is not None:
                blocks = len(answer.offsets)
                self._leases[request.lease] = replace(lease, crowd=names[:blocks], node=node)
            answer.window_full |= blocks == len(names) < len(prefix.keys)
            return answer
        finally:
            self.crowd.leave(names[blocks:])

    async def _held(self, opened: Opened, prefix: Prefix, request: framed.LeaseRequest) -> framed.LeaseResponse:
        """What will be got by other leases, whose bytes it takes nothing of; its own are bounded by the core."""
        limits = self.host.limits
        wait_s = min(request.wait_ms, limits.hold_wait_ms_max) / 1e3
        run = await self._run(opened, prefix, request, prefix.keys, wait_s, held_open=True)
        blocks = len(run.offsets)
        if blocks == 0:
            self._release(run.hold)
            return framed.LeaseResponse()
        lapse = asyncio.get_running_loop().call_later(limits.lease_ms_max / 1e3, self._end, request.lease)
        self._leases[request.lease] = _Lease(run.hold, {}, 0, frozenset(), lapse)
        return framed.LeaseResponse(lease_ms=limits.lease_ms_max, tiers=run.tiers[:blocks], window_full=run.window_full)

    async def _run(
        self,
        opened: Opened,
        prefix: Prefix,
        request: framed.LeaseRequest,
        keys: NDArray[np.uint8],
        wait_s: float,
        *,
        held_open: bool,
    ) -> native.FetchDone:
        """Held without an end of its own. Raises NotOpen, Rejected."""
        run = await self.host.bridge.fetch(
            self.owner,
            opened.handle,
            request.shard,
            keys,
            kind=native.HoldKind.VIEW,
            hint=prefix.hint(0),
            wait_s=wait_s,
            lease_s=self.host.limits.lease_ms_max / 1e3,
            held_open=held_open,
        )
        if run.status == native.Status.STALE_NAMESPACE:
            raise NotOpen
        if run.status != native.Status.OK:
            raise Rejected(f"{run.field}: the limit is {run.limit}", limit=run.field)
        return run

    async def _leased(self, opened: Opened, prefix: Prefix, request: framed.LeaseRequest) -> framed.LeaseResponse:
        regions = self._asked_regions(request)
        parts = opened.shards[request.shard].part_bytes
        block_bytes, limits = sum(parts), self.host.limits
        wait_s = min(request.wait_ms, limits.hold_wait_ms_max) / 1e3
        if self._ending and self.allowance.left < len(prefix.keys) * block_bytes:
            began = asyncio.get_running_loop().time()
            await asyncio.wait(tuple(self._ending), timeout=wait_s)
            wait_s = max(0.0, wait_s - (asyncio.get_running_loop().time() - began))
        room = self.allowance.left // block_bytes
        if room == 0:
            self.allowance.take(block_bytes)
        if request.metas:
            room = min(room, METAS_ANSWER_BYTES // (native.META_BYTES_MAX + 8 * len(parts)))
        lease_s = limits.lease_ms_max / 1e3
        run = await self._run(opened, prefix, request, prefix.keys[:room], wait_s, held_open=False)
        blocks = len(run.offsets)
        if blocks == 0:
            self._release(run.hold)
            return framed.LeaseResponse()
        try:
            grants = await self._granted(regions, run.offsets.tolist(), block_bytes, lease_s)
        except BaseException:
            self._release(run.hold)
            raise
        lapse = asyncio.get_running_loop().call_later(lease_s, self._end, request.lease)
        tickets = run.tickets.tolist()
        self._leases[request.lease] = _Lease(run.hold, grants, blocks * block_bytes, frozenset(tickets), lapse)
        section = self._section(blocks, grants) if request.carriers else None
        return framed.LeaseResponse(
            lease_ms=limits.lease_ms_max,
            descriptor=b"" if section is not None else next(iter(grants.values())).descriptor,
            sections=[section] if section is not None else [],
            offsets=run.offsets.tolist(),
            tiers=run.tiers[:blocks],
            checksums=run.checksums[: blocks * len(parts)].astype("<u8").tobytes(),
            tickets=tickets,
            metas=self.host.bridge.core.info(MEMORY_TIER, run.tickets).metas if request.metas else [],
            window_full=run.window_full or blocks == room < len(prefix.keys),
        )

    def _asked_regions(self, request: framed.LeaseRequest) -> dict[Carrier, Region]:
        """Raises ValueError naming the field where no blocks move here by what is asked for."""
        if not request.carriers:
            return dict([self.host.region("carrier", request.carrier)])
        asked = {carrier: region for carrier, region in self.host.regions.items() if int(carrier) in request.carriers}
        if not asked:
            raise ValueError(f"carriers: {list(request.carriers)}, by which this node moves no blocks")
        return asked

    def _section(self, blocks: int, grants: Mapping[Carrier, Grant]) -> framed.LeaseSection:
        """For who does not know this node yet: all that it takes to read."""
        return framed.LeaseSection(
            blocks=blocks,
            incarnation=self.host.bridge.core.incarnation,
            offer=self.host.transfers.connector.offer.encode(),
            grants=[
                framed.LeaseGrant(carrier=int(carrier), descriptor=grant.descriptor)
                for carrier, grant in grants.items()
            ],
        )

    async def _granted(
        self, regions: Mapping[Carrier, Region], offsets: list[int], block_bytes: int, lease_s: float
    ) -> dict[Carrier, Grant]:
        """Takes their bytes of what the connection may have out; a lease that comes to nothing takes none."""
        wanted, ranges = len(offsets) * block_bytes, [(offset, block_bytes) for offset in offsets]
        self.allowance.take(wanted)
        grants: dict[Carrier, Grant] = {}
        try:
            for carrier, region in regions.items():
                transport = self.host.transfers.transport(carrier)
                grants[carrier] = await transport.grant(region, ranges, lifetime_s=lease_s)
            return grants
        except BaseException as error:
            for carrier, grant in grants.items():
                await self.host.transfers.transport(carrier).revoke([grant])  # nobody was told of it
            self.allowance.give(wanted)
            if isinstance(error, LimitReached):
                raise Rejected(str(error), limit=error.limit) from error
            if isinstance(error, ValueError):  # its region is not open any more: the node stops, or it is poisoned
                raise Unavailable(str(error)) from error
            raise

    def release(self, request: framed.ReleaseRequest) -> None:
        """Unknown leases have ended already; one that is not answered yet is given up."""
        leasing = self._leasing.get(request.lease)
        if leasing is not None:
            leasing.cancel()
        lease = self._leases.get(request.lease)
        if lease is None:
            return
        if request.kept and not request.corrupt:
            self.crowd.copied(lease.crowd, lease.node)
        for ticket in request.corrupt:
            if ticket in lease.tickets:
                self.host.bridge.core.report_corrupt(self.owner, ticket)
        for carrier in lease.grants:
            by = next((read.bytes for read in request.reads if read.carrier == int(carrier)), 0)
            read_bytes = request.bytes if len(lease.grants) == 1 and not request.reads else by
            if read_bytes:
                self.host.transfers.served(carrier, min(read_bytes, lease.bytes))
        self._end(request.lease)

    def _end(self, number: int) -> None:
        lease = self._leases.pop(number, None)
        if lease is None:
            return
        lease.lapse.cancel()
        self.crowd.leave(lease.crowd)
        task = asyncio.get_running_loop().create_task(self._ended(lease))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _ended(self, lease: _Lease) -> None:
        try:
            for carrier, grant in lease.grants.items():
                await self.host.transfers.transport(carrier).revoke([grant])
        except StillTouched as error:
            log.error("a lease of %d bytes is kept: %s", lease.bytes, error)
            self._kept += 1
            return
        self._release(lease.hold)
        self.allowance.give(lease.bytes)

    def _release(self, hold: int) -> None:
        if hold:
            self.host.bridge.core.release(MEMORY_TIER, self.owner, hold)

    async def close(self) -> bool:
        """Ends all. Whether everything was let go, now and before."""
        for number in list(self._leases):
            self._end(number)
        await asyncio.gather(*self._ending)
        return not self._kept
