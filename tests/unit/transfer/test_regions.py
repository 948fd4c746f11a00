"""Registered memory and mapped segments: what may be registered, and when it is let go."""

from __future__ import annotations

import ctypes
import mmap
import os

import numpy as np
import pytest

from transfer.errors import LimitReached, Reason, RegionPoisoned
from transfer.native import MappedSegment
from transfer.regions import Region, Regions, RegionState
from transfer.testing.loop import run_virtual


class Stuck:
    """A transfer that does not come back when it is stopped, unless `comes_back`."""

    def __init__(self, region: Region, *, comes_back: bool = False) -> None:
        self._region = region
        self._comes_back = comes_back
        self.stopped: list[Reason] = []
        region.enter(self)

    def stop(self, reason: Reason) -> None:
        self.stopped.append(reason)
        if self._comes_back:
            self._region.leave(self)


class OfDlpack:
    """Memory that speaks DLPack only."""

    def __init__(self, array: np.ndarray[tuple[int], np.dtype[np.float32]], device: int = 1) -> None:
        self._array = array
        self._device = device

    def __dlpack__(self, **arguments: object) -> object:
        return self._array.__dlpack__(**arguments)  # type: ignore[arg-type]

    def __dlpack_device__(self) -> tuple[int, int]:
        return (self._device, 0)


def test_every_kind_of_memory() -> None:
    regions = Regions()
    floats = np.zeros((4, 8), dtype=np.float32)
    held = bytearray(64)
    mapped = mmap.mmap(-1, 4096)
    for memory, size in [(floats, 128), (held, 64), (memoryview(held)[8:24], 16), (mapped, 4096)]:
        region = regions.add(memory, name="", writable=True)
        region.memory[:] = 7
        assert region.bytes == size
    assert floats.view(np.uint8).min() == held[0] == mapped[0] == 7
    assert regions.add(b"constant", name="", writable=False).bytes == 8
    shared = regions.add(OfDlpack(floats[0]), name="", writable=True)
    assert shared.address == floats.ctypes.data
    with pytest.raises(BufferError):
        held.append(1)  # registered memory cannot move away


@pytest.mark.parametrize(
    ("memory", "error", "words"),
    [
        (object(), TypeError, "memory must be a buffer"),
        (b"constant", ValueError, "read-only"),
        (np.zeros((4, 4))[:, 1], ValueError, "contiguous"),
        (memoryview(bytearray(8))[::2], ValueError, "contiguous"),
        (bytearray(), ValueError, "empty"),
        (np.array([object()]), TypeError, "numbers"),
        (OfDlpack(np.zeros(4, dtype=np.float32), device=2), TypeError, "device"),
    ],
)
def test_refusals_name_the_argument(memory: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Regions().add(memory, name="", writable=True)


def test_regions_have_a_limit() -> None:
    regions = Regions(regions_max=1)
    region = regions.add(bytearray(8), name="", writable=True)
    with pytest.raises(LimitReached) as caught:
        regions.add(bytearray(8), name="", writable=True)
    assert caught.value.limit == "regions_max"
    regions.remove(region)
    assert regions.add(bytearray(8), name="", writable=True).id > region.id


def test_memory_is_let_go_when_transfers_are_quiet() -> None:
    async def main() -> None:
        held = bytearray(8)
        region = Regions().add(held, name="r", writable=True)
        moving = Stuck(region, comes_back=True)
        await region.quiesce(1.0)
        assert moving.stopped == [Reason.DEREGISTERED]
        with pytest.raises(ValueError, match="deregistered"):
            region.enter(moving)
        region.let_go()
        assert region.state is RegionState.CLOSED
        held.append(1)  # nothing holds it any more

    run_virtual(main)


def test_memory_that_does_not_come_back_is_poisoned_once() -> None:
    async def main() -> None:
        told: list[Region] = []
        held = bytearray(8)
        region = Regions().add(held, name="r", writable=True, on_poison=told.append)
        moving = Stuck(region)
        with pytest.raises(RegionPoisoned, match="r is poisoned"):
            await region.quiesce(1.0)
        with pytest.raises(RegionPoisoned):
            await region.quiesce(1.0)
        assert told == [region]
        with pytest.raises(RegionPoisoned):
            region.enter(moving)
        region.leave(moving)  # late, but here
        del region
        with pytest.raises(BufferError):
            held.append(1)  # kept until the process ends

    run_virtual(main)


def test_a_segment_is_seen_by_all_who_map_it() -> None:
    with MappedSegment.create(8192) as segment, MappedSegment(segment.fileno(), 8192, writable=False) as reader:
        segment.writable_array(100, 5)[:] = [1, 2, 3, 4, 5]
        seen = reader.array(100, 5)
        assert seen.tolist() == [1, 2, 3, 4, 5]
        assert reader.address != segment.address
        with pytest.raises(ValueError, match="read-only"):
            seen[0] = 9
        with pytest.raises(ValueError, match="read-only"):
            reader.writable_array(0, 1)
        for offset, length in [(8192, 1), (-1, 2), (0, 8193), (0, -1)]:
            with pytest.raises(ValueError, match="not within"):
                reader.array(offset, length)
        assert reader.array(8192, 0).size == 0
        with pytest.raises(BufferError):
            reader.close()
        assert not reader.closed
        assert seen[4] == 5
        del seen
    assert segment.closed and reader.closed
    segment.close()
    with pytest.raises(ValueError, match="closed"):
        segment.array(0, 1)


def test_a_segment_is_as_large_as_was_said_and_stays_so() -> None:
    with MappedSegment.create(4096) as segment:
        with pytest.raises(ValueError, match="4096 bytes, 8192"):
            MappedSegment(segment.fileno(), 8192, writable=False)
        with pytest.raises(OSError, match="not permitted"):
            os.ftruncate(segment.fileno(), 0)
        fd = segment.read_only_fd()
        try:
            with pytest.raises(OSError, match="denied"):
                MappedSegment(fd, 4096, writable=True)
        finally:
            os.close(fd)
    with pytest.raises(ValueError, match="size"):
        MappedSegment(0, 0, writable=False)


def test_a_registered_segment_cannot_be_closed() -> None:
    async def main() -> None:
        segment = MappedSegment.create(4096)
        region = Regions().add(segment, name="", writable=True)
        with pytest.raises(BufferError):
            segment.close()
        await region.quiesce(1.0)
        region.let_go()
        segment.close()

    run_virtual(main)


def test_a_device_is_shown_a_segment_through_a_mapping_that_may_be_written() -> None:
    segment = MappedSegment.create(8192, name="s")
    regions = Regions()
    shut = regions.add(segment, name="", writable=False)
    assert shut.pinned_at != shut.address
    shown = (ctypes.c_uint8 * 8192).from_address(shut.pinned_at)
    segment.writable_array(0, 8192)[4097] = 7
    assert shown[4097] == shut.memory[4097] == 7
    assert (whole := regions.add(segment, name="", writable=True)).pinned_at == whole.address
    private = regions.add(bytearray(8), name="", writable=True)
    assert private.pinned_at == private.address
