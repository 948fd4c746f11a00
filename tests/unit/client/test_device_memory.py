"""Device memory as a client looks at it: whose it is, how it is cut into windows, what is refused and waited for."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.client import buffers
from kvstore.client.buffers import Extents, Memory, Places, Registry, Wanted, memory_of, places
from kvstore.client.crossing import fill, windows_of
from kvstore.client.landed import verified
from kvstore.client.spans import device_of, spans_of
from kvstore.config import TransferConfig
from kvstore.errors import Misconfigured, Poisoned
from kvstore.quiet import quietly
from kvstore.transfers import device_settings
from transfer.devices import CudaUnavailable, DeviceMemory, Stager, StagingPool, Way
from transfer.testing.device import DeviceArray, SimulatedDevice
from transfer.testing.loop import run_virtual

BASE = 1 << 44


class Bare:
    """As numba's: it does not say on which device it lies."""

    def __init__(self, address: int = BASE, count: int = 100, **more: object) -> None:
        told = {"shape": (count,), "typestr": "|u1", "data": (address, False), "version": 3}
        self.__cuda_array_interface__ = {**told, **more}


# ---- looked at ------------------------------------------------------------------------------------------------------


def test_arrays_and_plain_addresses_are_taken() -> None:
    array = DeviceArray(DeviceMemory(BASE, 100, 1, writable=False), [5])
    taken = memory_of(array, "into")
    assert (taken.address, taken.length, taken.writable, taken.device, taken.stream) == (BASE, 100, False, 1, 5)
    assert taken.owner is array
    plain = memory_of(DeviceMemory(BASE, 7, 2), "into")
    assert (plain.address, plain.length, plain.device, plain.stream) == (BASE, 7, 2, None)
    assert memory_of(bytearray(5), "into").device is None


def test_the_driver_is_asked_where_an_array_lies_that_does_not_say_it(monkeypatch: pytest.MonkeyPatch) -> None:
    buffers._driver.cache_clear()
    monkeypatch.setattr(buffers, "load_cuda", lambda: SimpleNamespace(device_of=lambda address: address - BASE))
    assert memory_of(Bare(BASE + 3), "into").device == 3
    buffers._driver.cache_clear()

    def missing() -> Any:
        raise CudaUnavailable("no NVIDIA driver")

    monkeypatch.setattr(buffers, "load_cuda", missing)
    with pytest.raises(ValueError, match=r"into: does not say on which device it lies, .*: no NVIDIA driver"):
        memory_of(Bare(), "into")


@pytest.mark.parametrize(
    ("array", "error", "text"),
    [
        (Bare(0), ValueError, r"source\[3\]: memory must not be empty"),
        (Bare(version=1), TypeError, r"source\[3\]: .*version 2 or 3"),
        (Bare(data=7), TypeError, r"source\[3\]: .*data"),
        (Bare(strides=(2,)), ValueError, r"source\[3\]: memory must be contiguous"),
    ],
)
def test_refusals_name_the_argument(
    array: object, error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "_driver", lambda: SimpleNamespace(device_of=lambda _: 0))
    with pytest.raises(error, match=text):
        memory_of(array, "source[3]")


def test_places_know_of_devices_and_of_the_streams_that_arrays_name_now() -> None:
    registry, array = Registry(), DeviceArray(DeviceMemory(BASE, 100, 1), [5])
    host = bytearray(100)
    wanted = Wanted("into", 2, 50, writing=True)
    plain = places(host, wanted, registry)
    assert (plain.devices, plain.streams) == (False, ())
    registry.add([array])
    array.streams.append(6)
    found = places(array, wanted, registry)
    assert (found.devices, found.streams) == (True, ((1, 6),))
    mixed = Extents([host, array], np.array([[(0, 0, 50)], [(1, 0, 50)]], np.int64))
    found = places(mixed, wanted, registry)
    assert (found.devices, found.streams, found.of(1, 2).devices, found.pick([0]).streams) == (
        True,
        ((1, 6),),
        True,
        ((1, 6),),
    )
    array.streams.clear()
    assert places(array, wanted, registry).streams == ()


def test_only_what_overlaps_is_one_piece_of_a_device() -> None:
    """Two allocations that touch are two: no copy may go from one into the other."""

    def at(start: int, count: int, device: int | None) -> Memory:
        return Memory(start, count, True, None, device)

    told = spans_of([at(BASE, 10, 0), at(BASE + 10, 10, 0), at(BASE + 15, 10, 0), at(100, 5, None), at(105, 5, None)])
    assert [(one.start, one.end, one.device) for one in told] == [
        (100, 110, None),
        (BASE, BASE + 10, 0),
        (BASE + 10, BASE + 25, 0),
    ]
    assert device_of(told[2]) == DeviceMemory(BASE + 10, 15, 0)


# ---- cut ------------------------------------------------------------------------------------------------------------

sizes = st.lists(st.integers(1, 300), min_size=1, max_size=12)


@given(sizes, st.integers(1, 6), st.integers(64, 700), st.lists(st.booleans(), min_size=12, max_size=12), st.booleans())
def test_windows_have_every_byte_once(
    lengths: list[int], blocks: int, buffer_bytes: int, on_device: list[bool], apart: bool
) -> None:
    """Each piece k of a block lies in memory k, of a device or not, block behind block or with gaps."""
    gap = 13 if apart else 0
    memories, starts = [], []
    for k, length in enumerate(lengths):
        device = 0 if on_device[k] else None
        start = (BASE if on_device[k] else 4096) + k * 100_000
        memories.append(Memory(start, blocks * (length + gap), True, None, device))
        starts.append([start + block * (length + gap) for block in range(blocks)])
    addresses = np.array(starts, np.uint64).T.reshape(-1)
    found = windows_of(Places(addresses, np.array(lengths, np.uint64), len(lengths), memories), buffer_bytes)
    wanted = [
        (int(address) + i, on_device[k])
        for block in range(blocks)
        for k, address in enumerate(addresses.reshape(blocks, -1)[block])
        for i in range(lengths[k])
    ]
    got: list[tuple[int, bool] | None] = [None] * len(wanted)
    for window in found:
        assert window.bytes <= buffer_bytes
        for copy in window.copies:
            assert copy.at >= 0 and copy.at + copy.length <= window.bytes
            for i in range(copy.length):
                assert got[window.position + copy.at + i] is None
                got[window.position + copy.at + i] = copy.address + i, copy.device is not None
    assert got == wanted


def test_pieces_of_one_memory_in_a_row_are_one_copy() -> None:
    row = np.arange(BASE, BASE + 100, 10, dtype=np.uint64)
    tens = np.array([10], np.uint64)
    (window,) = windows_of(Places(row, tens, 1, [Memory(BASE, 100, True, None, 0)]), 200)
    assert [tuple(copy) for copy in window.copies] == [(0, BASE, 100, 0)]
    apart = [Memory(BASE, 50, True, None, 0), Memory(BASE + 50, 50, True, None, 0)]
    (window,) = windows_of(Places(row, tens, 1, apart), 200)
    assert [copy.length for copy in window.copies] == [50, 50], "an allocation ends there"


# ---- settings -------------------------------------------------------------------------------------------------------


def test_settings_reach_the_devices() -> None:
    config = TransferConfig(
        device_ways=("staged", "peermem"),
        device_caller_synchronizes=True,
        staging_bytes_max=1 << 20,
        staging_buffer_bytes=128 << 10,
        staging_ahead_max=2,
        lent_bytes_max=5000,
    )
    told = device_settings(config)
    assert told.ways.ways == {Way.STAGED, Way.PEERMEM} and told.ways.caller_synchronizes
    assert (told.staging_bytes_max, told.buffer_bytes, told.ahead_max, told.lent_bytes_max) == (
        1 << 20,
        128 << 10,
        2,
        5000,
    )


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (TransferConfig(device_ways=()), r"transfer\.device_ways = none: .*at least one of"),
        (TransferConfig(device_ways=("nvlink",)), r"transfer\.device_ways = nvlink"),
        (
            TransferConfig(staging_bytes_max=1 << 20),
            r"transfer\.staging_bytes_max = 1 MiB: must hold a buffer of 2 MiB",
        ),
        (TransferConfig(staging_buffer_bytes=4096), r"transfer\.staging_buffer_bytes = 4 KiB: at least 64 KiB"),
    ],
)
def test_settings_that_are_refused(config: TransferConfig, said: str) -> None:
    with pytest.raises(Misconfigured, match=said):
        device_settings(config)


# ---- waited for, and told -------------------------------------------------------------------------------------------


def test_streams_are_waited_for_to_their_end() -> None:
    async def body() -> None:
        device = SimulatedDevice()
        stager = Stager(
            StagingPool(lambda n: np.zeros(n, np.uint8), staging_bytes_max=1 << 16, buffer_bytes=1 << 16),
            device.open_stream,
        )
        done: list[int] = []
        device.producers = {7: [lambda: done.append(7)], 8: [lambda: done.append(8)], 9: [lambda: done.append(9)]}
        await stager.wait_for({0: [7, 8]})
        assert done == [7, 8]

    run_virtual(body)


async def test_a_slot_is_written_no_more_when_a_cancelled_filling_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    device, begun, ended = SimulatedDevice(), asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def slow(*_: object) -> None:
        loop.call_soon_threadsafe(begun.set)
        time.sleep(0.05)
        ended.append(1)

    monkeypatch.setattr("kvstore.client.crossing._store", slow)
    array, _ = device.array(1000)
    pool = StagingPool(lambda n: np.zeros(n, np.uint8), staging_bytes_max=1 << 16, buffer_bytes=1 << 16)
    source = places(array, Wanted("source", 1, 1000, writing=False), Registry())
    filling = asyncio.ensure_future(fill(Stager(pool, device.open_stream), source, [np.zeros(1000, np.uint8)]))
    await begun.wait()
    filling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await filling
    assert ended and pool.free == 1


async def test_a_cancelled_waiter_is_told_that_memory_is_poisoned() -> None:
    async def poisoned() -> None:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            raise Poisoned("not quiet") from None

    task = asyncio.ensure_future(poisoned())
    waiter = asyncio.ensure_future(quietly(task, lambda: task.cancel() and None))  # type: ignore[func-returns-value]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(Poisoned):
        await waiter


def test_what_nobody_hashed_is_no_damage() -> None:
    """A read that failed may have landed blocks whose leaves were never hashed: they count for nothing, and their
    node is told nothing of damage.
    """
    lease: Any = SimpleNamespace(checksums=np.array([1, 2, 3, 4], "<u8").tobytes(), offsets=[0, 1])

    def told(*sums: int, failure: str = "late") -> tuple[int, int | None]:
        read = verified(2, np.array(sums, np.uint64), lease, range(2), verify=True, late=True, failure=failure)
        return read.blocks, read.corrupt

    assert told(0, 0, 0, 0) == (0, None)
    assert told(1, 2, 0, 0) == (1, None)
    assert told(1, 2, 3, 0) == (1, None)
    assert told(1, 2, 9, 4) == (1, 1)
    assert told(1, 2, 3, 4) == (2, None)
    assert told(0, 0, 0, 0, failure="") == (0, 0), "of a read that says that all landed, 0 is a checksum like any"
