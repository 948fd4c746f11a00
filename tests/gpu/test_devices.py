"""Device memory on a real device: taken, exported, staged and hashed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from transfer.devices import (
    CudaError,
    DeviceMemory,
    DmaBuf,
    LibCuda,
    Stager,
    StagingPool,
    Way,
    WaySettings,
    device_memory,
    load_cuda,
    reach,
)
from transfer.devices.cupy_bridge import CupyStream, cupy_module, pin
from transfer.devices.digests import leaf_digests
from transfer.devices.staging import Bytes
from transfer.errors import RegionPoisoned

SIZE = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def cupy() -> Any:
    return cupy_module()


@pytest.fixture
def driver() -> LibCuda:
    return load_cuda()


def pattern(count: int) -> Bytes:
    return np.random.default_rng(count).integers(0, 256, count, np.uint8)


def settle(cupy: Any) -> None:
    cupy.cuda.runtime.deviceSynchronize()


# -- taken


def test_arrays_of_cupy_are_taken_by_either_protocol(cupy: Any) -> None:
    array = cupy.zeros((3, 1000), cupy.uint16)
    taken = device_memory(array)
    assert (taken.address, taken.bytes, taken.device, taken.writable) == (array.data.ptr, 6000, array.device.id, True)

    class OnlyDlpack:
        def __dlpack__(self, **asked: Any) -> Any:
            return array.__dlpack__(**asked)

        def __dlpack_device__(self) -> Any:
            return array.__dlpack_device__()

    other = device_memory(OnlyDlpack())
    assert (other.address, other.bytes, other.device) == (taken.address, taken.bytes, taken.device)
    with pytest.raises(ValueError, match="contiguous"):
        device_memory(array[:, ::2])


def test_tensors_of_torch_are_taken_also_of_types_that_numpy_does_not_know() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch is built without CUDA")
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        tensor = torch.zeros(100, device="cuda").to(dtype)
        taken = device_memory(tensor)
        assert (taken.address, taken.bytes) == (tensor.data_ptr(), 100 * tensor.element_size())


# -- the driver


def test_the_driver_knows_an_allocation(cupy: Any, driver: LibCuda) -> None:
    whole = cupy.cuda.Memory(4 << 20)
    base, count = driver.address_range(whole.ptr + 12345)
    assert base == whole.ptr and count >= 4 << 20
    assert driver.device_of(whole.ptr) == 0
    assert driver.pci_address(0) == cupy.cuda.Device(0).pci_bus_id.lower()
    driver.sync_memops(whole.ptr)
    with pytest.raises(CudaError):
        driver.address_range(4096)


def test_a_range_is_exported_as_a_descriptor_where_the_device_can(cupy: Any, driver: LibCuda) -> None:
    whole = cupy.cuda.Memory(4 << 20)
    if not driver.exports_dma_buf(0):
        with pytest.raises(CudaError):
            driver.export_dma_buf(whole.ptr, 4 << 20)
        return
    fd = driver.export_dma_buf(whole.ptr + PAGE, 2 * PAGE)
    try:
        assert "dmabuf" in str(Path(f"/proc/self/fd/{fd}").readlink())
        assert os.lseek(fd, 0, os.SEEK_END) >= 2 * PAGE
    finally:
        os.close(fd)


class Card:
    """A NIC that looks whether the descriptor it gets is a dma-buf."""

    name = "card"

    def __init__(self) -> None:
        self.seen: list[object] = []

    def register_dma_buf(self, part: DmaBuf, address: int) -> int:
        assert address % PAGE == part.offset
        assert "dmabuf" in str(Path(f"/proc/self/fd/{part.fd}").readlink())
        self.seen += [part]
        return 1

    def register_address(self, address: int, count: int) -> int:
        self.seen += [(address, count)]
        return 2

    def deregister(self, handle: int) -> None:
        raise AssertionError


def test_the_best_way_of_this_machine(cupy: Any, driver: LibCuda) -> None:
    whole = cupy.cuda.Memory(4 << 20)
    card = Card()
    found = reach(DeviceMemory(whole.ptr + 100, 10_000, 0, owner=whole), [card], driver, WaySettings())
    if found.way is Way.DMA_BUF:
        fd = card.seen[0].fd  # type: ignore[attr-defined]
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
    else:
        assert found.way is Way.PEERMEM
        assert found.why, "why there is no dma-buf"


# -- staged


def stager(buffers: int = 4) -> tuple[StagingPool, Stager]:
    pool = StagingPool(pin, staging_bytes_max=buffers * SIZE, buffer_bytes=SIZE)
    return pool, Stager(pool, CupyStream)


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 4097, SIZE, (2 << 20) + 1, 19 * SIZE + 3])
async def test_bytes_land_and_leave_whole(cupy: Any, count: int) -> None:
    array = cupy.zeros(count + 100, cupy.uint8)
    settle(cupy)
    moved, back = pattern(count), np.zeros(count, np.uint8)

    async def fill(host: Bytes, position: int) -> None:
        host[:] = moved[position : position + len(host)]

    async def drain(host: Bytes, position: int) -> None:
        back[position : position + len(host)] = host

    pool, mover = stager()
    memory = device_memory(array)
    await mover.land(memory, 13, count, fill, deadline_s=60)
    there = cupy.asnumpy(array)
    assert (there[13 : 13 + count] == moved).all() and not there[:13].any() and not there[13 + count :].any()
    await mover.leave(memory, 13, count, drain, deadline_s=60)
    assert (back == moved).all()
    assert pool.free == 4


async def test_what_the_producers_stream_still_writes_is_waited_for(cupy: Any) -> None:
    array = cupy.zeros(64 << 20, cupy.uint8)
    settle(cupy)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        for value in range(1, 200):
            array.fill(value)
    got = np.zeros(array.nbytes, np.uint8)

    async def drain(host: Bytes, position: int) -> None:
        got[position : position + len(host)] = host

    memory = DeviceMemory(array.data.ptr, array.nbytes, 0, owner=array, stream=stream.ptr)
    await stager()[1].leave(memory, 0, array.nbytes, drain, deadline_s=60)
    assert (got == 199).all()


async def test_after_a_cancelled_transfer_nothing_is_written_any_more(cupy: Any) -> None:
    array = cupy.zeros(256 * SIZE, cupy.uint8)
    settle(cupy)

    async def fill(host: Bytes, _position: int) -> None:
        await asyncio.sleep(0)
        host[:] = 7

    pool, mover = stager()
    for turns in (0, 1, 5, 30, 100):
        task = asyncio.create_task(mover.land(device_memory(array), 0, array.nbytes, fill, deadline_s=60))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        except RegionPoisoned as error:  # pragma: no cover
            pytest.fail(str(error))
        array.fill(0)
        settle(cupy)
        await asyncio.sleep(0.02)
        assert not int(array.max()), f"written after the answer ({turns} turns)"
        assert pool.free == 4


# -- hashed


@pytest.mark.parametrize("offset", [0, 1, 7, 8, 4093])
def test_leaf_digests_are_those_of_the_bytes(cupy: Any, offset: int) -> None:
    data = pattern(3 << 20)
    array = cupy.asarray(data)
    settle(cupy)
    sizes = [1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 4095, 4096, 4097, 0, 2 << 20, (128 << 10) + 5]
    parts, position = [], offset
    for size in sizes:
        parts += [(position, size)]
        position += size
    wanted = [
        xxhash.xxh3_64_intdigest(data[start + leaf : start + min(leaf + 4096, size)].tobytes())
        for start, size in parts
        for leaf in range(0, size, 4096)
    ]
    assert leaf_digests(device_memory(array), parts).tolist() == wanted
