"""Registrations are bounded, whole or not at all, and let go."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable

import pytest

from transfer.errors import LimitReached
from transfer.rdma.registrar import Asked, NotLetGo, Registered, Registrar
from transfer.rdma.serving import base_of


class Device:
    """Registers in a dictionary; refuses when told to."""

    def __init__(self, mrs_max: int = 8) -> None:
        self.live: dict[int, Asked] = {}
        self.refuse: dict[int, int] = {}  # address -> errno
        self.keep: set[int] = set()  # addresses that are not let go
        self.gate: asyncio.Event | None = None
        self.registrar = Registrar(mrs_max, register=self.register, deregister=self.deregister, run=self.run)

    def register(self, asked: Asked) -> Registered:
        if asked.address in self.refuse:
            raise OSError(self.refuse[asked.address], "refused")
        handle = len(self.live) + 1
        self.live[handle] = asked
        return Registered(handle, handle, handle)

    def deregister(self, handle: int) -> None:
        if self.live[handle].address in self.keep:
            raise OSError(errno.EBUSY, "busy")
        del self.live[handle]

    async def run(self, work: Callable[[], list[Registered]]) -> list[Registered]:
        if self.gate is not None:
            await self.gate.wait()
        return work()


def asked(*addresses: int) -> list[Asked]:
    return [Asked(1, address, 4096, address) for address in addresses]


def test_no_more_than_the_limit_are_held() -> None:
    async def main() -> None:
        device = Device(mrs_max=3)
        first = await device.registrar.acquire(asked(1, 2))
        with pytest.raises(LimitReached) as caught:
            await device.registrar.acquire(asked(3, 4))
        assert caught.value.limit == "mrs_max" and device.registrar.held == len(device.live) == 2
        await device.registrar.release(first)
        assert device.registrar.held == len(device.live) == 0
        assert len(await device.registrar.acquire(asked(3, 4, 5))) == 3

    asyncio.run(main())


@pytest.mark.parametrize(("code", "error"), [(errno.ENOMEM, LimitReached), (errno.EFAULT, ValueError)])
def test_all_or_nothing(code: int, error: type[Exception]) -> None:
    async def main() -> None:
        device = Device()
        device.refuse[3] = code
        with pytest.raises(error):
            await device.registrar.acquire(asked(1, 2, 3))
        assert device.registrar.held == len(device.live) == 0

    asyncio.run(main())


def test_what_nobody_waits_for_any_more_is_let_go() -> None:
    async def main() -> None:
        device = Device()
        device.gate = asyncio.Event()
        task = asyncio.ensure_future(device.registrar.acquire(asked(1, 2)))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() and device.registrar.held == 2
        device.gate.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert device.registrar.held == len(device.live) == 0

    asyncio.run(main())


def test_one_that_is_not_let_go_stands_in_nobodys_way() -> None:
    async def main() -> None:
        device = Device(mrs_max=4)
        made = await device.registrar.acquire(asked(1, 2, 3))
        device.keep = {2}
        with pytest.raises(NotLetGo) as caught:
            await device.registrar.release(made)
        assert caught.value.errno == errno.EBUSY and caught.value.left == [made[1]]
        assert {one.address for one in device.live.values()} == {2} and device.registrar.held == 1
        device.keep.clear()
        await device.registrar.release(caught.value.left)
        assert device.registrar.held == len(device.live) == 0

    asyncio.run(main())


@pytest.mark.parametrize(("code", "error"), [(errno.ENOMEM, LimitReached), (errno.EFAULT, ValueError)])
def test_what_is_left_of_a_registration_that_failed_half_way_stays_counted(code: int, error: type[Exception]) -> None:
    async def main() -> None:
        device = Device()
        device.refuse[4], device.keep = code, {2}
        with pytest.raises(error):
            await device.registrar.acquire(asked(1, 2, 3, 4))
        assert {one.address for one in device.live.values()} == {2} and device.registrar.held == 1

    asyncio.run(main())


def test_a_release_that_nobody_waits_for_is_counted() -> None:
    async def main() -> None:
        device = Device()
        made = await device.registrar.acquire(asked(1, 2))
        device.gate = asyncio.Event()
        task = asyncio.ensure_future(device.registrar.release(made))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        device.gate.set()
        for _ in range(10):
            await asyncio.sleep(0)
        assert device.registrar.held == len(device.live) == 0

    asyncio.run(main())


def test_bases_differ_and_are_congruent_to_the_memory() -> None:
    address = 0x7F12_3456_7123
    bases = [base_of(serial, address) for serial in range(1000)]
    assert len({base >> 44 for base in bases}) == 1000 and min(bases) >= 1 << 44
    assert {base % (2 << 20) for base in bases} == {address % (2 << 20)}
    assert max(base_of(serial, address) for serial in (0, 1 << 19, (1 << 19) - 1, 1 << 40)) < 1 << 63
