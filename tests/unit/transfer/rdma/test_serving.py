"""What one peer's devices know of our memory, over devices made for the test: a page for trials, and grants' ends."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from transfer import moving
from transfer.errors import Reason
from transfer.grants import Grant, Rights
from transfer.rdma import trial as module
from transfer.rdma.config import RdmaConfig
from transfer.rdma.frames import Hello, Present, RailOffer
from transfer.rdma.registrar import Asked, Registered, Registrar
from transfer.rdma.serving import Guest, Lent
from transfer.rdma.trial import ASKED, Landing
from transfer.regions import Regions

THEIRS = Hello(bytes(16), (RailOffer(bytes(16), 0, 5, 1, True, True),))


class Devices:
    """Two, whose domains are 11 and 12 for a guest. keeps: how often a deregistration is refused."""

    def __init__(self, *, mrs_max: int = 16, keeps: int = 0, **config: float) -> None:
        self.live: dict[int, Asked] = {}
        self.count = 0
        self.keeps = keeps
        self.refuses: set[int] = set()  # domains
        self.config = RdmaConfig(**config)  # type: ignore[arg-type]
        self.registrar = Registrar(mrs_max, register=self.register, deregister=self.deregister, run=self.in_thread)
        self.cuda = None
        self.devices = [SimpleNamespace(domain=SimpleNamespace(address=pd)) for pd in (1, 2)]
        self.book = SimpleNamespace(find=lambda *_: None)
        self.lent = Lent(self)  # type: ignore[arg-type]
        control = SimpleNamespace(tell=lambda _: None)
        self.guest: Any = Guest(self, control)  # type: ignore[arg-type]
        self.guest.domains = [SimpleNamespace(address=pd, close=lambda: None) for pd in (11, 12)]

    def register(self, asked: Asked) -> Registered:
        if asked.pd in self.refuses:
            raise OSError(errno.ENOMEM, "no room")
        self.count += 1
        self.live[self.count] = asked
        return Registered(self.count, 100 + self.count, 200 + self.count)

    def deregister(self, handle: int) -> None:
        if self.keeps:
            self.keeps -= 1
            raise OSError(errno.EBUSY, "in use")
        del self.live[handle]

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        return work()


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await main()

    asyncio.run(body())


def test_a_peer_is_shown_one_page_for_trials_while_its_connection_lives() -> None:
    async def main() -> None:
        devices = Devices()
        shown = await devices.guest.answer(ASKED, THEIRS)
        assert shown.reason is Reason.LANDED and shown.keys == ((201, 202),)
        assert await devices.guest.answer(ASKED, THEIRS) == shown, "registered once"
        for pd, one in zip((11, 12), devices.live.values(), strict=True):
            assert (one.pd, one.bytes, one.device_address) == (pd, 4096, shown.base)
            assert one.peer_reads and not one.peer_writes and not one.write_here
            assert one.device_address != one.address and (one.device_address - one.address) % 4096 == 0
        await devices.guest.end()
        assert not devices.live and devices.registrar.held == 0

    run(main)


def test_without_room_for_a_page_there_are_no_trials() -> None:
    async def main() -> None:
        devices = Devices(mrs_max=1)
        assert (await devices.guest.answer(ASKED, THEIRS)).reason is Reason.LATE
        assert not devices.live and devices.registrar.held == 0
        assert (await devices.guest.answer(Present(b"x"), THEIRS)).reason is Reason.REVOKED

    run(main)


def test_trials_land_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        devices = Devices()

        def register(pd: int, address: int, count: int, device_address: int, **rights: bool) -> tuple[int, int, int]:
            assert rights == {"write_here": True, "peer_reads": False, "peer_writes": False}
            made = devices.register(Asked(pd, address, count, device_address, write_here=True))
            return made.handle, made.local_key, made.remote_key

        monkeypatch.setattr(module, "rdma_register", register)
        monkeypatch.setattr(module, "rdma_deregister", devices.deregister)
        landing = Landing(devices)  # type: ignore[arg-type]
        assert await asyncio.gather(landing.keys(), landing.keys()) == [[101, 102]] * 2
        assert [(one.pd, one.address) for one in devices.live.values()] == [(1, landing.address), (2, landing.address)]
        await landing.close()
        assert not devices.live
        devices.refuses.add(2)
        refused = Landing(devices)  # type: ignore[arg-type]
        assert await refused.keys() == [] and not devices.live
        await refused.close()

    run(main)


@pytest.mark.parametrize("keeps", [0, 3])
def test_what_a_device_keeps_for_a_while_is_quiet_when_it_lets_go(keeps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "_AGAIN_S", 0.001)

    async def main() -> None:
        devices = Devices(keeps=keeps)
        grant = await opened(devices)
        devices.lent.end(grant)
        assert not devices.lent.quiet(grant.slot) and devices.live
        assert await devices.lent.wait_quiet([grant.slot], 10.0)
        assert not devices.live and devices.registrar.held == 0

    run(main)


def test_what_a_device_never_lets_go_never_becomes_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "_AGAIN_S", 0.001)

    async def main() -> None:
        devices = Devices(keeps=1 << 30, quiesce_max_s=0.05)
        grant = await opened(devices)
        devices.lent.end(grant)
        assert not await devices.lent.wait_quiet([grant.slot], 0.2)
        assert len(devices.live) == devices.registrar.held == 2
        tried = devices.keeps
        await asyncio.sleep(0.05)
        assert devices.keeps == tried, "it is given up some time"

    run(main)


async def opened(devices: Devices) -> Grant:
    region = Regions().add(np.zeros(8192, np.uint8), name="m", writable=True)
    grant = Grant(region.id, 0, 1, Rights.READ, ((0, 8192),), 60.0, 1 << 62, b"")
    devices.lent.publish(grant, region)
    assert (await devices.lent.open(devices.guest, grant)).reason is Reason.LANDED
    return grant
