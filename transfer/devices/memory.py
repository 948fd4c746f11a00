"""Device memory as a caller hands it over: from `__cuda_array_interface__`, from DLPack, or as a plain address.

Rules
- Nothing here calls the driver: what an array says of itself is enough. DLPack is asked not to wait for any stream.
- Only whole, C-contiguous memory; what is refused is named. Managed and pinned host memory are not device memory.
- The owner is held as long as the DeviceMemory lives; for DLPack that is the producer's capsule, never consumed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from transfer.devices.base import DmaBuf
from transfer.dlpack import Kind, kind_name, kind_of, lies_contiguous, lying

__all__ = ["DeviceMemory", "device_memory", "on_device"]

_TYPE = re.compile(r"[<>|=]?([?a-zA-Z])(\d+)")
_ADDRESSES = 1 << 64


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """`bytes` at `address` of CUDA device `device`, valid while `owner` lives.

    `stream` (a CUDA stream handle) is where work that still touches it may be queued: it is waited for before the first
    transfer. None: the producer says there is none, or does not say.

    `dma_buf`: the memory as its owner has exported it. NICs register that, and the driver is not asked for one. It
    stays the owner's, and open as long as the region is.
    """

    address: int
    bytes: int
    device: int
    writable: bool = True
    owner: object = field(default=None, repr=False, compare=False)
    stream: int | None = None
    dma_buf: DmaBuf | None = None

    def __post_init__(self) -> None:
        for name, least in (("address", 1), ("bytes", 1), ("device", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.address + self.bytes > _ADDRESSES:
            raise ValueError("address + bytes goes beyond the address space")
        part = self.dma_buf
        if part is not None and (part.fd < 0 or part.offset < 0 or part.bytes != self.bytes):
            raise ValueError(f"dma_buf must be an open descriptor with the memory's {self.bytes} bytes, not {part}")


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
    if getattr(memory, "__dlpack_device__", None) is not None:
        return kind_of(memory)[0] == Kind.CUDA
    return _has(memory, "__cuda_array_interface__")


def _has(memory: object, name: str) -> bool:
    """Some arrays have the attribute and refuse it (torch: types that NumPy does not know, tensors on the CPU)."""
    try:
        return getattr(memory, name, None) is not None
    except (TypeError, RuntimeError, KeyError):
        return False


def _told_device(memory: object, given: int | None) -> int | None:
    if getattr(memory, "__dlpack_device__", None) is None:
        return given
    kind, ordinal = kind_of(memory)
    if kind != Kind.CUDA:
        raise TypeError(f"memory is {kind_name(kind)}, not a CUDA device's")
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
    if not lies_contiguous(shape, strides, size):
        raise ValueError("memory must be contiguous")


# -- DLPack


def _by_dlpack(memory: object) -> DeviceMemory:
    lies = lying(memory, stream=-1)  # -1: order nothing
    if lies.kind != Kind.CUDA:
        raise TypeError(f"memory is {kind_name(lies.kind)}, not a CUDA device's")
    if lies.bits % 8:
        raise TypeError("memory must hold items of whole bytes")
    if not lies.contiguous:
        raise ValueError("memory must be contiguous")
    return DeviceMemory(lies.address, lies.bytes or _refuse_empty(), lies.device, lies.writable, (memory, lies.capsule))
