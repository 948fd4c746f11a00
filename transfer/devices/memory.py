"""Device memory as a caller hands it over: from `__cuda_array_interface__`, from DLPack, or as a plain address.

Rules
- Nothing here calls the driver: what an array says of itself is enough. DLPack is asked not to wait for any stream.
- Only whole, C-contiguous memory; what is refused is named. Managed and pinned host memory are not device memory.
- The owner is held as long as the DeviceMemory lives; for DLPack that is the producer's capsule, never consumed.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

__all__ = ["DeviceMemory", "device_memory", "on_device"]

_CUDA = 2  # kDLCUDA
_KINDS = {1: "the CPU's", 3: "pinned host", 10: "ROCm", 11: "pinned ROCm host", 13: "CUDA managed"}
_READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY
_TYPE = re.compile(r"[<>|=]?([?a-zA-Z])(\d+)")
_ADDRESSES = 1 << 64


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """`bytes` at `address` of CUDA device `device`, valid while `owner` lives.

    `stream` (a CUDA stream handle) is where work that still touches it may be queued: it is waited for before the first
    transfer. None: the producer says there is none, or does not say.
    """

    address: int
    bytes: int
    device: int
    writable: bool = True
    owner: object = field(default=None, repr=False, compare=False)
    stream: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("address", 1), ("bytes", 1), ("device", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.address + self.bytes > _ADDRESSES:
            raise ValueError("address + bytes goes beyond the address space")


def device_memory(memory: object, *, device: int | None = None) -> DeviceMemory:
    """The memory of a cupy, torch, numba or other array. `device` is its ordinal where the array cannot say it.

    Raises TypeError for what is not in CUDA device memory, ValueError for what is not contiguous, is empty, or lies on
    another device than the one given.
    """
    if isinstance(memory, DeviceMemory):
        taken = memory
    elif _has(memory, "__cuda_array_interface__"):
        taken = _by_interface(memory, _told_device(memory, device))
    elif _has(memory, "__dlpack__"):
        _told_device(memory, device)
        taken = _by_dlpack(memory)
    else:
        raise TypeError(
            "memory must have __cuda_array_interface__ or __dlpack__, or be a DeviceMemory, "
            f"not {type(memory).__name__}"
        )
    if device is not None and taken.device != device:
        raise ValueError(f"memory lies on device {taken.device}, not on {device}")
    return taken


def on_device(memory: object) -> bool:
    """Whether this is memory of a CUDA device, as far as it says itself."""
    if isinstance(memory, DeviceMemory):
        return True
    kind = getattr(memory, "__dlpack_device__", None)
    if kind is not None:
        return int(kind()[0]) == _CUDA
    return _has(memory, "__cuda_array_interface__")


def _has(memory: object, name: str) -> bool:
    """Some arrays have the attribute and refuse it (torch: types that NumPy does not know, tensors on the CPU)."""
    try:
        return getattr(memory, name, None) is not None
    except (TypeError, RuntimeError, KeyError):
        return False


def _told_device(memory: object, given: int | None) -> int | None:
    asked = getattr(memory, "__dlpack_device__", None)
    if asked is None:
        return given
    kind, ordinal = (int(part) for part in asked())
    if kind != _CUDA:
        raise TypeError(f"memory is {_KINDS.get(kind, f'of DLPack device type {kind}')} memory, not a CUDA device's")
    return ordinal


# -- __cuda_array_interface__, versions 2 and 3


def _by_interface(memory: object, device: int | None) -> DeviceMemory:
    told = memory.__cuda_array_interface__  # type: ignore[attr-defined]
    if not isinstance(told, Mapping):
        raise TypeError("__cuda_array_interface__ must be a mapping")
    version = told.get("version")
    if version not in (2, 3):
        raise TypeError(f"__cuda_array_interface__ must be of version 2 or 3, not {version!r}")
    if told.get("mask") is not None:
        raise TypeError("memory has a mask: hand over its data")
    if device is None:
        raise ValueError("device must be given: the array does not say where it lies")
    size, shape = _item_bytes(told.get("typestr")), _lengths(told.get("shape"), "shape")
    strides = told.get("strides")
    if strides is not None:
        _require_contiguous(shape, _lengths(strides, "strides"), size)
    try:
        address, read_only = told["data"]
    except (KeyError, TypeError, ValueError):
        raise TypeError("__cuda_array_interface__ must give data as (address, read-only)") from None
    return DeviceMemory(
        int(address or 0) or _refuse_empty(),
        prod(shape) * size or _refuse_empty(),
        device,
        not read_only,
        memory,
        _stream(told.get("stream") if version >= 3 else None),
    )


def _item_bytes(typestr: object) -> int:
    match = _TYPE.fullmatch(typestr) if isinstance(typestr, str) else None
    if match is None or match.group(1) == "O":
        raise TypeError(f"memory must hold numbers, not {typestr!r}")
    return int(match.group(2))


def _lengths(told: object, name: str) -> tuple[int, ...]:
    if not isinstance(told, Sequence) or not all(isinstance(one, int) for one in told):
        raise TypeError(f"__cuda_array_interface__ must give {name} as a tuple of int")
    return tuple(told)


def _stream(told: object) -> int | None:
    """1 is the legacy default stream, 2 the per-thread one, others are handles; 0 is forbidden as ambiguous."""
    if told is None:
        return None
    if not isinstance(told, int) or told <= 0:
        raise ValueError(f"stream must be None or a positive handle, not {told!r}")
    return told


def _refuse_empty() -> int:
    raise ValueError("memory must not be empty")


def _require_contiguous(shape: Sequence[int], strides: Sequence[int], size: int) -> None:
    if len(shape) != len(strides):
        raise ValueError("memory has strides of another number than its dimensions")
    if 0 in shape:
        return
    expected = size
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:  # a dimension of one is never stepped over
            raise ValueError("memory must be contiguous")
        expected *= length


# -- DLPack (dlpack.h)


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


def _by_dlpack(memory: object) -> DeviceMemory:
    producer = memory.__dlpack__  # type: ignore[attr-defined]
    try:
        capsule = producer(stream=-1, max_version=(1, 0))  # -1: order nothing
    except TypeError:
        capsule = producer(stream=-1)  # older than version 1, which cannot say that memory is read-only
    if address := _capsule(capsule, b"dltensor_versioned"):
        told = _Versioned.from_address(address)
        if told.major != 1:
            raise TypeError(f"DLPack of version {told.major} is not known")
        return _of_tensor(told.tensor, not told.flags & _READ_ONLY, (memory, capsule))
    if address := _capsule(capsule, b"dltensor"):
        return _of_tensor(_Tensor.from_address(address), True, (memory, capsule))
    raise TypeError("__dlpack__ must return a capsule that nobody has consumed")


def _of_tensor(tensor: _Tensor, writable: bool, owner: object) -> DeviceMemory:
    kind = int(tensor.device_type)
    if kind != _CUDA:
        raise TypeError(f"memory is {_KINDS.get(kind, f'of DLPack device type {kind}')} memory, not a CUDA device's")
    if tensor.bits * tensor.lanes % 8:
        raise TypeError("memory must hold items of whole bytes")
    size = tensor.bits * tensor.lanes // 8
    shape = [int(tensor.shape[i]) for i in range(tensor.ndim)]
    if tensor.strides:  # in items
        _require_contiguous(shape, [int(tensor.strides[i]) * size for i in range(tensor.ndim)], size)
    count = prod(shape) * size or _refuse_empty()
    return DeviceMemory(int(tensor.data + tensor.byte_offset), count, int(tensor.device_id), writable, owner)


def _capsule(capsule: object, name: bytes) -> int:
    """The pointer in a capsule of this name; 0 where it is not one."""
    valid, pointer = ctypes.pythonapi.PyCapsule_IsValid, ctypes.pythonapi.PyCapsule_GetPointer
    valid.argtypes, valid.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_int
    pointer.argtypes, pointer.restype = (ctypes.py_object, ctypes.c_char_p), ctypes.c_void_p
    return int(pointer(capsule, name) or 0) if valid(capsule, name) else 0
