"""What every transport does alike with its regions, whatever moves their bytes: registering, granting, taking back.

Rules
- A grant that has ended is taken back only when nobody touches its memory by it; a region is let go only when nobody
  does by any grant of it, and no transfer of our own either.
- Where that takes longer than `quiesce_max_s`, the region is poisoned and its owner told.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from transfer.devices.memory import DeviceMemory, device_memory, on_device
from transfer.errors import NotReached, RegionPoisoned, StillTouched
from transfer.grants import GRANTS_MAX, Grant, GrantBook, Rights, normal_ranges
from transfer.regions import REGIONS_MAX, Region, Regions, RegionState

__all__ = ["Ground", "Lender"]


class Ground(Protocol):
    """Where a transport's peers look at its grants."""

    def publish(self, grant: Grant, region: Region) -> None:
        """From now on the grant opens its ranges."""
        ...

    def end(self, grant: Grant) -> None:
        """No touch begins by it any more."""
        ...

    def quiet(self, slot: int) -> bool:
        """Whether nobody touches memory by this slot's grant just now."""
        ...

    async def wait_quiet(self, slots: Collection[int], wait_s: float) -> bool:
        """Whether all of them are quiet, waiting up to `wait_s` for that."""
        ...

    def region_gone(self, region: Region) -> None:
        """Its grants have ended; peers may forget it."""
        ...


class Lender:
    """The memory side of a transport, which is one of these. See transfer.base.Transport for what the verbs promise."""

    ground: Ground  # set before anything is granted

    def __init__(
        self,
        *,
        key: bytes,
        incarnation: bytes,
        regions_max: int = REGIONS_MAX,
        grants_max: int = GRANTS_MAX,
        quiesce_max_s: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.book = GrantBook(key, incarnation, self._quiet, grants_max=grants_max)
        self._regions = Regions(regions_max=regions_max)
        self._quiesce_max_s = quiesce_max_s
        self._now_ns = now_ns

    @property
    def incarnation(self) -> bytes:
        return self.book.incarnation

    def find_region(self, region_id: int) -> Region | None:
        return self._regions.get(region_id)

    async def register(
        self,
        memory: object,
        *,
        name: str = "",
        writable: bool = True,
        on_poison: Callable[[Region], None] | None = None,
    ) -> Region:
        if on_device(memory):
            return await self.register_device(device_memory(memory), name=name, writable=writable, on_poison=on_poison)
        return self._regions.add(memory, name=name, writable=writable, on_poison=on_poison)

    async def register_lent(self, memory: object, *, name: str) -> Region:
        """Host memory that peers read, and no transfer of our own: nothing of it is shown to a NIC but what is granted.
        It may have holes, which a NIC would fill with pages.
        """
        return self._regions.add(memory, name=name, writable=False)

    async def register_device(
        self,
        memory: DeviceMemory,
        *,
        name: str,
        writable: bool,
        on_poison: Callable[[Region], None] | None,
    ) -> Region:
        """Device memory where it lies. Raises NotReached where this transport gets at no device's memory, or not at
        this one's.
        """
        del name, writable, on_poison
        why = f"{type(self).__name__} moves host memory"
        raise NotReached(f"memory lies on device {memory.device}, and nothing stages it here", why=(why,))

    async def deregister(self, region: Region) -> None:
        if region.state is RegionState.CLOSED:
            return
        self._end(self.book.of_region(region.id))
        self.ground.region_gone(region)
        await region.quiesce(self._quiesce_max_s)
        if not await self._settle(self.book.of_region(region.id)):
            region.poison()
            raise RegionPoisoned(f"{region.name} is poisoned: a peer may still touch it")
        if region.state is RegionState.CLOSING:  # else another call was first
            self._regions.remove(region)
            region.let_go()

    async def deregister_all(self) -> list[str]:
        """The names of those that could not be made quiet; all others are gone then."""
        poisoned: list[str] = []
        for region in self._regions.all():
            try:
                await self.deregister(region)
            except RegionPoisoned:
                poisoned.append(region.name)
        return poisoned

    async def grant(
        self, region: Region, ranges: Sequence[tuple[int, int]], *, rights: Rights = Rights.READ, lifetime_s: float
    ) -> Grant:
        """Raises ValueError for a region that is not open here, or that may not be written, and whatever the book and
        the ranges refuse.
        """
        if self._regions.get(region.id) is not region or region.state is not RegionState.OPEN:
            raise ValueError(f"{region.name} is not registered here")
        if rights & Rights.WRITE and not region.writable:
            raise ValueError(f"{region.name} is registered read-only")
        allowed = normal_ranges(ranges, region.bytes)
        now_ns = self._now_ns()
        grant = self.book.issue(region.id, region.bytes, allowed, rights=rights, lifetime_s=lifetime_s, now_ns=now_ns)
        self.ground.publish(grant, region)
        return grant

    async def revoke(self, grants: Sequence[Grant]) -> None:
        self._end(grants)
        if not await self._settle(grants):
            raise StillTouched("a peer may still touch what was granted")

    def _end(self, grants: Sequence[Grant]) -> None:
        for grant in grants:
            if self.book.end(grant):
                self.ground.end(grant)

    async def _settle(self, grants: Sequence[Grant]) -> bool:
        quiet = await self.ground.wait_quiet([grant.slot for grant in grants], self._quiesce_max_s)
        for grant in grants:
            self.book.settle(grant)
        # One that was found quiet meanwhile, and its slot given on: what is touched there is the next one's.
        return quiet or not any(map(self.book.is_ending, grants))

    def _quiet(self, slot: int) -> bool:
        return self.ground.quiet(slot)
