"""One peer of a staged transport: batches with device memory in them, window by window.

Rules
- What is wrong with a batch as it stands is said before any of its windows moves.
- A window that fails fails its extents; the others go on. A stop (cancel, deadline, deregistration, close) ends what is
  under way, and what has not begun does not begin.
- The transfer answers when the last window's buffer is back, or poisoned.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from transfer.base import Endpoint, Presented, Transfer
from transfer.batch import Batch, Table, dense
from transfer.devices.crossing import Crossing, Stager
from transfer.devices.hashed import HashedRead, pieces_of
from transfer.devices.windows import Gathered, Window, slice_bytes_for, windows_of
from transfer.errors import (
    LimitReached,
    Reason,
    RegionPoisoned,
    TransferCancelled,
    TransferError,
    TransferFault,
    TransferLate,
)
from transfer.grants import parse_descriptor
from transfer.pending import Pending, Report
from transfer.plan import plan
from transfer.refusals import Reasons, refusals
from transfer.regions import Region

if TYPE_CHECKING:
    from transfer.devices.staged import StagedTransport

__all__ = ["StagedEndpoint"]

PRESENTED_MAX = 65_536
_AGAIN_S = 0.001


class StagedEndpoint:
    """See transfer.base.Endpoint; made by StagedTransport.connect. `inner`: the endpoint within, for what only its kind
    of transport can.
    """

    def __init__(self, inner: Endpoint, host: StagedTransport, loop: asyncio.AbstractEventLoop) -> None:
        self.inner = inner
        self._host = host
        self._loop = loop
        self._shown: dict[int, tuple[Presented, float]] = {}  # and when it is over at the latest
        self._highest = 0
        self._moving: dict[_Motion | HashedRead, None] = {}
        self._idle = asyncio.Event()
        self._closing = False

    @property
    def incarnation(self) -> bytes:
        return self.inner.incarnation

    async def present(
        self, descriptors: Sequence[bytes], *, deadline_s: float, fresh: bool = False
    ) -> Sequence[Presented]:
        found = await self.inner.present(descriptors, deadline_s=deadline_s, fresh=fresh)
        now = self._loop.time()
        if len(self._shown) + len(found) > PRESENTED_MAX:
            self._shown = {handle: one for handle, one in self._shown.items() if now < one[1]}
        for one, descriptor in zip(found, descriptors, strict=True):
            self._shown[one.handle] = one, now + parse_descriptor(descriptor).lifetime_ms / 1000
            self._highest = max(self._highest, one.handle)
        return found

    def read(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Transfer:
        if self._host.plain:
            return self.inner.read(batch, deadline_s=deadline_s, parts=parts)
        if parts is not None and (hashed := self._hashed(batch, deadline_s, parts)) is not None:
            return hashed
        if not self._staged(batch, parts):
            return self.inner.read(batch, deadline_s=deadline_s, parts=parts)
        return self._begin(batch, False, deadline_s, parts)

    def write(self, batch: Batch, *, deadline_s: float) -> Transfer:
        if not self._staged(batch, None):
            return self.inner.write(batch, deadline_s=deadline_s)
        return self._begin(batch, True, deadline_s, None)

    def _staged(self, batch: Batch, parts: Sequence[int] | None) -> bool:
        if not len(batch):
            return False
        if self._host.is_staged(int(batch.table[:, 0].max())):
            return True
        return parts is not None and not self._host.direct.isdisjoint(dense(batch.table[:, 0])[0])

    def _hashed(self, batch: Batch, deadline_s: float, parts: Sequence[int]) -> Transfer | None:
        """The read, where NICs land it on a device and it can be hashed there."""
        ids = dense(batch.table[:, 0])[0]
        if not ids or not self._host.direct.issuperset(ids) or not self._host.hashes:
            return None
        regions = {region_id: region for region_id in ids if (region := self._host.find_region(region_id)) is not None}
        if len(regions) != len(ids) or len({region.device for region in regions.values()}) != 1:
            return None
        pieces = pieces_of(batch, regions, parts)
        if pieces is None:
            return None
        read = HashedRead(
            self.inner,
            self._host.devices,
            batch,
            regions,
            parts,
            pieces,
            deadline_s=deadline_s,
            settled=self.settled,
        )
        self._moving[read] = None
        return read.pending

    def _begin(self, batch: Batch, writing: bool, deadline_s: float, parts: Sequence[int] | None) -> Pending:
        stager = self._host.ready()
        if not stager.pool.live:
            raise LimitReached("every staging buffer is poisoned", limit="staging_bytes_max")
        regions, refused = self._resolve(batch, writing)
        staged = [region_id for region_id in regions if self._host.is_staged(region_id)]
        if parts is not None:  # hashed on their way, since nobody else can
            staged += [region_id for region_id in regions if region_id in self._host.direct]
        motion = _Motion(self, self._host, stager, regions, staged, writing)
        if refused is None:
            motion.cut(batch, parts)
        pending = Pending(
            list(regions.values()),
            len(batch),
            deadline_s=deadline_s,
            quiesce_max_s=self._host.devices.settings.quiesce_max_s,
            stop_bytes=motion.stop,
        )
        if refused is not None:
            pending.quiet(Report(0, refused))
            return pending
        self._moving[motion] = None
        motion.start(pending, self._loop.time() + deadline_s)
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
        if handles and handles[-1] > self._highest:
            raise ValueError("extents name a remote handle that was never presented here")
        if self._closing:
            return regions, np.full(len(batch), Reason.PEER_GONE, dtype=np.uint8)
        shown = {handle: self._shown[handle][0] if handle in self._shown else None for handle in handles}
        return regions, refusals(batch, regions, shown, writing=writing)

    def settled(self, motion: _Motion | HashedRead) -> None:
        self._moving.pop(motion, None)
        if not self._moving:
            self._idle.set()

    async def close(self) -> None:
        if not self._closing:
            self._closing = True
            for motion in list(self._moving):
                motion.pending.cancel()
            while self._moving:
                self._idle.clear()
                try:
                    async with asyncio.timeout(self._host.devices.settings.quiesce_max_s):
                        await self._idle.wait()
                except TimeoutError:
                    break  # poisoned, and its owner told
            self._host.endpoint_closed(self)
        await self.inner.close()


class _Motion:
    """A batch under way."""

    pending: Pending
    _task: asyncio.Task[None]

    def __init__(
        self,
        endpoint: StagedEndpoint,
        host: StagedTransport,
        stager: Stager,
        regions: dict[int, Region],
        staged: Sequence[int],
        writing: bool,
    ) -> None:
        self._endpoint = endpoint
        self._host = host
        self._stager = stager
        self._regions = regions
        self._staged = staged
        self._writing = writing
        self._deadline = 0.0
        self._poisoned = False

    def cut(self, batch: Batch, parts: Sequence[int] | None) -> None:
        """Raises ValueError naming `parts`."""
        most = self._stager.pool.buffer_bytes
        made = plan(batch, slice_bytes=slice_bytes_for(most), parts=parts)
        self._windows = windows_of(made, self._staged, most)
        self._gathered = Gathered(made, self._windows)

    def start(self, pending: Pending, deadline: float) -> None:
        self.pending = pending
        self._deadline = deadline
        after: dict[int, list[int]] = {}
        for region_id in self._staged:
            memory = self._regions[region_id].device_memory
            if memory.stream is not None:
                after.setdefault(memory.device, []).append(memory.stream)
        crossing = self._stager.cross(self._windows, self._carry, after=after)
        self._task = asyncio.get_running_loop().create_task(crossing)
        self._task.add_done_callback(self._over)

    def stop(self, reason: Reason) -> None:
        del reason  # the pending transfer's to know
        self._task.cancel()

    # -- one window

    async def _carry(self, crossing: Crossing, window: Window) -> None:
        staging = await self._host.staging(crossing.buffer)
        batch = window.batch(self._staged, staging.id)
        if self._writing:
            await self._copied(crossing, window.copies)
        try:
            landed = await (await self._asked(batch, window))
        except TransferError as error:
            await self._failed(crossing, window, error)
        except asyncio.CancelledError as error:
            if isinstance(error.__cause__, TransferError):
                self._spoilt(crossing, window)
            raise
        except (RegionPoisoned, ValueError):  # a region of host memory that is being taken back
            self._gathered.lost(window, Reason.DEREGISTERED)
        else:
            if not self._writing:
                await self._copied(crossing, window.copies)
            self._gathered.landed(window, landed)

    async def _asked(self, batch: Batch, window: Window) -> Transfer:
        """The window on its way; waits while the transport within has too much to do."""
        loop = asyncio.get_running_loop()
        while True:
            left = max(0.0, self._deadline - loop.time())
            try:
                if self._writing:
                    return self._endpoint.inner.write(batch, deadline_s=left)
                return self._endpoint.inner.read(batch, deadline_s=left, parts=window.parts or None)
            except LimitReached:
                await asyncio.sleep(_AGAIN_S)

    async def _failed(self, crossing: Crossing, window: Window, error: TransferError) -> None:
        if error.poisoned:
            self._spoilt(crossing, window)
        late = isinstance(error, TransferLate | TransferCancelled)
        if late or error.poisoned or not len(error.arrived):
            reasons = {failure.reason for failure in error.failures}
            told = reasons.pop() if len(reasons) == 1 else Reason.PEER_GONE
            self._gathered.lost(window, self.pending.stopping or told)
            return
        if not self._writing:
            await self._copied(crossing, window.copies_of(error.arrived, self._staged))
        self._gathered.failed(window, error)

    def _spoilt(self, crossing: Crossing, window: Window) -> None:
        """Something may still write into the buffer, and into what else of the window lies in host memory."""
        crossing.spoil()
        self._poisoned |= bool(set(window.rows[:, 0].tolist()) - set(self._staged))

    async def _copied(self, crossing: Crossing, copies: Table) -> None:
        """Between the buffer and the device, and over."""
        for region_id, offset, into, length in copies.tolist():
            region = self._regions[region_id]
            assert region.device is not None
            host = crossing.host[into : into + length]
            if self._writing:
                await crossing.to_host(region.device, host, region.address + offset)
            else:
                await crossing.to_device(region.device, region.address + offset, host)
        await crossing.drained()

    # -- the answer

    def _over(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self._endpoint.settled(self)
        if error is None:
            report = self._gathered.report(self.pending.stopping or Reason.CANCELLED)
        else:
            report = self._gathered.report(Reason.DEVICE)
            if not isinstance(error, TransferFault):  # not a device that failed: a mistake of ours, to be seen
                told = {"message": "a staged transfer failed", "exception": error, "task": task}
                asyncio.get_running_loop().call_exception_handler(told)
        if self._poisoned or isinstance(error, RegionPoisoned):
            self.pending.lost(report)
        else:
            self.pending.quiet(report)
