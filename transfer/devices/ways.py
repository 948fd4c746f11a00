"""How NICs get at device memory: by a dma-buf, by peer memory, or through pinned host memory.

  dma-buf   [first page ... last page] of the memory exported once; every NIC registers (offset, bytes) of it
  peermem   every NIC registers the CUDA address itself
  staged    no NIC sees the memory: bytes pass through the staging pool

Rules
- In this order, whatever the settings leave; all NICs by the same way or none. What was tried and failed leaves nothing
  behind, and is told as a reason.
- A dma-buf that the memory's owner has made is taken as it is, and left open; it may be where the driver makes none.
  Else the descriptor is closed when every NIC has registered, or one has not: registrations hold the memory by
  themselves, and one descriptor for all NICs is one window of the device's.
- Either way a NIC knows the memory by its CUDA addresses.
- Direct only where synchronous copies are over when they say so (SYNC_MEMOPS): else a NIC may read bytes from before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from transfer.devices.base import CudaDriver, CudaError, DmaBuf, Nic
from transfer.devices.memory import DeviceMemory
from transfer.errors import TransferFault

__all__ = ["NoWay", "Reached", "Way", "WaySettings", "exported", "reach"]

_KERNEL_LEAST = (5, 12)
_ADVICE = {
    errno.EOPNOTSUPP: "the NIC's driver does not support it",
    errno.EPROTONOSUPPORT: "the kernel does not support it",
    errno.EINVAL: "the NIC refuses this memory",
    errno.EFAULT: "no peer memory module is loaded (nvidia_peermem)",
    errno.ENOMEM: "the device's window (BAR1) or the NIC is full",
}


class Way(StrEnum):
    DMA_BUF = "dma_buf"
    PEERMEM = "peermem"
    STAGED = "staged"


class NoWay(TransferFault):
    """The settings allow no way that works here."""


@dataclass(frozen=True, slots=True)
class WaySettings:
    """`ways` are those allowed, in any order; one alone is forced.

    `caller_synchronizes`: direct also for memory that refuses SYNC_MEMOPS (CUDA's virtual memory, as with torch's
    expandable_segments). The caller then promises to wait for its streams before it hands memory over.
    """

    ways: frozenset[Way] = frozenset(Way)
    caller_synchronizes: bool = False

    def __post_init__(self) -> None:
        if not self.ways:
            raise ValueError(f"ways must hold at least one of {', '.join(Way)}")


@dataclass(frozen=True, slots=True)
class Reached:
    """`handles[i]` is the i-th NIC's registration, none when staged. `why` says, for every better way, why it is not
    used.
    """

    way: Way
    handles: tuple[int, ...]
    why: tuple[str, ...]


class _Refused(Exception):
    """This way does not work, and why."""


def reach(
    memory: DeviceMemory,
    nics: Sequence[Nic],
    driver: CudaDriver | None,
    settings: WaySettings,
    *,
    no_driver: str = "",
    kernel: str = "",
    page_bytes: int = 0,
    close: Callable[[int], None] = os.close,
) -> Reached:
    """Registers the memory with all NICs by the best way there is. May wait: not for an event loop's thread.

    `driver` None: `no_driver` says why. Kernel release and page size are the machine's unless given. Raises NoWay, with
    every reason, and OSError where a NIC will not let go of what was half-way registered.
    """
    page = page_bytes or os.sysconf("SC_PAGE_SIZE")
    why: list[str] = []
    direct: dict[Way, Callable[[CudaDriver], list[int]]] = {
        Way.DMA_BUF: lambda cuda: _by_dma_buf(memory, nics, cuda, kernel or os.uname().release, page, close),
        Way.PEERMEM: lambda _cuda: _by_address(memory, nics),
    }
    for way, attempt in direct.items():
        try:
            if way not in settings.ways:
                raise _Refused("not allowed by the settings")
            if not nics:
                raise _Refused("there is no NIC")
            if driver is None:
                raise _Refused(no_driver or "there is no CUDA driver")
            _synchronize(memory, driver, settings)
            return Reached(way, tuple(attempt(driver)), tuple(why))
        except _Refused as refused:
            why += [f"{way}: {refused}"]
    if Way.STAGED not in settings.ways:
        raise NoWay("; ".join([*why, "staged: not allowed by the settings"]))
    return Reached(Way.STAGED, (), tuple(why))


def _synchronize(memory: DeviceMemory, driver: CudaDriver, settings: WaySettings) -> None:
    try:
        driver.sync_memops(memory.address)
    except CudaError as error:
        if not settings.caller_synchronizes:
            raise _Refused(f"the memory refuses SYNC_MEMOPS ({error}); see caller_synchronizes") from error


def _by_address(memory: DeviceMemory, nics: Sequence[Nic]) -> list[int]:
    return _on_all(nics, lambda nic: nic.register_address(memory.address, memory.bytes))


def _by_dma_buf(
    memory: DeviceMemory, nics: Sequence[Nic], driver: CudaDriver, kernel: str, page: int, close: Callable[[int], None]
) -> list[int]:
    if _release(kernel) < _KERNEL_LEAST:
        raise _Refused(f"kernel {kernel} is older than 5.12")
    try:
        if memory.dma_buf is None and not driver.exports_dma_buf(memory.device):
            raise _Refused("the CUDA driver does not export dma-bufs (open kernel modules do)")
        with exported(memory, driver, page_bytes=page, close=close) as part:
            return _on_all(nics, lambda nic: nic.register_dma_buf(part, memory.address))
    except CudaError as error:
        raise _Refused(f"{error}{_crossing(memory, driver)}") from error


@contextlib.contextmanager
def exported(
    memory: DeviceMemory, driver: CudaDriver, *, page_bytes: int = 0, close: Callable[[int], None] = os.close
) -> Iterator[DmaBuf]:
    """The memory as a dma-buf of whole pages, while the block runs; what has been registered of it stays. Raises
    CudaError.
    """
    if memory.dma_buf is not None:
        yield memory.dma_buf
        return
    page = page_bytes or os.sysconf("SC_PAGE_SIZE")
    first = memory.address // page * page
    last = -(-(memory.address + memory.bytes) // page) * page
    fd = driver.export_dma_buf(first, last - first)
    try:
        yield DmaBuf(fd, memory.address - first, memory.bytes)
    finally:
        close(fd)


def _crossing(memory: DeviceMemory, driver: CudaDriver) -> str:
    """What a refused export is worth knowing: the memory is no device memory, or more than one allocation."""
    try:
        base, count = driver.address_range(memory.address)
    except CudaError:
        return "; the driver does not know this address"
    if memory.address + memory.bytes > base + count:
        return f"; the memory goes beyond the allocation of {count} bytes that it begins in"
    return ""


def _on_all(nics: Sequence[Nic], register: Callable[[Nic], int]) -> list[int]:
    made: list[int] = []
    for nic in nics:
        try:
            made += [register(nic)]  # one by one: those made so far are let go if the next one fails
        except Exception as error:
            _let_go(nics, made)
            if not isinstance(error, OSError):
                raise  # a limit of ours, or a mistake: no other way would do better
            number = error.errno or 0
            text = _ADVICE.get(number, error.strerror or str(error))
            raise _Refused(f"{nic.name}: {text} ({errno.errorcode.get(number, number)})") from error
    return made


def _let_go(nics: Sequence[Nic], made: Sequence[int]) -> None:
    """All that can be; then the first error."""
    errors: list[OSError] = []
    for nic, handle in zip(nics, made, strict=False):
        try:
            nic.deregister(handle)
        except OSError as error:
            errors += [error]
    if errors:
        raise errors[0]


def _release(kernel: str) -> tuple[int, int]:
    match = re.match(r"(\d+)\.(\d+)", kernel)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)
