"""What a process has of CUDA: the driver, pinned memory, streams. Nothing is loaded or pinned before it is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from transfer.devices import cupy_bridge, digests
from transfer.devices.base import CudaDriver
from transfer.devices.crossing import QUIESCE_MAX_S, Stager
from transfer.devices.cuda import CudaUnavailable, load_cuda
from transfer.devices.staging import BUFFER_BYTES, Bytes, StagingPool, Stream
from transfer.devices.ways import WaySettings

__all__ = ["DeviceSettings", "Devices"]

STAGING_BYTES_MAX = 64 << 20
LENT_BYTES_MAX = 1 << 30

_T = TypeVar("_T")
_Starts = npt.NDArray[np.uint64]
_Lengths = npt.NDArray[np.uint32]


class _Run(Protocol):
    def __call__(self, work: Callable[[], _T], /) -> Awaitable[_T]: ...


@dataclass(frozen=True, slots=True)
class DeviceSettings:
    """`staging_bytes_max`: pinned memory of the pool, in buffers of `buffer_bytes`; `ahead_max`: of them, how many one
    transfer may have. `lent_bytes_max`: host copies of device memory that is granted and that no NIC can see.
    """

    ways: WaySettings = field(default_factory=WaySettings)
    staging_bytes_max: int = STAGING_BYTES_MAX
    buffer_bytes: int = BUFFER_BYTES
    ahead_max: int = 4
    lent_bytes_max: int = LENT_BYTES_MAX
    quiesce_max_s: float = QUIESCE_MAX_S


class Devices:
    """One a process; transports of one event loop share it. `run` does in another thread what may wait."""

    def __init__(
        self,
        settings: DeviceSettings | None = None,
        *,
        pin: Callable[[int], Bytes] = cupy_bridge.pin,
        open_stream: Callable[[int], Stream] = cupy_bridge.CupyStream,
        unavailable: Callable[[], str] = cupy_bridge.unavailable,
        load: Callable[[], CudaDriver] = load_cuda,
        hashed: Callable[[int, _Starts, _Lengths], _Starts] = digests.hashed,
        run: _Run = asyncio.to_thread,
    ) -> None:
        self.settings = settings or DeviceSettings()
        self.run = run
        self.hashed = hashed  # leaves on a device, by address and length; waits for it
        self._pin = pin
        self._open_stream = open_stream
        self._unavailable = unavailable
        self._load = load
        self._making = asyncio.Lock()
        self._stager: Stager | None = None

    def unavailable(self) -> str:
        """Why device memory cannot be copied or hashed by this process; empty where it can. May wait."""
        return self._unavailable()

    async def stager(self) -> Stager:
        """The pool is pinned with the first call. Raises CudaUnavailable, saying what is missing."""
        async with self._making:
            if self._stager is None:
                self._stager = await self.run(self._make)
            return self._stager

    def _make(self) -> Stager:
        if why := self._unavailable():
            raise CudaUnavailable(why)
        wanted = self.settings
        pool = StagingPool(self._pin, staging_bytes_max=wanted.staging_bytes_max, buffer_bytes=wanted.buffer_bytes)
        return Stager(pool, self._open_stream, ahead_max=wanted.ahead_max, quiesce_max_s=wanted.quiesce_max_s)

    def driver(self) -> tuple[CudaDriver | None, str]:
        """The driver, or None and why there is none. May wait."""
        try:
            return self._load(), ""
        except CudaUnavailable as error:
            return None, str(error)
