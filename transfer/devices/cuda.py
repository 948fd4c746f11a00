"""The CUDA driver API over ctypes: libcuda.so.1, loaded when it is first asked for.

Rules
- Signatures and numbers as in cuda.h; every call's CUresult is checked.
- The device's primary context, which frameworks use too, is made current around what needs one, and the caller's put
  back. It is retained once a device, for the life of this object.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

from transfer.devices.base import CudaError
from transfer.devices.memory import DeviceMemory
from transfer.errors import TransferFault

__all__ = ["CudaUnavailable", "LibCuda", "load_cuda"]

LIBRARY = "libcuda.so.1"
_DMA_BUF_FD = 1  # CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD
_DMA_BUF_SUPPORTED = 124  # CU_DEVICE_ATTRIBUTE_DMA_BUF_SUPPORTED
_SYNC_MEMOPS = 6  # CU_POINTER_ATTRIBUTE_SYNC_MEMOPS
_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_NOT_SUPPORTED = 801

_int, _uint, _size, _pointer = ctypes.c_int, ctypes.c_uint, ctypes.c_size_t, ctypes.c_uint64
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (_uint,),
    "cuDeviceGetCount": (ctypes.c_void_p,),
    "cuDeviceGet": (ctypes.c_void_p, _int),
    "cuDeviceGetAttribute": (ctypes.c_void_p, _int, _int),
    "cuDeviceGetPCIBusId": (ctypes.c_char_p, _int, _int),
    "cuDevicePrimaryCtxRetain": (ctypes.c_void_p, _int),
    "cuCtxPushCurrent_v2": (ctypes.c_void_p,),
    "cuCtxPopCurrent_v2": (ctypes.c_void_p,),
    "cuMemAlloc_v2": (ctypes.c_void_p, _size),
    "cuMemFree_v2": (_pointer,),
    "cuMemGetAddressRange_v2": (ctypes.c_void_p, ctypes.c_void_p, _pointer),
    "cuPointerGetAttribute": (ctypes.c_void_p, _int, _pointer),
    "cuPointerSetAttribute": (ctypes.c_void_p, _int, _pointer),
}
# Since CUDA 11.7; a driver without it exports no dma-buf.
_EXPORT = "cuMemGetHandleForAddressRange"
_EXPORT_SIGNATURE = (ctypes.c_void_p, _pointer, _size, _int, ctypes.c_ulonglong)


class CudaUnavailable(TransferFault):
    """There is no CUDA here, and why."""


def load_cuda(library: str = LIBRARY) -> LibCuda:
    """Raises CudaUnavailable, with the reason."""
    try:
        return LibCuda(ctypes.CDLL(library))
    except OSError as error:
        raise CudaUnavailable(f"no NVIDIA driver ({library}: {error})") from error
    except AttributeError as error:
        raise CudaUnavailable(f"the NVIDIA driver is too old: {error}") from error
    except CudaError as error:
        raise CudaUnavailable(f"the NVIDIA driver does not start: {error}") from error


class LibCuda:
    """See transfer.devices.base.CudaDriver."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, arguments in _SIGNATURES.items():
            getattr(library, name).argtypes = arguments
        self._library = library
        self._exports = hasattr(library, _EXPORT)
        if self._exports:
            getattr(library, _EXPORT).argtypes = _EXPORT_SIGNATURE
        self._contexts: dict[int, ctypes.c_void_p] = {}
        self._call("cuInit", 0)
        count = _int()
        self._call("cuDeviceGetCount", ctypes.byref(count))
        self.devices = count.value
        if not self.devices:
            raise CudaUnavailable("the NVIDIA driver is there, a device is not")

    def address_range(self, address: int) -> tuple[int, int]:
        base, count = _pointer(), _size()
        with self._current(self.device_of(address)):
            self._call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(count), address)
        return base.value, count.value

    def device_of(self, address: int) -> int:
        """The ordinal of the device whose memory this is."""
        ordinal = _int()
        self._call("cuPointerGetAttribute", ctypes.byref(ordinal), _ORDINAL, address)
        return ordinal.value

    def exports_dma_buf(self, device: int) -> bool:
        value = _int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), _DMA_BUF_SUPPORTED, self._device(device))
        return self._exports and value.value == 1

    def export_dma_buf(self, address: int, count: int) -> int:
        if not self._exports:
            raise CudaError(_EXPORT, _NOT_SUPPORTED)
        fd = _int(-1)
        with self._current(self.device_of(address)):
            # Flags 0: asking for the mapping over PCIe fails with 801 on newer devices.
            self._call(_EXPORT, ctypes.byref(fd), address, count, _DMA_BUF_FD, 0)
        return fd.value

    def sync_memops(self, address: int) -> None:
        yes = _uint(1)
        with self._current(self.device_of(address)):
            self._call("cuPointerSetAttribute", ctypes.byref(yes), _SYNC_MEMOPS, address)

    def pci_address(self, device: int) -> str:
        text = ctypes.create_string_buffer(32)
        self._call("cuDeviceGetPCIBusId", text, len(text), self._device(device))
        return text.value.decode("ascii").lower()

    @contextlib.contextmanager
    def scratch(self, device: int, count: int) -> Iterator[DeviceMemory]:
        """Memory of the device, freed at the end."""
        address = _pointer()
        with self._current(device):
            self._call("cuMemAlloc_v2", ctypes.byref(address), count)
        try:
            yield DeviceMemory(address.value, count, device)
        finally:
            with self._current(device):
                self._call("cuMemFree_v2", address)

    def _device(self, ordinal: int) -> int:
        handle = _int()
        self._call("cuDeviceGet", ctypes.byref(handle), ordinal)
        return handle.value

    @contextlib.contextmanager
    def _current(self, ordinal: int) -> Iterator[None]:
        if ordinal not in self._contexts:
            context = ctypes.c_void_p()
            self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(ordinal))
            self._contexts[ordinal] = context
        self._call("cuCtxPushCurrent_v2", self._contexts[ordinal])
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    def _call(self, name: str, *arguments: object) -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            raise CudaError(name, code)
