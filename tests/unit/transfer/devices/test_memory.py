"""Device memory taken from arrays that say where they lie; no device is touched."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest

from transfer.devices.memory import DeviceMemory, device_memory
from transfer.dlpack import _Tensor, _Versioned


class Interface:
    def __init__(self, **changed: object) -> None:
        told: dict[str, object] = {"shape": (4, 8), "typestr": "<f4", "data": (0x7F00, False), "version": 3}
        self.__cuda_array_interface__ = {**told, **changed}


class Capsules:
    """A producer by DLPack, of either version."""

    def __init__(self, tensor: _Tensor, *, flags: int | None, kind: int = 2) -> None:
        self.tensor, self.flags, self.kind = tensor, flags, kind
        self.asked: dict[str, object] = {}
        self.keep: list[object] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.kind, 1

    def __dlpack__(self, **asked: object) -> object:
        if self.flags is None and "max_version" in asked:
            raise TypeError("unexpected keyword")
        self.asked = asked
        new = ctypes.pythonapi.PyCapsule_New
        new.argtypes, new.restype = (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p), ctypes.py_object
        if self.flags is None:
            return new(ctypes.addressof(self.tensor), b"dltensor", None)
        versioned = _Versioned(1, 0, None, None, self.flags, self.tensor)
        self.keep += [versioned]
        return new(ctypes.addressof(versioned), b"dltensor_versioned", None)


def tensor(shape: tuple[int, ...], strides: tuple[int, ...] | None = None, *, bits: int = 16) -> _Tensor:
    made = (ctypes.c_int64 * len(shape))(*shape)
    steps = None if strides is None else (ctypes.c_int64 * len(strides))(*strides)
    result = _Tensor(0x9000, 2, 1, len(shape), 4, bits, 1, made, steps, 64)
    result.kept = (made, steps)
    return result


def test_an_array_by_its_interface() -> None:
    array = Interface(stream=7, data=(0x7F00, True))
    found = device_memory(array, device=2)
    assert found == DeviceMemory(0x7F00, 128, 2, False, None, 7)
    assert found.owner is array
    assert device_memory(Interface(version=2, stream=7), device=0).stream is None
    assert device_memory(Interface(strides=(32, 4)), device=0).bytes == 128
    assert device_memory(Interface(shape=(1, 8), strides=(999, 4)), device=0).bytes == 32


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"version": 1}, TypeError, "version 2 or 3"),
        ({"strides": (64, 4)}, ValueError, "contiguous"),
        ({"strides": (4, 16)}, ValueError, "contiguous"),
        ({"strides": (4,)}, ValueError, "dimensions"),
        ({"strides": "ab"}, TypeError, "strides"),
        ({"typestr": "|O8"}, TypeError, "numbers"),
        ({"typestr": None}, TypeError, "numbers"),
        ({"shape": (0, 8)}, ValueError, "empty"),
        ({"data": (0, False)}, ValueError, "empty"),
        ({"data": 5}, TypeError, "data"),
        ({"mask": object()}, TypeError, "mask"),
        ({"stream": 0}, ValueError, "stream"),
        ({"data": ((1 << 64) - 5, False)}, ValueError, "address space"),
    ],
)
def test_an_interface_that_is_refused(changed: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        device_memory(Interface(**changed), device=0)


def test_the_device_is_given_or_told() -> None:
    with pytest.raises(ValueError, match="device must be given"):
        device_memory(Interface())
    array: Any = Interface()
    array.__dlpack_device__ = lambda: (2, 3)
    assert device_memory(array).device == 3
    with pytest.raises(ValueError, match="device 3, not on 1"):
        device_memory(array, device=1)


@pytest.mark.parametrize(("flags", "writable"), [(None, True), (0, True), (1, False)])
def test_dlpack_of_either_version(flags: int | None, writable: bool) -> None:
    producer = Capsules(tensor((3, 5), (5, 1)), flags=flags)
    found = device_memory(producer)
    assert found == DeviceMemory(0x9040, 30, 1, writable)
    assert producer.asked["stream"] == -1  # waits for nothing
    assert found.owner[0] is producer  # type: ignore[index]


def test_dlpack_that_is_refused() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        device_memory(Capsules(tensor((3, 5), (1, 3)), flags=0))
    with pytest.raises(ValueError, match="empty"):
        device_memory(Capsules(tensor((3, 0)), flags=0))
    with pytest.raises(TypeError, match="whole bytes"):
        device_memory(Capsules(tensor((3,), bits=4), flags=0))
    for kind, said in ((1, "the CPU's"), (3, "pinned host"), (13, "managed"), (99, "type 99")):
        with pytest.raises(TypeError, match=said):
            device_memory(Capsules(tensor((3,)), flags=0, kind=kind))


def test_what_is_no_device_memory() -> None:
    with pytest.raises(TypeError, match="the CPU's"):
        device_memory(np.zeros(3))
    with pytest.raises(TypeError, match="not bytes"):
        device_memory(b"abc")


def test_plain_addresses() -> None:
    plain = DeviceMemory(4096, 10, 0)
    assert device_memory(plain) is plain
    for wrong in ((0, 1, 0), (1, 0, 0), (1, 1, -1), ((1 << 64) - 1, 2, 0)):
        with pytest.raises(ValueError, match=r"must be|goes beyond"):
            DeviceMemory(*wrong)
    with pytest.raises(TypeError, match="bytes must be an int"):
        DeviceMemory(1, 1.5, 0)  # type: ignore[arg-type]
