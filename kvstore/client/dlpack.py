"""Reads where a DLPack tensor lies: address, bytes, whether it may be written. Any dtype, bfloat16 and fp8 included,
which numpy's own reader refuses. Layouts: dlpack.h, versions 0.x ("dltensor") and 1.x ("dltensor_versioned").

The capsule is never consumed: as long as it lives, its maker keeps the memory; when it goes, its destructor tells so.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

HOST_KINDS: Final = frozenset({1, 3, 11})  # CPU, pinned by CUDA, pinned by ROCm
DEVICE_NAMES: Final = {2: "CUDA", 4: "OpenCL", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "managed CUDA memory"}
_READ_ONLY: Final = 1


class _Device(ctypes.Structure):
    _fields_ = (("kind", ctypes.c_int32), ("index", ctypes.c_int32))


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device", _Device),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
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
    """Where a contiguous tensor lies. `capsule` keeps it there."""

    address: int
    length: int
    writable: bool
    capsule: object


def device_of(tensor: object) -> str | None:
    """The name of the device that a tensor lies on, None for host memory. ValueError where it does not say."""
    ask = getattr(tensor, "__dlpack_device__", None)
    if ask is None:
        raise ValueError("has __dlpack__ and no __dlpack_device__")
    kind = int(ask()[0])
    return None if kind in HOST_KINDS else DEVICE_NAMES.get(kind, f"DLPack device {kind}")


def lying(tensor: object) -> Lying:
    """ValueError says what is wrong with it."""
    capsule = _capsule(tensor)
    is_valid, pointer_of = _capsule_calls()
    if is_valid(capsule, b"dltensor_versioned"):
        whole = _Versioned.from_address(pointer_of(capsule, b"dltensor_versioned"))
        if whole.major != 1:
            raise ValueError(f"speaks DLPack {whole.major}, this reads 0 and 1")
        inner, writable = whole.tensor, not whole.flags & _READ_ONLY
    elif is_valid(capsule, b"dltensor"):
        inner, writable = _Tensor.from_address(pointer_of(capsule, b"dltensor")), True
    else:
        raise ValueError("its __dlpack__ gave no unused DLPack capsule")
    shape = [inner.shape[axis] for axis in range(inner.ndim)]
    if inner.strides and not _contiguous(shape, [inner.strides[axis] for axis in range(inner.ndim)]):
        raise ValueError("is not contiguous; name its pieces with Extents")
    items = 1
    for extent in shape:
        items *= extent
    length = (items * inner.dtype.bits * inner.dtype.lanes + 7) // 8
    return Lying((inner.data or 0) + inner.byte_offset, length, writable, capsule)


def _capsule(tensor: object) -> object:
    make = getattr(tensor, "__dlpack__")  # noqa: B009 - no type has it in common
    try:
        try:
            return make(max_version=(1, 0))
        except TypeError:  # before DLPack 1.0
            return make()
    except (BufferError, RuntimeError) as error:  # what torch says of tensors that need grad
        raise ValueError(f"cannot be lent: {error}") from error


def _contiguous(shape: list[int], strides: list[int]) -> bool:
    if 0 in shape:
        return True
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


@cache
def _capsule_calls() -> tuple[Callable[[object, bytes], int], Callable[[object, bytes], int]]:
    # Prototypes of our own: changing those of the shared ctypes.pythonapi would be felt elsewhere.
    is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)
    pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    return is_valid(("PyCapsule_IsValid", ctypes.pythonapi)), pointer_of(("PyCapsule_GetPointer", ctypes.pythonapi))
