"""One peer over TCP: its lanes, the grants shown to it, the batches in motion.

Rules
- A batch's slices are dealt out over the lanes; what a lost lane had not finished goes to another. When the last one is
  gone, what is out fails with PEER_GONE.
- A lost lane is tried again, more and more seldom, for `reconnect_s`. A peer that has started anew is another peer:
  its incarnation differs, and this endpoint stays without lanes.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from transfer.base import Landed, Presented
from transfer.batch import Batch, dense
from transfer.errors import GrantInvalid, LimitReached, PeerUnreachable, Reason, TransferError
from transfer.grants import parse_descriptor
from transfer.native import TcpJob
from transfer.outcome import report_of
from transfer.pending import Inline, Pending, Report, answer, check_deadline
from transfer.plan import Plan, plan
from transfer.refusals import Reasons, refusals
from transfer.regions import Region
from transfer.tcp.motion import Access, Motion, Shown, access_of

if TYPE_CHECKING:
    from transfer.tcp.transport import TcpTransport

__all__ = ["AnotherPeer", "TcpEndpoint"]

PRESENTED_MAX = 65_536
_AGAIN_S = 0.05
_AGAIN_S_MAX = 5.0


class AnotherPeer(PeerUnreachable):
    """At the peer's address there is a process that has started since."""


class TcpEndpoint:
    """See transfer.base.Endpoint; made by TcpTransport.connect, or by its `back`. `incarnation`: of the peer's
    transport, once a lane is open.
    """

    def __init__(self, host: TcpTransport, at: tuple[str, int] | None, incarnation: bytes = b"") -> None:
        """at: where lanes are opened; None: the peer opens them."""
        self._host = host
        self._at = at
        self.peer = host.number()
        self.incarnation = incarnation
        self._lanes: dict[int, None] = {}  # open ones, by connection
        self._repairing: asyncio.Task[None] | None = None
        self._shown: dict[int, Shown] = {}
        self._handles: dict[bytes, int] = {}
        self._next_handle = 1
        self._moving: dict[Pending, None] = {}
        self._idle = asyncio.Event()
        self._closing = False

    # -- lanes

    async def open(self) -> None:
        """Opens all lanes. Raises OSError, PeerUnreachable."""
        assert self._at is not None
        first, self.incarnation = await self._host.open_lane(self, *self._at, b"")
        self._lanes[first] = None
        more = [self._one_more() for _ in range(self._host.config.lanes - 1)]
        for told in await asyncio.gather(*more, return_exceptions=True):
            if isinstance(told, BaseException):
                raise told

    async def _one_more(self) -> None:
        assert self._at is not None
        connection, _ = await self._host.open_lane(self, *self._at, self.incarnation)
        self._lanes[connection] = None

    def lane_came(self, connection: int) -> None:
        self._lanes[connection] = None

    @property
    def lanes(self) -> int:
        """Those that are open."""
        return len(self._lanes)

    def lane_lost(self, connection: int) -> None:
        if connection not in self._lanes:
            return  # whoever opens it is told
        del self._lanes[connection]
        if self._at is not None and not self._closing and (self._repairing is None or self._repairing.done()):
            self._repairing = asyncio.get_running_loop().create_task(self._repair())

    async def _repair(self) -> None:
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + self._host.config.reconnect_s, _AGAIN_S
        while self.lanes < self._host.config.lanes and loop.time() < until:
            await asyncio.sleep(pause)
            pause = min(2 * pause, _AGAIN_S_MAX)
            try:
                async with asyncio.timeout(self._host.config.greeting_s):
                    await self._one_more()
            except AnotherPeer:
                return
            except (OSError, TimeoutError, PeerUnreachable):
                continue
            else:
                until, pause = loop.time() + self._host.config.reconnect_s, _AGAIN_S

    # -- grants

    async def present(self, descriptors: Sequence[bytes], *, deadline_s: float) -> Sequence[Presented]:
        check_deadline(deadline_s)
        asked = [bytes(descriptor) for descriptor in descriptors]
        parsed = {one: parse_descriptor(one) for one in asked if one not in self._handles}
        if any(said.incarnation != self.incarnation for said in parsed.values()):
            raise GrantInvalid("grant: of another peer, or of an earlier life of this one")
        self._make_room(len(parsed))
        if len(self._shown) + len(parsed) > PRESENTED_MAX:
            raise LimitReached(f"{PRESENTED_MAX} grants are presented on one connection", limit="presented_max")
        accesses = {one: access_of(said, one) for one, said in parsed.items()}
        states = await self._probe(list(accesses.values()), deadline_s)
        for (one, access), state in zip(accesses.items(), states, strict=True):
            if state in (Reason.PEER_GONE, Reason.LATE):
                gone = "the connection has ended" if state == Reason.PEER_GONE else "the peer did not answer in time"
                raise PeerUnreachable(gone)
            if state != Reason.LANDED:
                raise GrantInvalid(f"grant: {Reason(state).name.lower()}, or never one of this peer's")
            said = parsed[one]
            presented = Presented(self._next_handle, said.rights, said.ranges, said.region_bytes)
            self._next_handle += 1
            over = asyncio.get_running_loop().time() + said.lifetime_ms / 1000
            self._shown[presented.handle] = Shown(presented, access, over)
            self._handles[one] = presented.handle
        return [self._shown[self._handles[one]].presented for one in asked]

    def _make_room(self, more: int) -> None:
        """Drops grants whose time is over, once there are many."""
        if len(self._shown) + more <= PRESENTED_MAX:
            return
        now = asyncio.get_running_loop().time()
        self._shown = {handle: shown for handle, shown in self._shown.items() if now < shown.over}
        self._handles = {kept: handle for kept, handle in self._handles.items() if handle in self._shown}

    async def _probe(self, accesses: list[Access], deadline_s: float) -> Reasons:
        """A Reason each: LANDED for what the peer says is live."""
        if not accesses:
            return np.empty(0, dtype=np.uint8)
        if self._closing:
            return np.full(len(accesses), Reason.PEER_GONE, dtype=np.uint8)
        token = self._host.number()
        job = TcpJob.probe(token, accesses)
        probe = _Probe(asyncio.get_running_loop().create_future())
        self._host.submit(token, probe, job, self.peer)
        try:
            async with asyncio.timeout(deadline_s):
                await asyncio.shield(probe.done)
        except TimeoutError:
            self._host.stop(token, Reason.LATE)
            await asyncio.shield(probe.done)
        return job.states()

    # -- bytes

    def read(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Pending:
        return self._begin(batch, False, deadline_s, parts)

    def write(self, batch: Batch, *, deadline_s: float) -> Pending:
        return self._begin(batch, True, deadline_s, None)

    def read_now(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Landed:
        """`read` in the calling thread, without the event loop; the GIL is given back. For few bytes, where waking
        other threads would take longer than moving them.
        """
        check_deadline(deadline_s)
        deadline_ns = time.monotonic_ns() + int(deadline_s * 1e9)
        regions, refused = self._resolve(batch, False)
        moving = Inline()
        for region in regions.values():
            region.enter(moving)
        try:
            if refused is not None:
                told = answer(Report(0, refused))
            else:
                made = self._plan(batch, parts)
                job = self._job(self._host.number(), made, regions, False)
                self._host.engine.run(job, self.peer, deadline_ns)
                told = answer(report_of(job, made))
        finally:
            for region in regions.values():
                region.leave(moving)
        if isinstance(told, TransferError):
            raise told
        return told

    def _plan(self, batch: Batch, parts: Sequence[int] | None) -> Plan:
        config = self._host.config
        return plan(batch, slice_bytes=config.slice_bytes, rails=(1,) * config.lanes, parts=parts)

    def _begin(self, batch: Batch, writing: bool, deadline_s: float, parts: Sequence[int] | None) -> Pending:
        regions, refused = self._resolve(batch, writing)
        made = self._plan(batch, parts) if refused is None else None
        token = self._host.number()
        pending = Pending(
            list(regions.values()),
            len(batch),
            deadline_s=deadline_s,
            quiesce_max_s=self._host.config.quiesce_max_s,
            stop_bytes=lambda reason: self._host.stop(token, reason),
        )
        if made is None:
            pending.quiet(Report(0, refused))
            return pending
        try:
            job = self._job(token, made, regions, writing)
            self._host.submit(token, Motion(pending, job, made, self._settled), job, self.peer)
        except BaseException:
            pending.quiet(Report(0, np.zeros(len(batch), dtype=np.uint8)))
            raise
        self._moving[pending] = None
        return pending

    def _resolve(self, batch: Batch, writing: bool) -> tuple[dict[int, Region], Reasons | None]:
        """The local regions of a batch, and what is wrong with it at once. Raises ValueError for a local region that
        is not registered, or a handle that was never presented.
        """
        regions: dict[int, Region] = {}
        for region_id in dense(batch.table[:, 0])[0]:
            region = self._host.find_region(region_id)
            if region is None:
                raise ValueError(f"extents name local region {region_id}, which is not registered")
            regions[region_id] = region
        handles = dense(batch.table[:, 2])[0]
        if handles and handles[-1] >= self._next_handle:
            raise ValueError("extents name a remote handle that was never presented here")
        if self._closing:
            return regions, np.full(len(batch), Reason.PEER_GONE, dtype=np.uint8)
        known = {handle: self._shown.get(handle) for handle in handles}
        shown = {handle: one.presented if one is not None else None for handle, one in known.items()}
        return regions, refusals(batch, regions, shown, writing=writing)

    def _job(self, token: int, made: Plan, regions: dict[int, Region], writing: bool) -> TcpJob:
        locals_at = dense(made.batch.table[:, 0])[0]
        handles = dense(made.batch.table[:, 2])[0]
        rows = made.rows.copy()
        rows[:, 0] = np.searchsorted(locals_at, rows[:, 0])
        rows[:, 2] = np.searchsorted(handles, rows[:, 2])
        spans = [(regions[i].address, regions[i].bytes, regions[i].writable) for i in locals_at]
        accesses = [self._shown[handle].access for handle in handles]
        return TcpJob(token, writing, spans, accesses, rows, made.slices, made.parts)

    def _settled(self, pending: Pending) -> None:
        self._moving.pop(pending, None)
        if not self._moving:
            self._idle.set()

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._repairing is not None:
            self._repairing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._repairing
        for pending in list(self._moving):
            pending.cancel()
        while self._moving:
            self._idle.clear()
            try:
                async with asyncio.timeout(self._host.config.quiesce_max_s):
                    await self._idle.wait()
            except TimeoutError:
                break  # poisoned, and its owner told
        self._host.endpoint_closed(self)


class _Probe:
    def __init__(self, done: asyncio.Future[None]) -> None:
        self.done = done

    def finished(self) -> None:
        if not self.done.done():
            self.done.set_result(None)
