"""Leaf digests of device memory, computed where it lies: eight bytes a leaf cross the bus, not 4 KiB.

Rules
- A part is (offset, bytes); its leaves are 4 KiB from its beginning on, the last one short: as everywhere else.
- The kernel is leaves.cu, compiled for the device at first use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from transfer.base import LEAF_BYTES
from transfer.devices.cupy_bridge import cupy_module
from transfer.devices.memory import DeviceMemory

__all__ = ["KERNEL", "THREADS", "hashed", "leaf_digests", "leaf_table"]

KERNEL = Path(__file__).with_name("leaves.cu")
THREADS = 64
_LANES = 8


def leaf_table(
    memory: DeviceMemory, parts: Sequence[tuple[int, int]]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Address and length of each leaf of each part, in order. Raises ValueError for a part beyond the memory."""
    starts: list[npt.NDArray[np.uint64]] = [np.empty(0, np.uint64)]
    lengths: list[npt.NDArray[np.uint32]] = [np.empty(0, np.uint32)]
    for offset, count in parts:
        if offset < 0 or count < 0 or offset + count > memory.bytes:
            raise ValueError(f"part [{offset}, {offset + count}) is beyond the memory's {memory.bytes} bytes")
        steps = np.arange(0, count, LEAF_BYTES, dtype=np.uint64)
        starts += [steps + np.uint64(memory.address + offset)]
        lengths += [np.minimum(np.uint64(count) - steps, np.uint64(LEAF_BYTES)).astype(np.uint32)]
    return np.concatenate(starts), np.concatenate(lengths)


def leaf_digests(memory: DeviceMemory, parts: Sequence[tuple[int, int]]) -> npt.NDArray[np.uint64]:
    """XXH3-64 of each leaf of each part, in order. Waits for the device: not for an event loop's thread. What other
    streams still write must have ended. Raises CudaUnavailable without cupy.
    """
    starts, lengths = leaf_table(memory, parts)
    return hashed(memory.device, starts, lengths)


def hashed(device: int, starts: npt.NDArray[np.uint64], lengths: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """XXH3-64 of each leaf, given where it lies and how long it is (1 to 4,096 bytes). As `leaf_digests`."""
    cupy = cupy_module()
    if not len(starts):
        return np.empty(0, np.uint64)
    with cupy.cuda.Device(device):
        stream = cupy.cuda.Stream(non_blocking=True)
        with stream:
            digests = cupy.empty(len(starts), cupy.uint64)
            blocks = -(-len(starts) // (THREADS // _LANES))
            _kernel()(
                (blocks,), (THREADS,), (cupy.asarray(starts), cupy.asarray(lengths), digests, np.uint64(len(starts)))
            )
            result: npt.NDArray[np.uint64] = cupy.asnumpy(digests, stream=stream)
        stream.synchronize()
    return result


@functools.cache
def _kernel() -> Callable[..., None]:
    source = KERNEL.read_text(encoding="utf-8")
    kernel: Callable[..., None] = cupy_module().RawKernel(source, "leaf_digests", options=("--std=c++17",))
    return kernel
