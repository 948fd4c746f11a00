"""Device memory over transports, on a real device: bytes exact, digests theirs, nothing after the answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import xxhash

from transfer.base import Endpoint, Presented, Region, Rights
from transfer.devices import Way, load_cuda
from transfer.devices.cupy_bridge import cupy_module
from transfer.devices.process import Devices, DeviceSettings
from transfer.devices.staged import Inner, StagedTransport
from transfer.errors import TransferCancelled
from transfer.local import LocalTransport
from transfer.native import MappedSegment
from transfer.tcp import TcpTransport
from transfer.testing.parties import Bytes, pairs, pattern
from transfer.testing.wire import digests_of

SIZE = 64 << 20
SETTINGS = DeviceSettings(staging_bytes_max=8 << 20)


@dataclass
class Sides:
    """A reader whose memory lies on the device, and an owner whose memory is the host's."""

    cupy: Any
    reader: StagedTransport
    owner: Inner
    endpoint: Endpoint
    content: Bytes
    presented: Presented

    async def array(self, count: int = SIZE) -> tuple[Any, Region]:
        array = self.cupy.zeros(count, self.cupy.uint8)
        self.cupy.cuda.runtime.deviceSynchronize()
        return array, await self.reader.register(array)


@asynccontextmanager
async def sides(kind: str) -> AsyncIterator[Sides]:
    made: list[Inner] = [LocalTransport() if kind == "local" else TcpTransport() for _ in range(2)]
    owner, reader = made[0], StagedTransport(made[1], Devices(SETTINGS))
    segment = MappedSegment.create(SIZE, name="source")
    content = segment.writable_array(0, SIZE)
    content[:] = pattern(SIZE, 1)
    region = await owner.register(segment)
    grant = await owner.grant(region, [(0, SIZE)], rights=Rights.READ | Rights.WRITE, lifetime_s=600.0)
    endpoint = await reader.connect(owner.address, deadline_s=10.0)
    (presented,) = await endpoint.present([grant.descriptor], deadline_s=10.0)
    try:
        yield Sides(cupy_module(), reader, owner, endpoint, content, presented)
    finally:
        await reader.close()
        await owner.close()


@pytest.mark.parametrize("kind", ["local", "tcp"])
async def test_reads_are_exact_and_their_digests_too(kind: str) -> None:
    async with sides(kind) as made:
        array, region = await made.array()
        assert (region.device, region.way) == (0, Way.STAGED) and region.why
        for here, there, count in [(0, 0, 1), (3, 5, 4095), (4097, 0, 4097), (1, 63, (2 << 20) + 1), (0, 0, SIZE)]:
            array.fill(0)
            made.cupy.cuda.runtime.deviceSynchronize()
            batch = pairs(region, made.presented, [(here, there, count)])
            landed = await made.endpoint.read(batch, deadline_s=60.0, parts=[count])
            found = made.cupy.asnumpy(array)
            assert (found[here : here + count] == made.content[there : there + count]).all()
            assert not found[:here].any() and not found[here + count :].any()
            checksums, leaves = digests_of(made.content[there : there + count], [count])
            assert landed.checksums.tolist() == checksums.tolist() and landed.leaves.tolist() == leaves.tolist()


@pytest.mark.parametrize("kind", ["local", "tcp"])
async def test_writes_are_exact(kind: str) -> None:
    async with sides(kind) as made:
        array, region = await made.array()
        data = pattern(SIZE, 2)
        array.set(data)
        made.cupy.cuda.runtime.deviceSynchronize()
        places = [(i * 100_003, (600 - i) * 100_003, 100_003) for i in range(600)]
        await made.endpoint.write(pairs(region, made.presented, places), deadline_s=60.0)
        for here, there, count in places:
            assert (made.content[there : there + count] == data[here : here + count]).all()


@pytest.mark.parametrize("kind", ["local", "tcp"])
async def test_after_an_answer_nothing_lands_any_more(kind: str) -> None:
    async with sides(kind) as made:
        array, region = await made.array()
        batch = pairs(region, made.presented, [(0, 0, SIZE)] * 8)
        cancelled = 0
        for pause in (0.0, 0.001, 0.005, 0.02):
            transfer = made.endpoint.read(batch, deadline_s=60.0)
            await asyncio.sleep(pause)
            transfer.cancel()
            try:
                await transfer
            except TransferCancelled as error:
                assert not error.poisoned
                cancelled += 1
            array.fill(0)
            made.cupy.cuda.runtime.deviceSynchronize()
            await asyncio.sleep(0.02)
            assert not int(array.max())
        assert cancelled


async def test_device_memory_is_lent_to_peers() -> None:
    async with sides("local") as made:
        array, region = await made.array()
        data = pattern(SIZE, 3)
        array.set(data)
        made.cupy.cuda.runtime.deviceSynchronize()
        grant = await made.reader.grant(region, [(5, 10_000_000)], lifetime_s=60.0)
        endpoint = await made.owner.connect(made.reader.address, deadline_s=10.0)
        (presented,) = await endpoint.present([grant.descriptor], deadline_s=10.0)
        target = np.zeros(10_000_000, np.uint8)
        host = await made.owner.register(target)
        await endpoint.read(pairs(host, presented, [(0, 5, 10_000_000)]), deadline_s=60.0)
        assert (target == data[5:10_000_005]).all()
        await endpoint.close()


async def test_what_lies_on_the_device_is_hashed_there() -> None:
    """As after a NIC has landed it: the kernel, by address and length."""
    async with sides("local") as made:
        array, region = await made.array(1 << 20)
        await made.endpoint.read(pairs(region, made.presented, [(0, 9, 1 << 20)]), deadline_s=60.0)
        starts = np.array([array.data.ptr + 3, array.data.ptr + 70_000], np.uint64)
        found = made.reader.devices.hashed(0, starts, np.array([4096, 77], np.uint32))
        wanted = [xxhash.xxh3_64_intdigest(made.content[9 + at :][:n].tobytes()) for at, n in ((3, 4096), (70_000, 77))]
        assert found.tolist() == wanted


def test_scratch_memory_is_the_devices() -> None:
    driver = load_cuda()
    with driver.scratch(0, 1 << 20) as memory:
        assert driver.device_of(memory.address) == 0
        assert driver.address_range(memory.address)[1] >= 1 << 20
        driver.sync_memops(memory.address)
