"""Registered memory: where it lies, who moves bytes in it, and when it may be let go.

The life of a region

  OPEN -deregister-> CLOSING -last transfer quiet-> CLOSED
    |                   |
    +---- quiesce_max passed -> POISONED (for good: never reused, never unmapped)

Rules
- A region holds its memory: the buffer's export, the segment's mapping, or the device's, lives until it is CLOSED.
- Only an OPEN region is given to new transfers. Ids are never used again.
- A poisoned region's memory is kept until the process ends, since something may still touch it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transfer.errors import LimitReached, Reason, RegionPoisoned
from transfer.native import MappedSegment, keep_forever

__all__ = ["Moving", "OnDevice", "Region", "RegionState", "Regions", "owner_of"]

REGIONS_MAX = 4_096
_DLPACK_CPU = 1


class Moving(Protocol):
    """A transfer, as its regions see it."""

    def stop(self, reason: Reason) -> None: ...


class OnDevice(Protocol):
    """Memory of a device, as transfer.devices describes it."""

    @property
    def address(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def device(self) -> int: ...

    @property
    def writable(self) -> bool: ...

    @property
    def stream(self) -> int | None: ...


class RegionState(Enum):
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    POISONED = "poisoned"


class Region:
    """`bytes` of memory at `address` in this process, held while the region is not closed.

    `device`: the ordinal of the device that it lies on, None for the host's. `way`: how NICs get at a device's memory
    (transfer.devices.ways), and `why`, for every better way, why it is not used; both empty for the host's.
    """

    __slots__ = (
        "_device_memory",
        "_idle",
        "_memory",
        "_moving",
        "_on_poison",
        "address",
        "bytes",
        "device",
        "id",
        "name",
        "segment",
        "state",
        "way",
        "why",
        "writable",
    )

    def __init__(
        self,
        region_id: int,
        memory: npt.NDArray[np.uint8] | OnDevice,
        *,
        name: str,
        writable: bool,
        segment: MappedSegment | None = None,
        on_poison: Callable[[Region], None] | None = None,
        way: str = "",
        why: tuple[str, ...] = (),
    ) -> None:
        self.id = region_id
        self.name = name or f"region {region_id}"
        self._memory: npt.NDArray[np.uint8] | None = memory if isinstance(memory, np.ndarray) else None
        self._device_memory: OnDevice | None = None if isinstance(memory, np.ndarray) else memory
        self.address = int(memory.ctypes.data) if isinstance(memory, np.ndarray) else memory.address
        self.bytes = int(memory.nbytes) if isinstance(memory, np.ndarray) else memory.bytes
        self.device: int | None = None if isinstance(memory, np.ndarray) else memory.device
        self.way, self.why = way, why
        self.writable = writable
        self.segment = segment
        self.state = RegionState.OPEN
        self._moving: dict[Moving, None] = {}
        self._on_poison = on_poison
        self._idle: asyncio.Event | None = None

    def __repr__(self) -> str:
        where = "" if self.device is None else f" on device {self.device} ({self.way})"
        return f"<Region {self.id} {self.name!r} {self.bytes} bytes{where} {self.state.value}>"

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """The bytes of host memory. Raises ValueError once closed, and for a device's."""
        if self.device is not None:
            raise ValueError(f"{self.name} lies on device {self.device}")
        if self._memory is None:
            raise ValueError(f"{self.name} is deregistered")
        return self._memory

    @property
    def device_memory(self) -> OnDevice:
        """What the region was made of. Raises ValueError once closed, and for host memory."""
        if self._device_memory is None:
            raise ValueError(f"{self.name} is deregistered, or lies in host memory")
        return self._device_memory

    @property
    def busy(self) -> bool:
        return bool(self._moving)

    @property
    def pinned_at(self) -> int:
        """Where a device should be shown these bytes: kernels up to 6.2 pin shared memory through a mapping that may be
        written, whatever the device may do with it. `address` where there is no such mapping.
        """
        if self.segment is None or not self.segment.writable:
            return self.address
        return int(self.segment.writable_array(0, self.bytes).ctypes.data)

    def enter(self, moving: Moving) -> None:
        """A transfer begins to use this memory. Raises RegionPoisoned or ValueError where it must not."""
        if self.state is RegionState.POISONED:
            raise RegionPoisoned(f"{self.name} is poisoned: something may still touch it")
        if self.state is not RegionState.OPEN:
            raise ValueError(f"{self.name} is deregistered")
        self._moving[moving] = None

    def leave(self, moving: Moving) -> None:
        """The transfer is quiet."""
        self._moving.pop(moving, None)
        if not self._moving and self._idle is not None:
            self._idle.set()

    def poison(self) -> None:
        """Gives the memory up and tells the owner, once."""
        if self.state in (RegionState.POISONED, RegionState.CLOSED):
            return
        self.state = RegionState.POISONED
        keep_forever((self._memory, self._device_memory))
        if self._on_poison is not None:
            self._on_poison(self)

    async def quiesce(self, wait_s: float) -> None:
        """Refuses new transfers, stops those under way and waits. Raises RegionPoisoned past `wait_s`."""
        if self.state is RegionState.OPEN:
            self.state = RegionState.CLOSING
        for moving in list(self._moving):
            moving.stop(Reason.DEREGISTERED)
        if self._moving:
            self._idle = self._idle or asyncio.Event()  # several may wait
            try:
                async with asyncio.timeout(wait_s):
                    await self._idle.wait()
            except TimeoutError:
                self.poison()
        if self.state is RegionState.POISONED:
            raise RegionPoisoned(f"{self.name} is poisoned: something may still touch it")

    def let_go(self) -> None:
        """The last step of deregistering; nothing may move any more."""
        assert not self._moving and self.state is RegionState.CLOSING
        self.state = RegionState.CLOSED
        self._memory = self._device_memory = None
        self.segment = None


class Regions:
    """A transport's regions, by id; ids count from `first_id`."""

    def __init__(self, *, regions_max: int = REGIONS_MAX, first_id: int = 1) -> None:
        self._regions: dict[int, Region] = {}
        self._regions_max = regions_max
        self._next_id = first_id

    def __len__(self) -> int:
        return len(self._regions)

    def add(
        self, memory: object, *, name: str, writable: bool, on_poison: Callable[[Region], None] | None = None
    ) -> Region:
        """Host memory. Raises LimitReached(regions_max), and TypeError or ValueError for what cannot be registered."""
        segment = memory if isinstance(memory, MappedSegment) else None
        held = _bytes_of(memory, writable)
        return self._keep(
            Region(self._free_id(), held, name=name, writable=writable, segment=segment, on_poison=on_poison)
        )

    def add_device(
        self,
        memory: OnDevice,
        *,
        name: str,
        writable: bool,
        way: str,
        why: tuple[str, ...],
        on_poison: Callable[[Region], None] | None = None,
    ) -> Region:
        """Raises LimitReached(regions_max), and ValueError where the memory is read-only and `writable` is not."""
        if writable and not memory.writable:
            raise ValueError("memory is read-only: register it with writable=False")
        return self._keep(
            Region(self._free_id(), memory, name=name, writable=writable, on_poison=on_poison, way=way, why=why)
        )

    def _free_id(self) -> int:
        if len(self._regions) >= self._regions_max:
            raise LimitReached(f"{self._regions_max} regions are registered", limit="regions_max")
        return self._next_id

    def _keep(self, region: Region) -> Region:
        self._next_id += 1
        self._regions[region.id] = region
        return region

    def get(self, region_id: int) -> Region | None:
        return self._regions.get(region_id)

    def remove(self, region: Region) -> None:
        self._regions.pop(region.id, None)

    def all(self) -> list[Region]:
        return list(self._regions.values())


def owner_of(memory: object) -> npt.NDArray[np.generic] | None:
    """The array whose own these bytes are: while it is held, they are nobody else's. None where they belong to what is
    not an array, and may be closed, resized or freed by others.
    """
    at = memory
    while isinstance(at, np.ndarray) and at.base is not None:
        at = at.base
    return at if isinstance(at, np.ndarray) and at.flags.owndata else None


def _bytes_of(memory: object, writable: bool) -> npt.NDArray[np.uint8]:
    """The memory as a flat array that holds it. CPU only; contiguous; writable where that is asked for."""
    if isinstance(memory, MappedSegment):
        if writable and not memory.writable:
            raise ValueError("memory is a segment mapped read-only: register it with writable=False")
        return memory.writable_array(0, memory.size) if writable else memory.array(0, memory.size)
    array = _as_array(memory)
    if not array.flags.c_contiguous:
        raise ValueError("memory must be contiguous")
    if array.nbytes == 0:
        raise ValueError("memory must not be empty")
    if writable and not array.flags.writeable:
        raise ValueError("memory is read-only: register it with writable=False")
    return array.reshape(-1).view(np.uint8)


def _as_array(memory: object) -> npt.NDArray[np.generic]:
    if isinstance(memory, np.ndarray):
        if memory.dtype.hasobject:
            raise TypeError("memory must hold numbers, not Python objects")
        return memory
    try:
        view = memoryview(memory)  # type: ignore[arg-type]
    except TypeError:
        view = None
    if view is not None:
        if not view.c_contiguous:
            raise ValueError("memory must be contiguous")
        return np.frombuffer(view, dtype=np.uint8) if view.nbytes else np.empty(0, np.uint8)
    device = getattr(memory, "__dlpack_device__", None)
    if device is None:
        raise TypeError(f"memory must be a buffer, an array or a segment, not {type(memory).__name__}")
    kind = int(device()[0])
    if kind != _DLPACK_CPU:
        raise TypeError(f"memory lies on a device of DLPack type {kind}; the CPU's and CUDA's are registered")
    try:
        array: npt.NDArray[np.generic] = np.from_dlpack(memory)  # type: ignore[arg-type]
    except BufferError as error:
        raise TypeError(f"memory: {error}; hand it over as bytes (for torch: tensor.view(torch.uint8))") from error
    return array
