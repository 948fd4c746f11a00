"""Device memory lent to peers that no NIC can show it to: a copy in host memory, made before the grant is told.

Rules
- A grant shows the bytes as they were when it was made: what the device writes later is not seen by it. Blocks that are
  granted do not change, so nothing is lost; who lends what does change grants it anew.
- Peers read only. What a peer wrote would lie in the copy and never on the device.
- A copy has its region's size and offsets, and memory only where ranges are granted; all copies together are at most
  `lent_bytes_max`. It goes with its grant: revoked, expired, or its region deregistered.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from transfer.devices.crossing import uncancelled
from transfer.devices.memory import device_memory
from transfer.devices.staging import Bytes
from transfer.errors import LimitReached, Reason, RegionPoisoned
from transfer.grants import Grant, Rights, check_lifetime, normal_ranges
from transfer.native import MappedSegment
from transfer.regions import Region, RegionState

if TYPE_CHECKING:
    from transfer.devices.process import Devices
    from transfer.devices.staged import Inner

__all__ = ["Snapshots"]

_LATER_S = 0.1  # so that the owner's clock has passed the expiry


@dataclass(slots=True, eq=False)
class _Snapshot:
    of: Region
    copy: Region
    bytes: int
    expiry: asyncio.TimerHandle | None = None


class _Filling:
    """A copy in the making, as its device region sees it."""

    def __init__(self, task: asyncio.Task[None]) -> None:
        self.task = task

    def stop(self, reason: Reason) -> None:
        del reason
        self.task.cancel()


class Snapshots:
    """Those of one transport."""

    def __init__(self, inner: Inner, devices: Devices) -> None:
        self._inner = inner
        self._devices = devices
        self._kept: dict[bytes, _Snapshot] = {}  # by descriptor
        self._bytes = 0
        self._ending: set[asyncio.Task[None]] = set()

    async def grant(
        self, region: Region, ranges: Sequence[tuple[int, int]], *, rights: Rights, lifetime_s: float
    ) -> Grant:
        """Raises ValueError where peers would write, or the region goes meanwhile; LimitReached(lent_bytes_max);
        TimeoutError and RegionPoisoned where the device does not give its bytes.
        """
        if rights & Rights.WRITE:
            raise ValueError(f"{region.name} lies on device {region.device} and is staged: peers cannot write to it")
        check_lifetime(lifetime_s)
        allowed = normal_ranges(ranges, region.bytes)
        count = sum(length for _, length in allowed)
        most = self._devices.settings.lent_bytes_max
        if self._bytes + count > most:
            raise LimitReached(
                f"{self._bytes} bytes of {most} are lent, {count} more are asked", limit="lent_bytes_max"
            )
        self._bytes += count
        try:
            segment = _sparse(region.bytes, allowed)
            await self._fill(region, segment, allowed)
            copy = await self._inner.register_lent(segment, name=f"{region.name}, lent")
            try:
                granted = await self._inner.grant(copy, allowed, rights=rights, lifetime_s=lifetime_s)
            except BaseException:
                await self._inner.deregister(copy)
                raise
        except BaseException:
            self._bytes -= count
            raise
        kept = self._kept[granted.descriptor] = _Snapshot(region, copy, count)
        kept.expiry = asyncio.get_running_loop().call_later(lifetime_s + _LATER_S, self._expired, granted.descriptor)
        return granted

    async def revoked(self, grants: Sequence[Grant]) -> None:
        """After the grants have been revoked."""
        for grant in grants:
            await self._let_go(grant.descriptor)

    async def end(self, of: Region | None = None) -> None:
        """All copies of a region, or of all. Raises RegionPoisoned, after the rest, where a peer may touch one."""
        poisoned: RegionPoisoned | None = None
        for descriptor in [one for one, kept in self._kept.items() if of is None or kept.of is of]:
            try:
                await self._let_go(descriptor)
            except RegionPoisoned as error:
                poisoned = error
        if poisoned is not None:
            raise poisoned

    async def _fill(self, region: Region, segment: MappedSegment, allowed: Sequence[tuple[int, int]]) -> None:
        stager = await self._devices.stager()
        memory = device_memory(region.device_memory)
        target = segment.writable_array(0, region.bytes)

        async def all_of_them() -> None:
            for offset, length in allowed:

                async def keep(host: Bytes, position: int, at: int = offset) -> None:
                    place = target[at + position : at + position + len(host)]
                    await uncancelled(self._devices.run(lambda: np.copyto(place, host)))

                await stager.leave(memory, offset, length, keep, deadline_s=self._devices.settings.quiesce_max_s)

        task = asyncio.get_running_loop().create_task(all_of_them())
        filling = _Filling(task)
        try:
            region.enter(filling)
            await task  # if this is cancelled so is the task, and it ends first
        except asyncio.CancelledError:
            this = asyncio.current_task()
            if region.state is not RegionState.OPEN and this is not None and not this.cancelling():
                raise ValueError(f"{region.name} is deregistered") from None
            raise
        except RegionPoisoned:
            region.poison()
            raise
        finally:
            task.cancel()
            region.leave(filling)

    def _expired(self, descriptor: bytes) -> None:
        task = asyncio.get_running_loop().create_task(self._end_quietly(descriptor))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end_quietly(self, descriptor: bytes) -> None:
        with contextlib.suppress(RegionPoisoned):  # kept until the process ends, as poisoned memory is
            await self._let_go(descriptor)

    async def _let_go(self, descriptor: bytes) -> None:
        kept = self._kept.pop(descriptor, None)
        if kept is None:
            return
        if kept.expiry is not None:
            kept.expiry.cancel()
        await self._inner.deregister(kept.copy)
        self._bytes -= kept.bytes


def _sparse(size: int, ranges: Sequence[tuple[int, int]]) -> MappedSegment:
    """A segment of that size with memory where the ranges are, sealed against truncation."""
    fd = os.memfd_create("lent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        for offset, length in ranges:
            os.posix_fallocate(fd, offset, length)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        return MappedSegment(fd, size, writable=True)
    finally:
        os.close(fd)
