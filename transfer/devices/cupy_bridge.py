"""The only module that touches cupy: pinned memory, streams, and marks in them.

Rules
- cupy is imported when it is first needed, never before; what is missing is said by CudaUnavailable.
- Copies come from and go to pinned memory, so queueing one does not wait.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from types import ModuleType

import numpy as np

from transfer.devices.base import CudaError
from transfer.devices.cuda import CudaUnavailable
from transfer.devices.staging import Bytes, Mark

__all__ = ["CupyStream", "cupy_module", "pin", "unavailable"]

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost
_NOT_READY = 600  # cudaErrorNotReady


def cupy_module() -> ModuleType:
    """Raises CudaUnavailable."""
    try:
        return importlib.import_module("cupy")
    except ImportError as error:
        raise CudaUnavailable(f"cupy cannot be imported ({error}); pip install kvstore[gpu]") from error


def unavailable() -> str:
    """Why device memory cannot be copied or hashed here; empty where it can."""
    try:
        cupy = cupy_module()
        count = int(cupy.cuda.runtime.getDeviceCount())
    except CudaUnavailable as error:
        return str(error)
    except Exception as error:  # cupy's own errors exist only once it is imported
        return f"CUDA does not start: {error}"
    return "" if count else "there is no CUDA device"


def pin(count: int) -> Bytes:
    """Pinned memory, unpinned when the array and all its views are gone."""
    pointer = cupy_module().cuda.alloc_pinned_memory(count)
    return np.frombuffer(pointer, np.uint8, count)


class CupyStream:
    """See transfer.devices.staging.Stream. It does not wait for the default stream."""

    def __init__(self, device: int) -> None:
        self._cupy = cupy_module()
        self._device = device
        with self._cupy.cuda.Device(device):
            self._stream = self._cupy.cuda.Stream(non_blocking=True)

    def to_device(self, address: int, host: Bytes) -> None:
        self._copy(address, host.ctypes.data, host.nbytes, _TO_DEVICE)

    def to_host(self, host: Bytes, address: int) -> None:
        self._copy(host.ctypes.data, address, host.nbytes, _TO_HOST)

    def mark(self) -> Mark:
        with self._here("event"):
            event = self._cupy.cuda.Event(disable_timing=True)
            event.record(self._stream)
        return _CupyMark(self._cupy, event)

    def after(self, stream: int) -> None:
        cuda = self._cupy.cuda
        with self._here("wait"):
            event = cuda.Event(disable_timing=True)
            cuda.runtime.eventRecord(event.ptr, stream)
            self._stream.wait_event(event)

    def _copy(self, target: int, source: int, count: int, kind: int) -> None:
        with self._here("cudaMemcpyAsync"):
            self._cupy.cuda.runtime.memcpyAsync(target, source, count, kind, self._stream.ptr)

    def wait(self) -> None:
        """Until all that is queued has ended. Blocks: not for an event loop's thread."""
        with self._here("cudaStreamSynchronize"):
            self._stream.synchronize()

    @contextlib.contextmanager
    def _here(self, call: str) -> Iterator[None]:
        """On the stream's device; its errors told as ours."""
        try:
            with self._cupy.cuda.Device(self._device):
                yield
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise CudaError(call, int(error.status)) from error


class _CupyMark:
    def __init__(self, cupy: ModuleType, event: object) -> None:
        self._runtime = cupy.cuda.runtime
        self._event = event

    def done(self) -> bool:
        # Not Event.done: to that, a failed device is one that is not done yet.
        code = int(self._runtime.eventQuery(self._event.ptr))  # type: ignore[attr-defined]
        if code not in (0, _NOT_READY):
            raise CudaError("cudaEventQuery", code)
        return code == 0
