"""What endpoints share whose batches native threads move: grants that were shown, batches in motion, an end.

A transport adds how a grant is shown to its peer (`_show`), how a job is made (`_job`), and what ends with it (`_end`).

Rules
- A handle is a number of its endpoint's, counted up and never used again. One that is not kept any more was shown and
  has ended: it is REVOKED to whoever still asks by it.
- A batch is refused whole before anything moves, or it is planned, entered into its regions, and submitted.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from transfer.base import Presented
from transfer.batch import Batch, Table, dense
from transfer.errors import GrantInvalid, LimitReached, PeerUnreachable, Reason
from transfer.grants import Descriptor, parse_descriptor
from transfer.outcome import Moved, report_of
from transfer.pending import Pending, Report, check_deadline
from transfer.plan import Plan, plan
from transfer.refusals import Reasons, refusals
from transfer.regions import Region

__all__ = ["PRESENTED_MAX", "AnotherPeer", "Host", "Motion", "MovingEndpoint", "Shown", "Work", "turns"]

PRESENTED_MAX = 65_536
_AGAIN_S = 0.05
_AGAIN_S_MAX = 5.0
J = TypeVar("J", bound=Moved)
J_contra = TypeVar("J_contra", bound=Moved, contravariant=True)


class AnotherPeer(PeerUnreachable):
    """At the peer's address there is a process that has started since."""


async def turns(limit_s: float) -> AsyncIterator[None]:
    """Moments to try something again, more and more seldom, until the limit is over."""
    loop = asyncio.get_running_loop()
    until, pause = loop.time() + limit_s, _AGAIN_S
    while loop.time() < until:
        await asyncio.sleep(pause)
        pause = min(2 * pause, _AGAIN_S_MAX)
        yield


class Shown(Protocol):
    """A grant as an endpoint keeps it. over: by the loop's clock, when its time is over at the latest."""

    @property
    def presented(self) -> Presented: ...

    @property
    def over(self) -> float: ...


G = TypeVar("G", bound=Shown)


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """A batch under way."""

    pending: Pending
    job: Moved
    plan: Plan
    settled: Callable[[Pending], None]

    def finished(self) -> None:
        """Nothing touches anything of the job any more."""
        self.settled(self.pending)
        self.pending.quiet(report_of(self.job, self.plan))


@dataclass(frozen=True, slots=True)
class Work(Generic[G]):
    """A planned batch whose rows name regions by their index in `regions` and `shown`."""

    writing: bool
    regions: Sequence[Region]
    shown: Sequence[G]
    rows: Table
    plan: Plan

    @property
    def spans(self) -> list[tuple[int, int, bool]]:
        """(address, bytes, writable) of each region."""
        return [(region.address, region.bytes, region.writable) for region in self.regions]


class Host(Protocol[J_contra]):
    """What an endpoint needs of its transport."""

    def number(self) -> int:
        """One that this transport has not given before."""
        ...

    def find_region(self, region_id: int) -> Region | None: ...

    def submit(self, token: int, motion: Motion, job: J_contra, peer: int) -> None:
        """Has the job moved; its motion's `finished` follows. Raises LimitReached(transfers_max)."""
        ...

    def stop(self, token: int, reason: Reason) -> None: ...


class MovingEndpoint(ABC, Generic[J, G]):
    """See transfer.base.Endpoint. `peer`: its number in the engine. rails: what a batch is dealt out over."""

    def __init__(
        self,
        host: Host[J],
        incarnation: bytes,
        *,
        slice_bytes: int,
        quiesce_max_s: float,
        rails: Sequence[int] = (1,),
    ) -> None:
        self._mover = host
        self.peer = host.number()
        self.incarnation = incarnation
        self._slice_bytes, self._rails, self._quiesce_max_s = slice_bytes, tuple(rails), quiesce_max_s
        self._shown: dict[int, G] = {}
        self._handles: dict[bytes, int] = {}  # by descriptor
        self._next_handle = 1
        self._moving: dict[Pending, None] = {}
        self._idle = asyncio.Event()
        self._closing = False
        self._reachable = True  # False: what begins fails with PEER_GONE

    # -- what a transport adds

    @abstractmethod
    async def _show(self, asked: Mapping[bytes, Descriptor], deadline_s: float, fresh: bool) -> None:
        """Shows the descriptors to the peer and keeps (`_keep`) what came of them. Raises as `present` does."""

    @abstractmethod
    def _job(self, token: int, work: Work[G]) -> J: ...

    @abstractmethod
    async def _end(self) -> None:
        """Everything of this endpoint is quiet, or given up: it is over."""

    # -- grants

    async def present(
        self, descriptors: Sequence[bytes], *, deadline_s: float, fresh: bool = False
    ) -> Sequence[Presented]:
        check_deadline(deadline_s)
        asked = [bytes(descriptor) for descriptor in descriptors]
        unknown = {one: parse_descriptor(one) for one in asked if one not in self._handles}
        if any(said.incarnation != self.incarnation for said in unknown.values()):
            raise GrantInvalid("grant: of another peer, or of an earlier life of this one")
        self._make_room(len(unknown))
        if unknown:
            await self._show(unknown, deadline_s, fresh)
        return [self._live(one) for one in asked]

    def _make_room(self, more: int) -> None:
        """Drops grants whose time is over, once there are many. Raises LimitReached where that does not help."""
        if len(self._shown) + more > PRESENTED_MAX:
            now = asyncio.get_running_loop().time()
            self._shown = {handle: shown for handle, shown in self._shown.items() if now < shown.over}
            self._handles = {kept: handle for kept, handle in self._handles.items() if handle in self._shown}
        if len(self._shown) + more > PRESENTED_MAX:
            raise LimitReached(f"{PRESENTED_MAX} grants are presented on one connection", limit="presented_max")

    def _presented(self, said: Descriptor) -> tuple[Presented, float]:
        """Under a handle that is new, and when its time is over at the latest."""
        presented = Presented(self._next_handle, said.rights, said.ranges, said.region_bytes)
        self._next_handle += 1
        return presented, asyncio.get_running_loop().time() + said.lifetime_ms / 1000

    def _keep(self, descriptor: bytes, shown: G) -> None:
        self._shown[shown.presented.handle] = shown
        self._handles[descriptor] = shown.presented.handle

    def _live(self, descriptor: bytes) -> Presented:
        shown = self._shown.get(self._handles.get(descriptor, 0))
        if shown is None:
            raise GrantInvalid("grant: it has ended meanwhile")
        return shown.presented

    # -- bytes

    def read(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Pending:
        return self._begin(batch, False, deadline_s, parts)

    def write(self, batch: Batch, *, deadline_s: float) -> Pending:
        return self._begin(batch, True, deadline_s, None)

    def _begin(self, batch: Batch, writing: bool, deadline_s: float, parts: Sequence[int] | None) -> Pending:
        regions, refused = self._resolve(batch, writing)
        made = self._plan(batch, parts) if refused is None else None
        token = self._mover.number()
        pending = Pending(
            list(regions.values()),
            len(batch),
            deadline_s=deadline_s,
            quiesce_max_s=self._quiesce_max_s,
            stop_bytes=lambda reason: self._mover.stop(token, reason),
        )
        if made is None:
            pending.quiet(Report(0, refused))
            return pending
        try:
            job = self._job(token, self._work(writing, regions, made))
            self._mover.submit(token, Motion(pending, job, made, self._settled), job, self.peer)
        except BaseException:
            pending.quiet(Report(0, np.zeros(len(batch), dtype=np.uint8)))
            raise
        self._moving[pending] = None
        return pending

    def _plan(self, batch: Batch, parts: Sequence[int] | None) -> Plan:
        return plan(batch, slice_bytes=self._slice_bytes, rails=self._rails, parts=parts)

    def _resolve(self, batch: Batch, writing: bool) -> tuple[dict[int, Region], Reasons | None]:
        """The local regions of a batch, and what is wrong with it at once. Raises ValueError for a local region that
        is not registered, or a handle that was never presented.
        """
        regions: dict[int, Region] = {}
        for region_id in dense(batch.table[:, 0])[0]:
            region = self._mover.find_region(region_id)
            if region is None:
                raise ValueError(f"extents name local region {region_id}, which is not registered")
            regions[region_id] = region
        handles = dense(batch.table[:, 2])[0]
        if handles and not 0 < handles[0] <= handles[-1] < self._next_handle:
            raise ValueError("extents name a remote handle that was never presented here")
        if self._closing or not self._reachable:
            return regions, np.full(len(batch), Reason.PEER_GONE, dtype=np.uint8)
        known = {handle: self._shown.get(handle) for handle in handles}
        shown = {handle: one.presented if one is not None else None for handle, one in known.items()}
        return regions, refusals(batch, regions, shown, writing=writing)

    def _work(self, writing: bool, regions: Mapping[int, Region], made: Plan) -> Work[G]:
        """Of a batch that was not refused."""
        ids, handles = dense(made.batch.table[:, 0])[0], dense(made.batch.table[:, 2])[0]
        rows = made.rows.copy()
        rows[:, 0] = np.searchsorted(ids, rows[:, 0]) if len(ids) > 1 else 0
        rows[:, 2] = np.searchsorted(handles, rows[:, 2]) if len(handles) > 1 else 0
        return Work(writing, [regions[i] for i in ids], [self._shown[handle] for handle in handles], rows, made)

    def _settled(self, pending: Pending) -> None:
        self._moving.pop(pending, None)
        if not self._moving:
            self._idle.set()

    # -- end

    @property
    def closing(self) -> bool:
        """Whether `close` has begun: nothing moves over it any more."""
        return self._closing

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        for pending in list(self._moving):
            pending.cancel()
        while self._moving:
            self._idle.clear()
            try:
                async with asyncio.timeout(self._quiesce_max_s):
                    await self._idle.wait()
            except TimeoutError:
                break  # poisoned, and its owner told
        await self._end()
