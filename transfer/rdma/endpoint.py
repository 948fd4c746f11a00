"""One peer over RDMA: its lanes, the grants shown to it, the batches in motion.

Rules
- A batch's slices are taken by whichever lane has room; what a broken lane had not finished goes to another at once.
- When the control connection ends, the peer is gone: its grants died with the connection. Connect anew.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from transfer.base import Presented
from transfer.batch import Batch, dense
from transfer.errors import GrantInvalid, LimitReached, PeerUnreachable, Reason
from transfer.grants import parse_descriptor
from transfer.native import RdmaJob
from transfer.pending import Pending, Report, check_deadline
from transfer.plan import Plan, plan
from transfer.rails import RailState
from transfer.rdma.control import Control
from transfer.rdma.frames import Ended, FrameInvalid, Hello, Present, Shown
from transfer.rdma.lanes import Lanes
from transfer.rdma.motion import Motion, ShownGrant, windows_of
from transfer.refusals import Reasons, refusals
from transfer.regions import Region

if TYPE_CHECKING:
    from transfer.rdma.transport import RdmaTransport

__all__ = ["RdmaEndpoint"]

PRESENTED_MAX = 65_536


class RdmaEndpoint:
    """See transfer.base.Endpoint; made by RdmaTransport.connect."""

    def __init__(self, host: RdmaTransport, control: Control, peer: Hello) -> None:
        self._host = host
        self._control = control
        self._incarnation = peer.incarnation
        self.peer = host.number()
        self._lanes = Lanes(host, self.peer, control, peer)
        self._shown: dict[int, ShownGrant] = {}
        self._handles: dict[bytes, int] = {}
        self._descriptors: dict[int, bytes] = {}  # of live handles
        self._moving: dict[Pending, None] = {}
        self._idle = asyncio.Event()
        self._closing = False
        self._hearing = asyncio.get_running_loop().create_task(self._hear())

    @property
    def rails(self) -> list[RailState]:
        """In the order of the devices."""
        return self._lanes.states()

    @property
    def lanes_a_device(self) -> int:
        """The most on one of our devices."""
        return self._lanes.a_device

    async def open(self) -> None:
        """Raises PeerUnreachable."""
        await self._lanes.open()

    async def _hear(self) -> None:
        why = "this side has closed"
        try:
            while True:
                message, request = await self._control.next()
                if isinstance(message, Ended):
                    self._grant_ended(message)
                else:
                    self._control.answered(message, request)
        except (PeerUnreachable, FrameInvalid) as error:
            why = str(error)
        finally:
            self._control.lose(why)
            self._lanes.stop(why)
            self._host.engine.give_up(self.peer, True)

    # -- grants

    async def present(self, descriptors: Sequence[bytes], *, deadline_s: float) -> Sequence[Presented]:
        check_deadline(deadline_s)
        asked = [bytes(descriptor) for descriptor in descriptors]
        fresh = list(dict.fromkeys(one for one in asked if one not in self._handles))
        parsed = {one: parse_descriptor(one) for one in fresh}
        if any(said.incarnation != self._incarnation for said in parsed.values()):
            raise GrantInvalid("grant: of another peer, or of an earlier life of this one")
        if len(self._shown) + len(parsed) > PRESENTED_MAX:
            raise LimitReached(f"{PRESENTED_MAX} grants are presented on one connection", limit="presented_max")
        answers = await asyncio.gather(
            *(self._control.ask(Present(one), deadline_s) for one in fresh), return_exceptions=True
        )
        for one, answer in zip(fresh, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            if not isinstance(answer, Shown):
                raise PeerUnreachable("the peer broke the protocol")
            self._keep(one, answer)
        return [self._live(one) for one in asked]

    def _keep(self, descriptor: bytes, told: Shown) -> None:
        if told.reason is Reason.LATE:
            raise LimitReached("the peer registers no more memory for us", limit="mrs_max")
        said = parse_descriptor(descriptor)
        if told.reason is not Reason.LANDED or len(told.keys) != len(said.ranges):
            raise GrantInvalid(f"grant: {told.reason.name.lower()}, or never one of this peer's")
        handle = self._host.number()
        presented = Presented(handle, said.rights, said.ranges, said.region_bytes)
        starts = np.array([start for start, _ in said.ranges], dtype=np.int64)
        self._shown[handle] = ShownGrant(presented, handle, said.slot, said.generation, told.base, starts, told.keys)
        self._handles[descriptor] = handle
        self._descriptors[handle] = descriptor

    def _live(self, descriptor: bytes) -> Presented:
        handle = self._handles.get(descriptor)
        presented = self._shown[handle].presented if handle is not None else None
        if presented is None:
            raise GrantInvalid("grant: it has ended meanwhile")
        return presented

    def _grant_ended(self, told: Ended) -> None:
        for handle in list(self._descriptors):
            grant = self._shown[handle]
            if (grant.slot, grant.generation) == (told.slot, told.generation):
                self._host.engine.end_access(self.peer, grant.access, told.reason)
                self.access_ended(handle)

    def access_ended(self, handle: int) -> bool:
        """False: not one of this endpoint's. Its windows are forgotten; that it has ended is not."""
        grant = self._shown.get(handle)
        if grant is None:
            return False
        self._shown[handle] = replace(grant, presented=None, keys=(), starts=grant.starts[:0])
        descriptor = self._descriptors.pop(handle, None)
        if descriptor is not None:
            self._handles.pop(descriptor, None)
        return True

    # -- bytes

    def read(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Pending:
        return self._begin(batch, False, deadline_s, parts)

    def write(self, batch: Batch, *, deadline_s: float) -> Pending:
        return self._begin(batch, True, deadline_s, None)

    def _begin(self, batch: Batch, writing: bool, deadline_s: float, parts: Sequence[int] | None) -> Pending:
        regions, refused = self._resolve(batch, writing)
        made: Plan | None = None
        if refused is None:
            made = plan(batch, slice_bytes=self._host.config.slice_bytes, parts=parts)
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
        if any(handle not in self._shown for handle in handles):
            raise ValueError("extents name a remote handle that was never presented here")
        if self._closing:
            return regions, np.full(len(batch), Reason.PEER_GONE, dtype=np.uint8)
        shown = {handle: self._shown[handle].presented for handle in handles}
        return regions, refusals(batch, regions, shown, writing=writing)

    def _job(self, token: int, made: Plan, regions: dict[int, Region], writing: bool) -> RdmaJob:
        locals_at = dense(made.batch.table[:, 0])[0]
        handles = dense(made.batch.table[:, 2])[0]
        windows, of_rows = windows_of(made.rows, handles, self._shown)
        rows = made.rows.copy()
        rows[:, 0] = np.searchsorted(locals_at, rows[:, 0])
        rows[:, 2] = np.searchsorted(handles, rows[:, 2])
        spans = [(regions[i].address, regions[i].bytes, regions[i].writable) for i in locals_at]
        keys = [self._host.local_keys(i) for i in locals_at]
        return RdmaJob(token, writing, spans, keys, windows, of_rows, rows, made.slices, made.parts)

    def _settled(self, pending: Pending) -> None:
        self._moving.pop(pending, None)
        if not self._moving:
            self._idle.set()

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        for pending in list(self._moving):
            pending.cancel()
        while self._moving:
            self._idle.clear()
            try:
                async with asyncio.timeout(self._host.config.quiesce_max_s):
                    await self._idle.wait()
            except TimeoutError:
                break  # poisoned, and its owner told
        whole = await self._lanes.close(self._host.config.quiesce_max_s)
        self._hearing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._hearing
        self._host.endpoint_closed(self, whole)
