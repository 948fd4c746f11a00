"""What device memory needs of others: the CUDA driver, and a NIC that registers memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from transfer.errors import TransferFault

__all__ = ["CudaDriver", "CudaError", "DmaBuf", "Nic"]


class CudaError(TransferFault):
    """A call to the CUDA driver failed. `code` is its CUresult."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call}: CUDA error {code}")
        self.code = code


class CudaDriver(Protocol):
    """The few calls of the driver API that registering needs. All may raise CudaError; none waits for a stream."""

    def address_range(self, address: int) -> tuple[int, int]:
        """(base, bytes) of the allocation that holds this address."""
        ...

    def exports_dma_buf(self, device: int) -> bool: ...

    def export_dma_buf(self, address: int, count: int) -> int:
        """An open descriptor, the caller's to close. Both are multiples of the page size."""
        ...

    def sync_memops(self, address: int) -> None:
        """Copies that say they are synchronous really are over, from now on, for the allocation at this address."""
        ...

    def pci_address(self, device: int) -> str:
        """As 0000:3b:00.0."""
        ...


@dataclass(frozen=True, slots=True)
class DmaBuf:
    """`bytes` from `offset` on in the buffer behind descriptor `fd`."""

    fd: int
    offset: int
    bytes: int


class Nic(Protocol):
    """A NIC's protection domain. All raise OSError and may wait."""

    @property
    def name(self) -> str: ...

    def register_dma_buf(self, part: DmaBuf, address: int) -> int:
        """A handle. The NIC knows the first byte of `part` as `address`, which lies as far into a page as `part`."""
        ...

    def register_address(self, address: int, count: int) -> int:
        """A handle. The NIC's addresses are the CUDA addresses; needs a peer memory module in the kernel."""
        ...

    def deregister(self, handle: int) -> None: ...
