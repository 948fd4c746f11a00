"""What transports are told of a call's memory: whose it is, where that is one array's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.client.buffers import memory_of
from kvstore.client.spans import array_of, device_of, spans_of
from transfer.devices import DeviceMemory, DmaBuf
from transfer.regions import owner_of

Bytes = npt.NDArray[np.uint8]


def spanned(*buffers: object, writable: bool = True) -> Bytes:
    (span,) = spans_of([memory_of(buffer, "into") for buffer in buffers])
    array = array_of(span, writable)
    assert (int(array.ctypes.data), array.nbytes) == (span.start, span.end - span.start)
    assert array.dtype == np.uint8 and (array.flags.writeable or not writable)
    return array


def test_parts_of_an_array_are_that_array_s() -> None:
    whole = np.random.default_rng(1).random((64, 64), dtype=np.float32)
    assert owner_of(spanned(whole)) is whole
    assert owner_of(spanned(whole[3])) is whole
    blocks = spanned(*(whole[i] for i in (2, 1, 3)))
    assert owner_of(blocks) is whole and blocks.tobytes() == whole[1:4].tobytes()


def test_what_is_not_one_array_s_is_nobody_s() -> None:
    kept = bytearray(4096)
    assert owner_of(spanned(kept)) is None
    del kept
    whole = np.zeros(8192, dtype=np.uint8)
    mixed = spanned(whole[:4096], np.frombuffer(whole.data, dtype=np.uint8)[4096:])
    assert owner_of(mixed) is None and mixed.nbytes == 8192


@pytest.mark.parametrize("writable", [True, False])
def test_rights_are_those_of_what_was_handed_over(writable: bool) -> None:
    whole = np.zeros(4096, dtype=np.uint8)
    part = whole[:1024]
    whole.flags.writeable = False
    assert part.flags.writeable
    assert (owner_of(spanned(part, writable=writable)) is whole) is not writable


def test_what_says_how_a_device_lends_it_is_told_so() -> None:
    """Beside other memory, too, and without the stream, which is waited for before."""
    part = DmaBuf(5, 0, 100)
    given = DeviceMemory(1 << 44, 100, 1, False, owner=object(), stream=7, dma_buf=part)
    alone, other = memory_of(given, "into"), memory_of(DeviceMemory(1 << 45, 8, 1), "into")
    first, second = spans_of([other, alone])
    told = device_of(first)
    assert (told, told.dma_buf, told.stream) == (replace(given, stream=None), part, None)
    assert device_of(second).dma_buf is None
