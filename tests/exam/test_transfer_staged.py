"""Device memory passes the exam over every transport that moves host memory, through pinned buffers; a twin that
answers when copies are queued does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from transfer.base import Batch
from transfer.devices.process import DeviceSettings
from transfer.devices.staged import Inner, StagedTransport
from transfer.devices.staging import StagingPool
from transfer.errors import Reason, RegionPoisoned, TransferCancelled, TransferFailed, TransferLate
from transfer.local import LocalTransport
from transfer.native import MappedSegment
from transfer.tcp import TcpConfig, TcpTransport
from transfer.testing.device import DevicePair, DirectTransport, EagerStager, SimulatedDevice, simulated_devices
from transfer.testing.exam import ExamBase, PeerFailureExam, TransportExam
from transfer.testing.exam_base import FOREVER_S, examined, failed
from transfer.testing.loop import run_virtual
from transfer.testing.network import Weather
from transfer.testing.parties import Bytes, OwnerHere, OwnerProcess, Pair, pairs, pattern
from transfer.testing.simulated import SimulatedNetwork, SimulatedTransport
from transfer.testing.wire import digests_of

SETTINGS = DeviceSettings(staging_bytes_max=1 << 20, buffer_bytes=256 << 10)


class Staged(ExamBase):
    """A long batch is many windows, and of several at once."""

    long_extents = 48
    long_bytes = 512 << 10
    settings = SETTINGS

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def body() -> None:
            await main()

        asyncio.run(body())

    async def pause(self, turn: int) -> None:
        await asyncio.sleep(0.001 * (turn % 4))

    async def settle(self) -> None:
        await asyncio.sleep(0.02)

    def staged(self, inner: Inner, device: SimulatedDevice) -> StagedTransport:
        return StagedTransport(inner, simulated_devices(device, self.settings))


def segments() -> Callable[[int], tuple[object, Bytes]]:
    kept: list[MappedSegment] = []

    def memory_of(size: int) -> tuple[object, Bytes]:
        kept.append(MappedSegment.create(size, name="exam"))
        return kept[-1], kept[-1].writable_array(0, size)

    return memory_of


class TestLocal(Staged, TransportExam):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        device = SimulatedDevice()
        owner = OwnerHere(LocalTransport(), segments())
        reader = self.staged(LocalTransport(), device)
        try:
            yield DevicePair(owner, reader, await reader.connect(owner.address, deadline_s=10.0), device)
        finally:
            await reader.close()
            await owner.close()

    @examined
    async def test_batches_of_both_memories(self, pair: Pair) -> None:
        """One batch, extents of device and host memory in turns, digests over all of it."""
        size, count = 3_000_001, 30
        await pair.owner.memory("m", size, seed=1)
        source = pattern(size, 1)
        there, _ = await pair.shown("m", [(0, size)])
        device, on_device = await pair.memory(size)
        on_host = np.zeros(size, np.uint8)
        host = await pair.reader.register(on_host)
        table = pairs(device, there, [(i * 100_000, i * 100_000, 100_000) for i in range(count)]).table.copy()
        table[1::2, 0] = host.id
        landed = await pair.endpoint.read(Batch(table), deadline_s=FOREVER_S, parts=[1, 2_999_999])
        assert landed.bytes == 3_000_000
        for i in range(count):
            place = slice(i * 100_000, (i + 1) * 100_000)
            mine, other = (on_host, on_device) if i % 2 else (on_device, on_host)
            assert (mine[place] == source[place]).all() and not other[place].any()


class TestTcp(Staged, TransportExam):
    config = TcpConfig()

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        device = SimulatedDevice()

        def memory_of(size: int) -> tuple[object, Bytes]:
            content = np.zeros(size, dtype=np.uint8)
            return content, content

        owner = OwnerHere(TcpTransport(self.config), memory_of)
        reader = self.staged(TcpTransport(self.config), device)
        try:
            yield DevicePair(owner, reader, await reader.connect(owner.address, deadline_s=10.0), device)
        finally:
            await reader.close()
            await owner.close()


class TestOneSmallBuffer(TestTcp):
    """All batches wait for one buffer; every window is small, with many borders."""

    long_extents = 24
    long_bytes = 128 << 10
    settings = DeviceSettings(staging_bytes_max=64 << 10, buffer_bytes=64 << 10)


class TestTcpTwoProcesses(Staged, PeerFailureExam):
    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        device = SimulatedDevice()
        owner = await OwnerProcess.start("tcp")
        reader = self.staged(TcpTransport(), device)
        try:
            yield DevicePair(owner, reader, await reader.connect(owner.address, deadline_s=10.0), device)
        finally:
            await reader.close()
            await owner.close()


class Simulated(Staged, TransportExam):
    """Virtual time: a network and a device that take their time, and one seed."""

    long_extents = 24
    long_bytes = 100_000
    settings = DeviceSettings(staging_bytes_max=256 << 10, buffer_bytes=64 << 10)
    weather = Weather()
    eager = False
    seed = 1

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        run_virtual(main)

    async def pause(self, turn: int) -> None:
        await asyncio.sleep(self.device.chance.uniform(0.0, 0.004))

    async def settle(self) -> None:
        await asyncio.sleep(5.0)

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        network = SimulatedNetwork(self.seed, self.weather)
        self.device = SimulatedDevice(self.seed, (10e-6, 3e-3))

        def memory_of(size: int) -> tuple[object, Bytes]:
            content = np.zeros(size, dtype=np.uint8)
            return content, content

        owner = OwnerHere(SimulatedTransport(network, "owner"), memory_of)
        reader = self.staged(SimulatedTransport(network, "reader"), self.device)
        if self.eager:
            wanted = self.settings
            pool = StagingPool(
                lambda count: np.zeros(count, np.uint8),
                staging_bytes_max=wanted.staging_bytes_max,
                buffer_bytes=wanted.buffer_bytes,
            )
            reader.devices._stager = EagerStager(pool, self.device.open_stream)
        try:
            yield DevicePair(owner, reader, await reader.connect("owner", deadline_s=10.0), self.device)
        finally:
            await reader.close()
            await owner.close()


class TestSimulated(Simulated):
    pass


class TestFoulWeather(Simulated):
    weather = Weather(latency_s=(50e-6, 5e-3), loss=0.05)
    seed = 2


class TestDirect(Simulated):
    """Hardware that reaches the device: nothing is staged but what must be hashed on its way."""

    @asynccontextmanager
    async def pair(self) -> AsyncIterator[Pair]:
        network = SimulatedNetwork(self.seed, self.weather)
        self.device = SimulatedDevice(self.seed, (10e-6, 3e-3))

        def memory_of(size: int) -> tuple[object, Bytes]:
            return self.device.array(size)

        owner = OwnerHere(self.staged(DirectTransport(network, "owner", self.device), self.device), memory_of)
        reader = self.staged(DirectTransport(network, "reader", self.device), self.device)
        try:
            yield DevicePair(owner, reader, await reader.connect("owner", deadline_s=10.0), self.device)
        finally:
            await reader.close()
            await owner.close()

    @examined
    async def test_what_lies_in_one_piece_is_hashed_on_the_device(self, pair: Pair) -> None:
        size = 300_000
        await pair.owner.memory("m", size, seed=1)
        source = pattern(size, 1)
        there, _ = await pair.shown("m", [(0, size)])
        first, _ = await pair.memory(size)
        second, _ = await pair.memory(size)
        places = [(7, 0, 5_000), (5_007, 100_000, 10_000), (100, 200_000, 70_001), (90_000, 1, 1)]
        table = pairs(first, there, places).table.copy()
        table[2:, 0] = second.id
        stream = np.concatenate([source[at : at + count] for _, at, count in places])
        for parts in ([15_000, 0, 70_001, 1], [4096, 10_904, 0, 70_000, 1, 1], [14_999, 1, 70_001, 0, 1, 0]):
            before = self.device.hashed, self.device.copies
            landed = await pair.endpoint.read(Batch(table), deadline_s=FOREVER_S, parts=parts)
            checksums, leaves = digests_of(stream, parts)
            assert landed.checksums.tolist() == checksums.tolist() and landed.leaves.tolist() == leaves.tolist()
            assert (self.device.hashed - before[0], self.device.copies) == (len(leaves), before[1])
        landed = await pair.endpoint.read(Batch(table), deadline_s=FOREVER_S, parts=[15_001, 70_001])
        assert landed.checksums.tolist() == digests_of(stream, [15_001, 70_001])[0].tolist()
        assert self.device.copies > before[1], "a leaf in two pieces is hashed on its way"
        with pytest.raises(ValueError, match="parts"):
            pair.endpoint.read(Batch(table), deadline_s=FOREVER_S, parts=[1])
        with pytest.raises(ValueError, match="deadline_s"):
            pair.endpoint.read(Batch(table), deadline_s=-1.0, parts=parts)

    @examined
    async def test_long_reads_that_are_hashed_are_quiet_too(self, pair: Pair) -> None:
        batch, region, memory, descriptor = await self.long_batch(pair)
        parts = [self.long_bytes] * self.long_extents
        cancelled = 0
        for turn in range(8):
            transfer = pair.endpoint.read(batch, deadline_s=FOREVER_S, parts=parts)
            if turn:  # else before anything else is done
                await self.pause(turn)
            transfer.cancel()
            answer = await self.answered(transfer)
            await self.stays_quiet(memory)
            cancelled += isinstance(answer, TransferCancelled)
        assert cancelled
        late = await self.answered(pair.endpoint.read(batch, deadline_s=0.001, parts=parts))
        assert isinstance(late, TransferLate)
        await self.stays_quiet(memory)
        await pair.owner.revoke(descriptor)
        gone = await self.answered(pair.endpoint.read(batch, deadline_s=FOREVER_S, parts=parts))
        assert isinstance(gone, TransferFailed) and set(failed(gone)) == {Reason.REVOKED}
        assert gone.checksums.tolist() == [0] * len(parts)
        transfer = pair.endpoint.read(batch, deadline_s=FOREVER_S, parts=parts)
        await pair.reader.deregister(region)
        await self.stays_quiet(memory)
        assert isinstance(pair.reader, StagedTransport) and not pair.reader.direct

    def test_a_kernel_that_fails_poisons(self) -> None:
        async def main() -> None:
            async with self.pair() as pair:
                await pair.owner.memory("m", 5_000, seed=1)
                there, _ = await pair.shown("m", [(0, 5_000)])
                region, _ = await pair.memory(5_000)
                self.device.broken = True
                with pytest.raises(TransferFailed) as caught:
                    await pair.endpoint.read(pairs(region, there, [(0, 0, 5_000)]), deadline_s=1.0, parts=[5_000])
                assert caught.value.poisoned and set(failed(caught.value)) == {Reason.DEVICE}

        with pytest.raises(RegionPoisoned):  # at close
            self.run(main)


@pytest.mark.parametrize("kind", [LocalTransport, TcpTransport])
async def test_device_memory_is_lent_over_real_transports(kind: type[LocalTransport] | type[TcpTransport]) -> None:
    size, start, count = 9_000_000, 5_000_003, 3_000_000
    device = SimulatedDevice()
    owner, reader = StagedTransport(kind(), simulated_devices(device, SETTINGS)), kind()
    array, content = device.array(size)
    content[:] = pattern(size, 1)
    grant = await owner.grant(await owner.register(array), [(start, count)], lifetime_s=60.0)
    endpoint = await reader.connect(owner.address, deadline_s=10.0)
    (presented,) = await endpoint.present([grant.descriptor], deadline_s=10.0)
    target = np.zeros(count, np.uint8)
    batch = pairs(await reader.register(target), presented, [(0, start, count)])
    await endpoint.read(batch, deadline_s=60.0)
    assert (target == content[start : start + count]).all()
    await owner.revoke([grant])
    with pytest.raises(TransferFailed) as caught:
        await endpoint.read(batch, deadline_s=60.0)
    assert set(failed(caught.value)) == {Reason.REVOKED}
    await reader.close()
    await owner.close()


@pytest.mark.parametrize(
    "name",
    [
        "test_reads_are_exact_at_odd_offsets_and_sizes",
        "test_writes_are_exact_at_odd_offsets_and_sizes",
        "test_ten_thousand_extents",
        "test_cancelled_batches_are_quiet",
        "test_a_cancelled_task_ends_only_when_memory_is_quiet",
        "test_late_batches_are_quiet",
    ],
)
def test_a_twin_that_answers_when_copies_are_queued_is_found_out(name: str) -> None:
    faulty = type("Faulty", (Simulated,), {"eager": True, "__test__": False})
    with pytest.raises(AssertionError):
        getattr(faulty(), name)()
