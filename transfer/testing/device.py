"""A device that is none: memory that only copies of its streams may touch while they are under way, each later than it
was asked for. What answers before its copies are over is found out: they land afterwards.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

from transfer.base import Region
from transfer.devices.base import CudaError
from transfer.devices.crossing import Crossing, Stager
from transfer.devices.memory import DeviceMemory
from transfer.devices.process import Devices, DeviceSettings
from transfer.devices.staging import Bytes
from transfer.devices.ways import Way
from transfer.testing.parties import Pair
from transfer.testing.simulated import SimulatedNetwork, SimulatedTransport

__all__ = ["DevicePair", "DirectTransport", "EagerStager", "SimulatedDevice", "simulated_devices"]

_BASE = 1 << 44
_APART = 64 << 10
_T = TypeVar("_T")
_Digests = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceArray:
    """As a framework's array shows itself. `streams`: the one that it names now, if any, is the last."""

    memory: DeviceMemory
    streams: list[int] = field(default_factory=list)

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        one, stream = self.memory, self.streams[-1] if self.streams else None
        place = (one.address, not one.writable)
        return {"shape": (one.bytes,), "typestr": "|u1", "data": place, "version": 3, "stream": stream}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.memory.device

    def __bool__(self) -> bool:
        raise ValueError("the truth value of an array with more than one element is ambiguous")

    def __eq__(self, other: object) -> bool:
        raise ValueError("arrays are compared by their elements, on the device")

    __hash__ = None  # type: ignore[assignment]


class SimulatedDevice:
    """Copies end `latency_s` after the one before them on their stream has."""

    def __init__(self, seed: int = 1, latency_s: tuple[float, float] = (20e-6, 400e-6), ordinal: int = 0) -> None:
        self.chance = random.Random(seed)
        self.latency_s = latency_s
        self.ordinal = ordinal
        self.broken = False  # a fault to inject: marks raise, as after an illegal address
        self.copies = 0
        self.hashed = 0  # leaves, by its kernel
        self.hung = False  # another: no copy that is under way or begins ends
        self.waited_for: list[int] = []
        self.producers: dict[int, list[Callable[[], None]]] = {}  # by stream: work that ends when somebody waits for it
        self._allocations: list[tuple[int, Bytes]] = []
        self._next = _BASE

    def array(self, size: int) -> tuple[DeviceArray, Bytes]:
        """Zeroed memory, and its contents as a test looks at them."""
        content: Bytes = np.zeros(size, dtype=np.uint8)
        address, self._next = self._next, self._next + size + _APART
        self._allocations.append((address, content))
        return DeviceArray(DeviceMemory(address, size, self.ordinal)), content

    def at(self, address: int, count: int) -> Bytes:
        for start, content in self._allocations:
            if start <= address and address + count <= start + len(content):
                return content[address - start : address - start + count]
        raise AssertionError(f"no allocation has [{address}, {address + count})")

    def hash(self, device: int, starts: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint32]) -> _Digests:
        """As transfer.devices.digests.hashed."""
        assert device == self.ordinal
        if self.broken:
            raise CudaError("cuLaunchKernel", 700)
        self.hashed += len(starts)
        leaves = [self.at(start, count) for start, count in zip(starts.tolist(), lengths.tolist(), strict=True)]
        return np.array([xxhash.xxh3_64_intdigest(leaf.tobytes()) for leaf in leaves], dtype=np.uint64)

    def finish(self, stream: int) -> None:
        """What a kernel of that stream had to do."""
        for work in self.producers.pop(stream, []):
            work()

    def open_stream(self, device: int) -> SimulatedStream:
        assert device == self.ordinal
        return SimulatedStream(self)


class SimulatedStream:
    """See transfer.devices.staging.Stream."""

    def __init__(self, device: SimulatedDevice) -> None:
        self.device = device
        self.ended = 0
        self._queued = 0
        self._copies: deque[Callable[[], None]] = deque()

    def to_device(self, address: int, host: Bytes) -> None:
        place = self.device.at(address, len(host))
        self.device.copies += 1
        self._queue(lambda: np.copyto(place, host))

    def to_host(self, host: Bytes, address: int) -> None:
        place = self.device.at(address, len(host))
        self.device.copies += 1
        self._queue(lambda: np.copyto(host, place))

    def mark(self) -> SimulatedMark:
        return SimulatedMark(self, self._queued)

    def after(self, stream: int) -> None:
        self.device.waited_for.append(stream)
        self._queue(lambda: self.device.finish(stream))

    def _queue(self, copy: Callable[[], None]) -> None:
        self._queued += 1
        self._copies.append(copy)
        if len(self._copies) == 1:
            self._later()

    def _later(self) -> None:
        asyncio.get_running_loop().call_later(self.device.chance.uniform(*self.device.latency_s), self._step)

    def _step(self) -> None:
        if self.device.hung:
            self._later()
            return
        self._copies.popleft()()
        self.ended += 1
        if self._copies:
            self._later()


class SimulatedMark:
    def __init__(self, stream: SimulatedStream, place: int) -> None:
        self._stream = stream
        self._place = place

    def done(self) -> bool:
        if self._stream.device.broken:
            raise CudaError("cudaEventQuery", 700)
        return self._stream.ended >= self._place


def simulated_devices(device: SimulatedDevice, settings: DeviceSettings | None = None) -> Devices:
    """What a process has of CUDA where this is the device. Everything runs on the event loop."""

    async def run(work: Callable[[], _T]) -> _T:
        return work()

    return Devices(
        settings,
        pin=lambda count: np.zeros(count, np.uint8),
        open_stream=device.open_stream,
        unavailable=lambda: "",
        hashed=device.hash,
        run=run,
    )


class DirectTransport(SimulatedTransport):
    """Its hardware reaches the device by itself."""

    def __init__(self, network: SimulatedNetwork, address: str, device: SimulatedDevice) -> None:
        super().__init__(network, address)
        self.device = device

    async def register_device(
        self, memory: DeviceMemory, *, name: str, writable: bool, on_poison: Callable[[Region], None] | None
    ) -> Region:
        return self._regions.add_device(
            memory, name=name, writable=writable, way=Way.DMA_BUF, why=(), on_poison=on_poison
        )

    def memory_of(self, region: Region) -> Bytes:
        if region.device is None:
            return super().memory_of(region)
        return self.device.at(region.address, region.bytes)


class EagerStager(Stager):
    """Faulty: answers when copies are queued."""

    async def cross(self, pieces, carry, *, after=None):  # type: ignore[no-untyped-def]
        async def hasty(crossing: Crossing, piece: object) -> None:
            crossing.drained = _at_once(crossing)  # type: ignore[method-assign]
            await carry(crossing, piece)

        await super().cross(pieces, hasty, after=after)


def _at_once(crossing: Crossing) -> Callable[[], Coroutine[Any, Any, None]]:
    async def drained() -> None:
        crossing._devices.clear()

    return drained


@dataclass(frozen=True, slots=True)
class DevicePair(Pair):
    """The reader's memory lies on a device."""

    device: SimulatedDevice

    async def memory(self, size: int, *, writable: bool = True) -> tuple[Region, Bytes]:
        array, content = self.device.array(size)
        return await self.reader.register(array, writable=writable), content
