"""A staged transport beyond the exam: which way a region has and why, memory lent to peers, devices that fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from transfer.base import Batch, Region, Rights
from transfer.devices import CudaUnavailable, DeviceMemory, NoWay, Way, WaySettings
from transfer.devices.base import CudaError
from transfer.devices.process import Devices, DeviceSettings
from transfer.devices.staged import StagedTransport
from transfer.errors import GrantInvalid, LimitReached, NotReached, Reason, RegionPoisoned, TransferFailed
from transfer.grants import Grant
from transfer.regions import RegionState
from transfer.testing.device import DeviceArray, SimulatedDevice, SimulatedStream, simulated_devices
from transfer.testing.loop import run_virtual
from transfer.testing.parties import Bytes, pairs, pattern
from transfer.testing.simulated import SimulatedNetwork, SimulatedTransport

SIZE = 300_000
SETTINGS = DeviceSettings(
    staging_bytes_max=128 << 10, buffer_bytes=64 << 10, lent_bytes_max=2 * SIZE, quiesce_max_s=0.5
)


@dataclass
class Both:
    """Two staged transports that share a device, `there` granting and `here` reading."""

    device: SimulatedDevice = field(default_factory=SimulatedDevice)
    settings: DeviceSettings = SETTINGS
    here: StagedTransport = field(init=False)
    there: StagedTransport = field(init=False)

    def __post_init__(self) -> None:
        network = SimulatedNetwork(1)
        self.here, self.there = (
            StagedTransport(SimulatedTransport(network, name), simulated_devices(self.device, self.settings))
            for name in ("here", "there")
        )

    async def lent(
        self, ranges: Sequence[tuple[int, int]] = ((0, SIZE),), lifetime_s: float = 60.0
    ) -> tuple[Region, Bytes, Grant]:
        array, content = self.device.array(SIZE)
        content[:] = pattern(SIZE, 1)
        region = await self.there.register(array, name="lent")
        return region, content, await self.there.grant(region, ranges, lifetime_s=lifetime_s)


@asynccontextmanager
async def both(settings: DeviceSettings = SETTINGS) -> AsyncIterator[Both]:
    made = Both(settings=settings)
    yield made
    for transport in (made.here, made.there):
        await transport.close()


def virtual(test: Callable[[], object]) -> Callable[[], None]:
    def body() -> None:
        run_virtual(test)  # type: ignore[arg-type]

    body.__name__ = test.__name__
    return body


async def read(sides: Both, grant: Grant, target: Region, triples: Sequence[tuple[int, int, int]]) -> None:
    endpoint = await sides.here.connect("there", deadline_s=5.0)
    (presented,) = await endpoint.present([grant.descriptor], deadline_s=5.0)
    await endpoint.read(pairs(target, presented, triples), deadline_s=10.0)


# -- registering


@virtual
async def test_a_region_says_where_it_lies_and_which_way_it_has() -> None:
    async with both() as sides:
        array, _ = sides.device.array(1000)
        region = await sides.here.register(array, name="kv")
        assert (region.device, region.way, region.bytes) == (0, Way.STAGED, 1000)
        assert region.why == ("SimulatedTransport moves host memory",)
        assert "on device 0 (staged)" in repr(region)
        with pytest.raises(ValueError, match="lies on device 0"):
            _ = region.memory
        plain = await sides.here.register(DeviceMemory(array.memory.address, 10, 0), writable=False)
        assert (plain.address, plain.bytes, plain.writable) == (array.memory.address, 10, False)
        host = await sides.here.register(np.zeros(8, np.uint8))
        assert (host.device, host.way, host.why) == (None, "", ())
        read_only = DeviceArray(DeviceMemory(array.memory.address, 10, 0, writable=False))
        with pytest.raises(ValueError, match="read-only"):
            await sides.here.register(read_only)


@virtual
async def test_where_it_cannot_be_the_reason_is_told() -> None:
    async with both() as sides:
        array, _ = sides.device.array(1000)
        with pytest.raises(NotReached, match="nothing stages it here: SimulatedTransport moves host memory"):
            await sides.here.inner.register(array)
    direct_only = DeviceSettings(ways=WaySettings(frozenset({Way.DMA_BUF})))
    async with both(direct_only) as sides:
        with pytest.raises(NoWay, match="moves host memory; staged: not allowed"):
            await sides.here.register(array)
    network = SimulatedNetwork(1)
    without = StagedTransport(SimulatedTransport(network, "x"), Devices(unavailable=lambda: "no cupy", run=at_once))
    with pytest.raises(CudaUnavailable, match="no cupy"):
        await without.register(array)
    await without.close()


async def at_once(work: Callable[[], object]) -> object:
    return work()


# -- lent


@virtual
async def test_device_memory_is_lent_as_it_was_when_it_was_granted() -> None:
    async with both() as sides:
        region, content, grant = await sides.lent([(7, 1000), (100_000, 150_001)])
        before = content.copy()
        content[:] = 0
        array, found = sides.device.array(SIZE)
        target = await sides.here.register(array)
        await read(sides, grant, target, [(7, 7, 1000), (100_000, 100_000, 150_001)])
        for start, length in ((7, 1000), (100_000, 150_001)):
            assert (found[start : start + length] == before[start : start + length]).all()
        assert not found[1007:100_000].any()
        again = await sides.there.grant(region, [(0, SIZE)], lifetime_s=60.0)
        await read(sides, again, target, [(0, 0, SIZE)])
        assert not found.any()


@virtual
async def test_what_is_lent_is_registered_for_peers_alone() -> None:
    """A NIC of our own that registered all of the copy would fill its holes with pages: as many as the region has."""
    async with both() as sides:
        shown: list[str] = []
        register = sides.there.inner.register

        async def seen(memory: object, **more: object) -> Region:
            shown.append(str(more.get("name")))
            return await register(memory, **more)  # type: ignore[arg-type]

        sides.there.inner.register = seen  # type: ignore[method-assign]
        await sides.lent([(0, 1)])
        assert not [name for name in shown if name.endswith(", lent")]


@virtual
async def test_peers_cannot_write_to_it_and_are_told_so() -> None:
    async with both() as sides:
        region, _, _ = await sides.lent()
        with pytest.raises(ValueError, match="lent lies on device 0 and is staged: peers cannot write to it"):
            await sides.there.grant(region, [(0, 1)], rights=Rights.READ | Rights.WRITE, lifetime_s=1.0)
        with pytest.raises(ValueError, match="lifetime_s"):
            await sides.there.grant(region, [(0, 1)], lifetime_s=0.0)
        with pytest.raises(ValueError, match="ranges"):
            await sides.there.grant(region, [(0, SIZE + 1)], lifetime_s=1.0)


@virtual
async def test_copies_have_a_limit_and_go_with_their_grants() -> None:
    async with both() as sides:
        region, _, first = await sides.lent()
        brief = await sides.there.grant(region, [(0, SIZE)], lifetime_s=1.0)
        with pytest.raises(LimitReached) as caught:
            await sides.there.grant(region, [(0, 1)], lifetime_s=1.0)
        assert caught.value.limit == "lent_bytes_max"
        inner = sides.there.inner
        assert isinstance(inner, SimulatedTransport)
        await sides.there.revoke([first])
        assert inner.find_region(first.region) is None
        await asyncio.sleep(2.0)  # the other one expires
        assert inner.find_region(brief.region) is None
        _, _, whole = await sides.lent()
        await sides.there.deregister(region)
        endpoint = await sides.here.connect("there", deadline_s=5.0)
        with pytest.raises(GrantInvalid):
            await endpoint.present([first.descriptor], deadline_s=5.0)
        assert len(await endpoint.present([whole.descriptor], deadline_s=5.0)) == 1


@virtual
async def test_deregistering_ends_what_was_lent_and_what_is_being_copied() -> None:
    async with both() as sides:
        region, _, grant = await sides.lent()
        making = asyncio.ensure_future(sides.there.grant(region, [(0, SIZE)], lifetime_s=1.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await sides.there.deregister(region)
        with pytest.raises(ValueError, match="lent is deregistered"):
            await making
        endpoint = await sides.here.connect("there", deadline_s=5.0)
        with pytest.raises(GrantInvalid):
            await endpoint.present([grant.descriptor], deadline_s=5.0)
        with pytest.raises(ValueError, match="not registered here"):
            await sides.there.grant(region, [(0, 1)], lifetime_s=1.0)
        assert sides.there._snapshots._bytes == 0


# -- devices


@virtual
async def test_the_producers_stream_is_waited_for() -> None:
    async with both() as sides:
        _, _, grant = await sides.lent()
        array, _ = sides.device.array(SIZE)
        memory = DeviceMemory(array.memory.address, SIZE, 0, stream=77)
        target = await sides.here.register(memory)
        await read(sides, grant, target, [(0, 0, SIZE)])
        assert sides.device.waited_for == [77]


@virtual
async def test_a_device_that_fails_poisons_its_memory_and_nothing_else() -> None:
    made = Both(settings=DeviceSettings(staging_bytes_max=64 << 10, buffer_bytes=64 << 10))
    _, _, grant = await made.lent()
    array, _ = made.device.array(SIZE)
    told: list[Region] = []
    target = await made.here.register(array, name="broken", on_poison=told.append)
    made.device.broken = True
    with pytest.raises(TransferFailed) as caught:
        await read(made, grant, target, [(0, 0, SIZE)])
    assert caught.value.poisoned and not caught.value.elsewhere
    assert {failure.reason for failure in caught.value.failures} == {Reason.DEVICE}
    assert told == [target] and target.state is RegionState.POISONED
    with pytest.raises(RegionPoisoned, match="broken"):
        await made.here.deregister(target)
    with pytest.raises(LimitReached) as dead:  # its one buffer is gone
        await read(made, grant, await made.here.register(made.device.array(10)[0]), [(0, 0, 10)])
    assert dead.value.limit == "staging_bytes_max"
    host = np.zeros(SIZE, np.uint8)
    await read(made, grant, await made.here.register(host), [(0, 0, SIZE)])
    assert (host == pattern(SIZE, 1)).all()
    with pytest.raises(RegionPoisoned, match="broken"):
        await made.here.close()
    await made.there.close()


@virtual
async def test_a_copy_that_is_refused_fails_its_extents_in_quiet() -> None:
    async with both() as sides:
        _, _, grant = await sides.lent()
        array, content = sides.device.array(SIZE)
        target = await sides.here.register(array)

        class Refusing(SimulatedStream):
            def to_device(self, address: int, host: Bytes) -> None:
                if self.device.copies > 3:
                    raise CudaError("cudaMemcpyAsync", 1)
                super().to_device(address, host)

        sides.device.copies = 0
        sides.here.ready()._open_stream = lambda _device: Refusing(sides.device)
        with pytest.raises(TransferFailed) as caught:
            await read(sides, grant, target, [(i * 30_000, i * 30_000, 30_000) for i in range(10)])
        assert not caught.value.poisoned
        assert {failure.reason for failure in caught.value.failures} == {Reason.DEVICE}
        for i in np.flatnonzero(caught.value.arrived).tolist():
            place = slice(i * 30_000, (i + 1) * 30_000)
            assert (content[place] == pattern(SIZE, 1)[place]).all()
        content[:] = 9
        await asyncio.sleep(1.0)
        assert (content == 9).all()
        assert sides.here.ready().pool.free == 2


@virtual
async def test_host_batches_are_the_inner_transports_own() -> None:
    async with both() as sides:
        _, _, grant = await sides.lent()
        host = np.zeros(100, np.uint8)
        before = sides.device.copies
        await read(sides, grant, await sides.here.register(host), [(0, 5, 100)])
        assert (host == pattern(SIZE, 1)[5:105]).all() and sides.device.copies == before
        endpoint = await sides.here.connect("there", deadline_s=5.0)
        landed = await endpoint.read(Batch.of([]), deadline_s=1.0)
        assert landed.bytes == 0
