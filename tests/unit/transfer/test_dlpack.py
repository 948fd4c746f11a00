"""Tensors of a framework that nobody has here, made by hand: each field of dlpack.h that says where bytes lie."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest

from transfer import dlpack
from transfer.dlpack import lying

UINT8, BYTES = 1, 256


class Made:
    """A tensor over bytes of its own, of DLPack 1.x where `major` is given, else of 0.x."""

    def __init__(
        self,
        shape: Sequence[int] = (BYTES,),
        strides: Sequence[int] | None = None,
        *,
        bits: int = 8,
        lanes: int = 1,
        byte_offset: int = 0,
        major: int | None = None,
        flags: int = 0,
    ) -> None:
        self.bytes = (ctypes.c_uint8 * BYTES)(*range(BYTES))
        self._shape = (ctypes.c_int64 * len(shape))(*shape)
        self._strides = (ctypes.c_int64 * len(strides))(*strides) if strides is not None else None
        tensor = dlpack._Tensor(
            ctypes.addressof(self.bytes),
            dlpack.Kind.CPU,
            0,
            len(shape),
            UINT8,
            bits,
            lanes,
            ctypes.cast(self._shape, ctypes.POINTER(ctypes.c_int64)),
            ctypes.cast(self._strides, ctypes.POINTER(ctypes.c_int64)) if self._strides is not None else None,
            byte_offset,
        )
        self._name = b"dltensor" if major is None else b"dltensor_versioned"
        self._struct = tensor if major is None else dlpack._Versioned(major, 0, None, None, flags, tensor)

    def __dlpack__(self, **_: object) -> object:
        make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return make(("PyCapsule_New", ctypes.pythonapi))(ctypes.addressof(self._struct), self._name, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize("major", [None, 1])
def test_bytes_begin_at_their_offset(major: int | None) -> None:
    tensor = Made((100,), byte_offset=56, major=major)
    lies = lying(tensor)
    assert ctypes.string_at(lies.address, lies.bytes) == bytes(range(56, 156))
    assert (lies.kind, lies.device) == (dlpack.Kind.CPU, 0)


@pytest.mark.parametrize(
    ("tensor", "length"),
    [
        (Made((2, 16), bits=16), 64),
        (Made((5,), bits=4), 3),  # half bytes, rounded up
        (Made((8,), lanes=4), 32),
        (Made((0, 7), (99, 99)), 0),  # of nothing, strides say nothing
        (Made((1, 16), (99, 1)), 16),  # nor those of an axis of one
        (Made((4, 1, 8), (8, 99, 1)), 32),
    ],
)
def test_lengths(tensor: Made, length: int) -> None:
    lies = lying(tensor)
    assert lies.contiguous and lies.bytes == length


@pytest.mark.parametrize("strides", [(1, 4), (9, 1), (8, 2), (-8, 1)])
def test_what_is_not_in_one_piece_is_told(strides: tuple[int, int]) -> None:
    assert not lying(Made((4, 8), strides)).contiguous


def test_what_may_not_be_written_and_what_is_not_known() -> None:
    assert lying(Made()).writable
    assert lying(Made(major=1)).writable
    assert not lying(Made(major=1, flags=1)).writable
    with pytest.raises(TypeError, match="speaks DLPack 2, this reads 0 and 1"):
        lying(Made(major=2))
