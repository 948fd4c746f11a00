"""Device memory within a NIC's reach, over a driver and verbs made for the test: what is asked, and what is left."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest

from tests.unit.transfer.fake_sysfs import ROOT_A, ROOT_B, Sysfs
from transfer.devices import CudaUnavailable, DeviceMemory, NoWay, Way, WaySettings
from transfer.devices.base import CudaError, DmaBuf
from transfer.devices.process import Devices, DeviceSettings
from transfer.errors import LimitReached, NotReached
from transfer.grants import Grant, Rights
from transfer.rdma import transport as module
from transfer.rdma.nearness import Nearby
from transfer.rdma.registrar import Asked, Registered, Registrar
from transfer.rdma.serving import Lent
from transfer.rdma.transport import RdmaTransport
from transfer.regions import Region, Regions

PAGE = os.sysconf("SC_PAGE_SIZE")
BASE = 0x7F00_0000_0000
MEMORY = DeviceMemory(BASE + 100, 10_000, 0)
T = TypeVar("T")


class Driver:
    """A dma-buf is a pipe's end, so that a descriptor that is left open is seen."""

    def __init__(self) -> None:
        self.exported: list[tuple[int, int]] = []
        self.fds: list[int] = []
        self.refuses = False

    def address_range(self, address: int) -> tuple[int, int]:
        return BASE, 1 << 20

    def exports_dma_buf(self, device: int) -> bool:
        return True

    def export_dma_buf(self, address: int, count: int) -> int:
        if self.refuses:
            raise CudaError("cuMemGetHandleForAddressRange", 1)
        fd, other = os.pipe()
        os.close(other)
        self.exported += [(address, count)]
        self.fds += [fd]
        return fd

    def sync_memops(self, address: int) -> None: ...

    def pci_address(self, device: int) -> str:
        return "0000:01:00.0"

    @property
    def left_open(self) -> int:
        def is_open(fd: int) -> bool:
            try:
                os.fstat(fd)
            except OSError:
                return False
            return True

        return sum(is_open(fd) for fd in set(self.fds))


class Verbs:
    def __init__(self, *, dma_buf: int = 0, address: int = 0) -> None:
        self.dma_buf, self.address = dma_buf, address
        self.live: dict[int, Asked] = {}
        self.count = 0

    def register(self, asked: Asked) -> Registered:
        error = self.dma_buf if asked.dma_buf >= 0 else self.address
        if asked.dma_buf >= 0:
            os.fstat(asked.dma_buf)  # is open
            assert asked.address % PAGE == asked.device_address % PAGE, "verbs refuse it"
        if error:
            raise OSError(error, os.strerror(error))
        self.count += 1
        self.live[self.count] = asked
        return Registered(self.count, 100 + self.count, 200 + self.count)

    def deregister(self, handle: int) -> None:
        del self.live[handle]


class Sides:
    """The memory side of an RDMA transport with two NICs, without verbs."""

    def __init__(
        self, verbs: Verbs, monkeypatch: pytest.MonkeyPatch, *, mrs_max: int = 16, sysfs: Path = Path("/none")
    ) -> None:
        self.verbs, self.driver = verbs, Driver()
        monkeypatch.setattr(module, "_register", verbs.register)
        monkeypatch.setattr(module, "rdma_deregister", verbs.deregister)
        self.transport = RdmaTransport.__new__(RdmaTransport)
        self.transport.cuda = Devices(DeviceSettings(), load=lambda: self.driver)
        self.transport.devices = [  # type: ignore[assignment]
            SimpleNamespace(name=name, domain=SimpleNamespace(address=pd)) for name, pd in (("a", 1), ("b", 2))
        ]
        self.transport._regions = Regions()
        self.transport._local = {}
        self.transport._nearby = Nearby(("a", "b"), sysfs)
        self.transport.registrar = Registrar(
            mrs_max, register=verbs.register, deregister=verbs.deregister, run=self.run
        )
        self.lent = Lent(self.transport)

    async def run(self, work: Callable[[], T]) -> T:
        return work()

    async def registered(self) -> Region:
        return await self.transport.register(MEMORY, name="kv")

    async def granted(self, region: Region) -> list[int]:
        """What a peer is told that presents a grant of two ranges, for each range and NIC."""
        grant = Grant(region.id, 0, 1, Rights.READ, ((10, 100), (5000, 4000)), 60.0, 1 << 62, b"")
        guest = SimpleNamespace(domains=[SimpleNamespace(address=11), SimpleNamespace(address=12)])
        self.lent.publish(grant, region)
        shown = await self.lent.open(guest, grant)  # type: ignore[arg-type]
        self.base = shown.base
        return [key for keys in shown.keys for key in keys]


def test_by_dma_buf_with_every_nic_at_its_own_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        sides = Sides(Verbs(), monkeypatch)
        region = await sides.registered()
        assert (region.device, region.way, region.why) == (0, Way.DMA_BUF, ())
        assert (region.address, region.bytes) == (MEMORY.address, 10_000)
        assert [(one.pd, one.address, one.bytes, one.device_address) for one in sides.verbs.live.values()] == [
            (pd, 100, 10_000, MEMORY.address) for pd in (1, 2)
        ]
        assert all(one.write_here and not one.peer_reads for one in sides.verbs.live.values())
        assert [one.local_key for one in sides.transport.local_of(region.id).registered] == [101, 102]
        assert sides.driver.exported == [(BASE, -(-10_100 // PAGE) * PAGE)]
        assert sides.driver.left_open == 0 and sides.transport.registrar.held == 2

    asyncio.run(main())


def test_what_peers_are_granted_is_parts_of_the_same_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        sides = Sides(Verbs(), monkeypatch)
        region = await sides.registered()
        assert await sides.granted(region) == [203, 204, 205, 206]
        asked = [one for handle, one in sides.verbs.live.items() if handle > 2]
        assert [(one.pd, one.address, one.bytes, one.device_address - sides.base) for one in asked] == [
            (pd, 100 + start, length, start) for start, length in ((10, 100), (5000, 4000)) for pd in (11, 12)
        ]
        assert all(one.peer_reads and not one.peer_writes for one in asked)
        assert len(sides.driver.exported) == 2, "once for all ranges and NICs"
        assert sides.driver.left_open == 0
        sides.driver.refuses = True
        with pytest.raises(ValueError, match="CUDA error 1"):
            sides.lent._opened.clear()
            await sides.granted(region)
        assert sides.transport.registrar.held == 6

    asyncio.run(main())


def test_grants_are_parts_of_the_dma_buf_that_the_owner_has_made(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        sides = Sides(Verbs(), monkeypatch)
        sides.driver.refuses = True
        fd, other = os.pipe()
        try:
            memory = replace(MEMORY, dma_buf=DmaBuf(fd, 3 * PAGE + 100, 10_000))
            region = await sides.transport.register(memory, name="kv")
            assert region.way == Way.DMA_BUF
            assert await sides.granted(region) == [203, 204, 205, 206]
            asked = list(sides.verbs.live.values())
            assert [one.address - 3 * PAGE for one in asked] == [100, 100, 110, 110, 5100, 5100]
            assert {one.dma_buf for one in asked} == {fd}
            os.fstat(fd)  # is open
        finally:
            os.close(fd)
            os.close(other)

    asyncio.run(main())


def test_by_peer_memory_where_a_nic_takes_no_dma_buf(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        sides = Sides(Verbs(dma_buf=errno.EOPNOTSUPP), monkeypatch)
        region = await sides.registered()
        assert region.way == Way.PEERMEM and errno.errorcode[errno.EOPNOTSUPP] in region.why[0]
        assert await sides.granted(region) == [203, 204, 205, 206]
        assert [one.address for one in sides.verbs.live.values()] == [
            *[MEMORY.address] * 2,
            *[MEMORY.address + 10] * 2,
            *[MEMORY.address + 5000] * 2,
        ]
        assert all(one.dma_buf < 0 for one in sides.verbs.live.values())
        assert len(sides.driver.exported) == 1

    asyncio.run(main())


def test_what_no_nic_reaches_is_told_and_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        sides = Sides(Verbs(dma_buf=errno.EOPNOTSUPP, address=errno.EFAULT), monkeypatch)
        with pytest.raises(NotReached, match="no NIC reaches it") as caught:
            await sides.registered()
        assert [why.split(":")[0] for why in caught.value.why] == ["dma_buf", "peermem"]
        assert not sides.verbs.live and sides.transport.registrar.held == 0 and not len(sides.transport._regions)

        def missing() -> Driver:
            raise CudaUnavailable("no driver here")

        sides.transport.cuda = Devices(DeviceSettings(ways=WaySettings(caller_synchronizes=True)), load=missing)
        with pytest.raises(NotReached, match="no driver here"):
            await sides.registered()

    asyncio.run(main())


def test_a_way_that_is_forbidden_is_not_taken_and_nothing_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        sides = Sides(Verbs(dma_buf=errno.EOPNOTSUPP), monkeypatch)
        forced = DeviceSettings(ways=WaySettings(frozenset({Way.DMA_BUF})))
        sides.transport.cuda = Devices(forced, load=lambda: sides.driver)
        with pytest.raises(NoWay, match="staged: not allowed"):
            await sides.registered()
        assert not sides.verbs.live and sides.transport.registrar.held == 0

    asyncio.run(main())


def test_fewer_registrations_than_there_might_be_are_counted_as_they_are() -> None:
    """Also where nobody waits for them any more."""

    async def main() -> None:
        verbs, gate = Verbs(), asyncio.Event()

        async def run(work: Callable[[], list[Registered]]) -> list[Registered]:
            await gate.wait()
            return work()

        registrar = Registrar(8, register=verbs.register, deregister=verbs.deregister, run=run)
        task = asyncio.create_task(registrar.taken(5, lambda: [verbs.register(Asked(1, 4096, 10, 4096))]))
        await asyncio.sleep(0)
        assert registrar.held == 5
        task.cancel()
        await asyncio.sleep(0)
        gate.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert task.cancelled() and registrar.held == 0 and not verbs.live

    asyncio.run(main())


def test_the_limit_holds_for_device_memory_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        sides = Sides(Verbs(), monkeypatch, mrs_max=3)
        region = await sides.registered()
        with pytest.raises(LimitReached) as caught:
            await sides.registered()
        assert caught.value.limit == "mrs_max" and len(sides.verbs.live) == 2
        await sides.transport.registrar.release(sides.transport._local.pop(region.id).registered)
        assert sides.transport.registrar.held == 0
        read_only = DeviceMemory(MEMORY.address, 10, 0, writable=False)
        with pytest.raises(ValueError, match="read-only"):
            await sides.transport.register(read_only)
        assert sides.transport.registrar.held == 0 and not sides.verbs.live

    asyncio.run(main())


def test_the_rails_near_the_device_are_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def main() -> None:
        sysfs = Sysfs(tmp_path / "sys")
        sysfs.pci(ROOT_B, "0000:00:01.0", "0000:01:00.0", numa=1)  # the driver's device
        sysfs.nic("a", ROOT_A, "0000:02:00.0")
        sysfs.nic("b", ROOT_B, "0000:00:01.0", "0000:03:00.0", numa=1)
        sides = Sides(Verbs(), monkeypatch, sysfs=sysfs.root)
        region = await sides.registered()
        told = sides.transport.nearness(region)
        assert (told.where, told.near, told.spare) == ("device 0000:01:00.0", ("b",), ("a",))
        assert sides.transport.near_mask(sides.transport.local_of(region.id)) == 0b10

    asyncio.run(main())
