"""Where a DLPack tensor lies: on which device, address, bytes, whether it may be written. Any dtype, bfloat16 and fp8
included, which numpy's own reader refuses. Layouts: dlpack.h, versions 0.x ("dltensor") and 1.x ("dltensor_versioned").

The capsule is never consumed: as long as it lives, its maker keeps the memory; when it goes, its destructor tells so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from math import prod
from typing import Final

__all__ = ["HOST_KINDS", "Kind", "Lying", "kind_name", "kind_of", "lies_contiguous", "lying"]

_READ_ONLY: Final = 1  # DLPACK_FLAG_BITMASK_READ_ONLY


class Kind(IntEnum):
    """DLDeviceType, as far as somebody here asks for it."""

    CPU = 1
    CUDA = 2
    CUDA_HOST = 3
    OPENCL = 4
    VULKAN = 7
    METAL = 8
    ROCM = 10
    ROCM_HOST = 11
    CUDA_MANAGED = 13


HOST_KINDS: Final = frozenset({Kind.CPU, Kind.CUDA_HOST, Kind.ROCM_HOST})
_NAMES: Final = {
    Kind.CPU: "the CPU's",
    Kind.CUDA: "CUDA device",
    Kind.CUDA_HOST: "pinned host",
    Kind.OPENCL: "OpenCL",
    Kind.VULKAN: "Vulkan",
    Kind.METAL: "Metal",
    Kind.ROCM: "ROCm",
    Kind.ROCM_HOST: "pinned ROCm host",
    Kind.CUDA_MANAGED: "CUDA managed",
}


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_uint64),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


@dataclass(frozen=True, slots=True)
class Lying:
    """Where a tensor lies. `capsule` keeps it there. `bits`: of all its items; `bytes`: rounded up."""

    address: int
    bits: int
    kind: int
    device: int
    writable: bool
    contiguous: bool
    capsule: object

    @property
    def bytes(self) -> int:
        return -(-self.bits // 8)


def kind_of(array: object) -> tuple[int, int]:
    """(DLDeviceType, ordinal), as an array with `__dlpack_device__` says it."""
    kind, ordinal = array.__dlpack_device__()  # type: ignore[attr-defined]
    return int(kind), int(ordinal)


def kind_name(kind: int) -> str:
    """For messages: whose memory it is."""
    name = {int(one): name for one, name in _NAMES.items()}.get(kind)
    return f"{name} memory" if name else f"memory of DLPack device type {kind}"


def lying(array: object, *, stream: int | None = None) -> Lying:
    """`stream`: as `__dlpack__` is asked for a device's memory; -1: to order nothing. TypeError says what is no DLPack,
    and whatever its maker raises goes through.
    """
    capsule = _capsule(array, {} if stream is None else {"stream": stream})
    is_valid, pointer_of = _capsule_calls()
    if is_valid(capsule, b"dltensor_versioned"):
        whole = _Versioned.from_address(pointer_of(capsule, b"dltensor_versioned"))
        if whole.major != 1:
            raise TypeError(f"speaks DLPack {whole.major}, this reads 0 and 1")
        inner, writable = whole.tensor, not whole.flags & _READ_ONLY
    elif is_valid(capsule, b"dltensor"):
        inner, writable = _Tensor.from_address(pointer_of(capsule, b"dltensor")), True
    else:
        raise TypeError("its __dlpack__ gave no unused DLPack capsule")
    shape = [int(inner.shape[axis]) for axis in range(inner.ndim)]
    strides = [int(inner.strides[axis]) for axis in range(inner.ndim)] if inner.strides else None
    return Lying(
        int(inner.data) + int(inner.byte_offset),
        prod(shape) * inner.bits * inner.lanes,
        int(inner.device_type),
        int(inner.device_id),
        writable,
        strides is None or lies_contiguous(shape, strides, 1),
        capsule,
    )


def lies_contiguous(shape: Sequence[int], strides: Sequence[int], item: int) -> bool:
    """C order without gaps. `item`: what a stride of one item is counted as."""
    if len(shape) != len(strides):
        return False
    if 0 in shape:
        return True  # of nothing, strides say nothing
    step = item
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:  # an axis of one is never stepped over
            return False
        step *= extent
    return True


def _capsule(array: object, asked: dict[str, int]) -> object:
    make = getattr(array, "__dlpack__")  # noqa: B009 - no type has it in common
    try:
        return make(**asked, max_version=(1, 0))
    except TypeError:
        return make(**asked)  # older than version 1, which cannot say that memory is read-only


@cache
def _capsule_calls() -> tuple[Callable[[object, bytes], int], Callable[[object, bytes], int]]:
    # Prototypes of our own: changing those of the shared ctypes.pythonapi would be felt elsewhere.
    is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return is_valid(("PyCapsule_IsValid", ctypes.pythonapi)), pointer_of(("PyCapsule_GetPointer", ctypes.pythonapi))
