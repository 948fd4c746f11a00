"""A transport that moves device memory too, over one that does not: what no NIC reaches passes through pinned memory.

  register   host memory: the transport within. A device's: the transport within, where its NICs reach it (GPUDirect);
             else a region of our own (`way` staged, and why no better one)
  read       window by window: from the peer into a staging buffer, hashed as it lands; copied to the device; answered
             when the copies are over
  write      window by window: copied from the device; when that is over, to the peer
  grant      a copy in host memory, made before the grant is told (transfer.devices.snapshots)

Rules
- Bytes are hashed in the staging buffer, by whoever lands them and while they are in a cache: no pass of their own, no
  kernel to start. The way on, over PCIe, has checks of its own. What NICs land on a device by themselves is hashed
  there (transfer.devices.hashed).
- The transport within knows nothing of devices; batches without device memory are its own, untouched.
- An answer means quiet memory: the device's and the host's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

from transfer.base import Endpoint, Transport
from transfer.devices.crossing import Stager
from transfer.devices.cuda import CudaUnavailable
from transfer.devices.memory import device_memory, on_device
from transfer.devices.process import Devices
from transfer.devices.snapshots import Snapshots
from transfer.devices.staged_endpoint import StagedEndpoint
from transfer.devices.staging import Buffer
from transfer.devices.ways import NoWay, Way
from transfer.errors import NotReached, RegionPoisoned
from transfer.grants import Grant, Rights
from transfer.regions import Region, Regions, RegionState

__all__ = ["Inner", "StagedTransport"]

_FIRST_ID = 1 << 40  # of our regions: no transport numbers so many of its own


class Inner(Transport, Protocol):
    """Every transport of this package is one."""

    def find_region(self, region_id: int) -> Region | None: ...


class StagedTransport:
    """See transfer.base.Transport. `inner`: any of this package's; it is closed with this one."""

    def __init__(self, inner: Inner, devices: Devices | None = None) -> None:
        self.inner = inner
        self.devices = devices or Devices()
        self._regions = Regions(first_id=_FIRST_ID)
        self._snapshots = Snapshots(inner, self.devices)
        self._stager: Stager | None = None
        self._staging: dict[Buffer, Region] = {}
        self.direct: set[int] = set()  # regions of the transport within that lie on a device
        self._endpoints: dict[StagedEndpoint, None] = {}

    @property
    def incarnation(self) -> bytes:
        return self.inner.incarnation

    @property
    def address(self) -> str:
        return self.inner.address

    # -- memory

    async def register(
        self,
        memory: object,
        *,
        name: str = "",
        writable: bool = True,
        on_poison: Callable[[Region], None] | None = None,
    ) -> Region:
        """Raises CudaUnavailable where device memory would be staged and cupy or a driver is missing, and NoWay where
        the settings forbid it.
        """
        if not on_device(memory):
            return await self.inner.register(memory, name=name, writable=writable, on_poison=on_poison)
        taken = device_memory(memory)
        try:
            region = await self.inner.register(taken, name=name, writable=writable, on_poison=on_poison)
        except NotReached as error:
            why = error.why
        else:
            self.direct.add(region.id)
            await self._try_stager()
            return region
        if Way.STAGED not in self.devices.settings.ways.ways:
            raise NoWay("; ".join([*why, "staged: not allowed by the settings"]))
        self._stager = await self.devices.stager()
        return self._regions.add_device(
            taken, name=name, writable=writable, way=Way.STAGED, why=why, on_poison=on_poison
        )

    async def register_lent(self, memory: object, *, name: str) -> Region:
        return await self.inner.register_lent(memory, name=name)

    async def _try_stager(self) -> None:
        """NICs reach the memory by themselves; what must be hashed cannot do without cupy."""
        with contextlib.suppress(CudaUnavailable):
            self._stager = await self.devices.stager()

    async def deregister(self, region: Region) -> None:
        if not self.is_staged(region.id) or self._regions.get(region.id) is not region:
            if region.state is not RegionState.CLOSED:
                await self.inner.deregister(region)
                self.direct.discard(region.id)
            return
        await region.quiesce(self.devices.settings.quiesce_max_s)
        await self._snapshots.end(region)
        if region.state is RegionState.CLOSING:  # else another call was first
            self._regions.remove(region)
            region.let_go()

    def find_region(self, region_id: int) -> Region | None:
        return self._regions.get(region_id) or self.inner.find_region(region_id)

    @property
    def plain(self) -> bool:
        """Whether no device memory is registered."""
        return not self.direct and not len(self._regions)

    def is_staged(self, region_id: int) -> bool:
        return region_id >= _FIRST_ID

    @property
    def hashes(self) -> bool:
        """Whether leaves can be hashed on a device here."""
        return self._stager is not None

    def ready(self) -> Stager:
        """There is one where a region is staged. Raises CudaUnavailable for batches that NICs reach, but whose digests
        nobody can take.
        """
        if self._stager is None:
            raise CudaUnavailable("parts: bytes that land on a device are hashed by cupy; pip install kvstore[gpu]")
        return self._stager

    async def staging(self, buffer: Buffer) -> Region:
        """A staging buffer as a region of the transport within. Only who holds a buffer asks for it."""
        region = self._staging.get(buffer)
        if region is None:
            region = await self.inner.register(buffer.memory, name="staging buffer")
            self._staging[buffer] = region
        return region

    # -- grants

    async def grant(
        self, region: Region, ranges: Sequence[tuple[int, int]], *, rights: Rights = Rights.READ, lifetime_s: float
    ) -> Grant:
        """Of staged memory: to read only, and what peers read is what lay there when this returned (see
        transfer.devices.snapshots, also for what it raises).
        """
        if self._regions.get(region.id) is not region:
            return await self.inner.grant(region, ranges, rights=rights, lifetime_s=lifetime_s)
        if region.state is RegionState.POISONED:
            raise RegionPoisoned(f"{region.name} is poisoned: something may still touch it")
        if region.state is not RegionState.OPEN:
            raise ValueError(f"{region.name} is not registered here")
        return await self._snapshots.grant(region, ranges, rights=rights, lifetime_s=lifetime_s)

    async def revoke(self, grants: Sequence[Grant]) -> None:
        await self.inner.revoke(grants)
        await self._snapshots.revoked(grants)

    # -- peers

    async def connect(self, address: str, *, deadline_s: float) -> StagedEndpoint:
        return self.around(await self.inner.connect(address, deadline_s=deadline_s))

    def around(self, endpoint: Endpoint) -> StagedEndpoint:
        """For endpoints of the transport within that came about otherwise, as TCP's `back`."""
        made = StagedEndpoint(endpoint, self, asyncio.get_running_loop())
        self._endpoints[made] = None
        return made

    def endpoint_closed(self, endpoint: StagedEndpoint) -> None:
        self._endpoints.pop(endpoint, None)

    async def close(self) -> None:
        """Raises RegionPoisoned where some memory could not be made quiet; all else is closed then, too."""
        for endpoint in list(self._endpoints):
            await endpoint.close()
        poisoned: list[str] = []
        for region in self._regions.all():
            try:
                await self.deregister(region)
            except RegionPoisoned:
                poisoned.append(region.name)
        await self.inner.close()
        if poisoned:
            raise RegionPoisoned(f"not quiet at close: {', '.join(poisoned)}")
