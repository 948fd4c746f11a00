"""Device memory within a NIC's reach: GPUDirect, by dma-bufs or a peer memory module (transfer.devices.ways).

Rules
- All of this may wait: not for an event loop's thread.
- A NIC knows device memory by its CUDA addresses, so a region of it is as any other to who moves bytes.
- Every registration of a grant exports the memory anew: a descriptor that is kept would hold a window of the device's.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from transfer.devices.base import CudaError, DmaBuf
from transfer.devices.memory import DeviceMemory, device_memory
from transfer.devices.process import Devices
from transfer.devices.ways import Reached, Way, exported, reach
from transfer.rdma.registrar import Asked, Mended, Registered, as_asked
from transfer.regions import Region

__all__ = ["Card", "bus_address", "reached", "source_of"]


@dataclass(slots=True)
class Card:
    """A device's protection domain, as transfer.devices.base.Nic; `made` are its registrations, by handle."""

    name: str
    pd: int
    writable: bool
    register: Callable[[Asked], Registered]
    let_go: Callable[[int], None]
    made: dict[int, Registered]

    def register_dma_buf(self, part: DmaBuf, address: int) -> int:
        return self._keep(Asked(self.pd, part.offset, part.bytes, address, self.writable, dma_buf=part.fd))

    def register_address(self, address: int, count: int) -> int:
        return self._keep(Asked(self.pd, address, count, address, self.writable))

    def deregister(self, handle: int) -> None:
        self.let_go(handle)
        del self.made[handle]

    def _keep(self, asked: Asked) -> int:
        one = self.register(asked)
        self.made[one.handle] = one
        return one.handle


def reached(memory: DeviceMemory, cards: Sequence[Card], devices: Devices) -> tuple[Reached, list[Registered]]:
    """Registers the memory with every card by the best way, for transfers of our own. Raises NoWay, OSError."""
    driver, missing = devices.driver()
    found = reach(memory, cards, driver, devices.settings.ways, no_driver=missing)
    return found, [card.made[handle] for card, handle in zip(cards, found.handles, strict=False)]


def bus_address(memory: DeviceMemory, devices: Devices) -> str:
    """Of the device that the memory lies on; "" where the driver does not say."""
    driver, _ = devices.driver()
    try:
        return driver.pci_address(memory.device) if driver is not None else ""
    except CudaError:
        return ""


def source_of(region: Region, devices: Devices) -> Callable[[], contextlib.AbstractContextManager[Mended]]:
    """How parts of a region are asked for, while the block runs: by address, or as parts of a dma-buf. The block raises
    OSError where the driver exports nothing any more.
    """
    if region.way != Way.DMA_BUF:
        return as_asked
    memory = device_memory(region.device_memory)

    @contextlib.contextmanager
    def parts() -> Iterator[Mended]:
        driver, missing = devices.driver()
        if driver is None:
            raise OSError(errno.ENODEV, missing)
        try:
            with exported(memory, driver) as whole:
                yield lambda one: replace(one, address=one.address - memory.address + whole.offset, dma_buf=whole.fd)
        except CudaError as error:
            raise OSError(errno.EIO, str(error)) from error

    return parts
