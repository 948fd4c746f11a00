"""Local registrations that are kept for a while: found again, held, bounded, and let go."""

from __future__ import annotations

import asyncio
import errno
import gc
import mmap
import weakref
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from transfer.errors import LimitReached
from transfer.rdma import kept
from transfer.rdma.kept import KeptReport, Local, LocalCache
from transfer.rdma.registrar import Asked, Registered, Registrar
from transfer.testing.loop import run_virtual

PAGE = 4096
Bytes = npt.NDArray[np.uint8]


class Device:
    """Registers in a dictionary; what is registered is its `live`."""

    def __init__(self, *, pages: int = 8, most: int = 4, mrs_max: int = 64) -> None:
        self.live: dict[int, Asked] = {}
        self.made = 0
        self.pages_max = 1 << 30  # as memlock
        self.stuck = False
        self.gate: asyncio.Event | None = None
        self.registrar = Registrar(mrs_max, register=self.register, deregister=self.deregister, run=self.run)
        self.cache = LocalCache(self.registrar, bytes_max=pages * PAGE, entries_max=most, idle_s=10.0)

    def register(self, asked: Asked) -> Registered:
        if sum(one.bytes for one in self.live.values()) + asked.bytes > self.pages_max * PAGE:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        self.made += 1
        self.live[self.made] = asked
        return Registered(self.made, self.made, self.made)

    def deregister(self, handle: int) -> None:
        if self.stuck:
            raise OSError(errno.EBUSY, "busy")
        del self.live[handle]

    async def run(self, work: Callable[[], list[Registered]]) -> list[Registered]:
        if self.gate is not None:
            await self.gate.wait()
        return work()

    async def acquire(self, memory: Bytes, *, writable: bool = True) -> Local:
        address = int(memory.ctypes.data)
        return await self.cache.acquire(
            memory, [Asked(1, address, memory.nbytes, address, write_here=writable)], writable=writable
        )

    async def once(self, memory: Bytes, *, writable: bool = True) -> Local:
        local = await self.acquire(memory, writable=writable)
        await self.cache.release(local)
        return local


def pages(count: int) -> Bytes:
    return np.zeros(count * PAGE, dtype=np.uint8)


def test_the_same_memory_is_registered_once() -> None:
    async def main() -> None:
        device, memory = Device(), pages(4)
        first = await device.once(memory)
        second = await device.acquire(memory[PAGE : 2 * PAGE].reshape(2, -1).view(np.uint8).reshape(-1))
        third = await device.acquire(memory, writable=False)
        assert first is second is third and device.made == 1 and first.uses == 2
        assert device.cache.report() == KeptReport(hits=2, misses=1, idle=0, idle_bytes=0)
        await device.cache.release(second)
        assert device.cache.report().idle == 0, "somebody still uses it"
        await device.cache.release(third)
        assert device.cache.report() == KeptReport(2, 1, 1, 4 * PAGE) and len(device.live) == 1

    run_virtual(main)


def test_other_memory_is_not_found() -> None:
    async def main() -> None:
        device, memory = Device(pages=64, most=64), pages(4)
        part = await device.once(memory[PAGE : 2 * PAGE])
        assert await device.acquire(memory[PAGE : 3 * PAGE]) is not part, "beyond what is registered"
        assert await device.acquire(memory[: 2 * PAGE]) is not part
        assert await device.once(memory[PAGE + 1 : 2 * PAGE]) is part
        read_only = await device.once(pages(1), writable=False)
        assert read_only.memory is not None
        assert await device.acquire(read_only.memory, writable=True) is not read_only, "no more rights than asked for"  # type: ignore[arg-type]

    run_virtual(main)


def test_another_owner_at_the_same_address_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the memory had been freed under its owner, and were somebody else's now."""

    async def main() -> None:
        device, memory = Device(), pages(2)
        owners = [object(), object()]
        monkeypatch.setattr(kept, "owner_of", lambda _: owners[0])
        local = await device.once(memory)
        monkeypatch.setattr(kept, "owner_of", lambda _: owners[1])
        assert await device.once(memory) is not local and device.cache.report().misses == 2
        monkeypatch.setattr(kept, "owner_of", lambda _: owners[0])
        assert await device.once(memory) is local

    run_virtual(main)


def test_an_array_that_owns_nothing_is_not_looked_for() -> None:
    async def main() -> None:
        device, memory = Device(), pages(2)
        local = await device.once(memory)
        stranger = np.frombuffer(memory.data, dtype=np.uint8)
        assert int(stranger.ctypes.data) == local.start
        assert await device.acquire(stranger) is not local
        assert device.cache.report().misses == 1

    run_virtual(main)


@pytest.mark.parametrize("make", [lambda: bytearray(PAGE), lambda: mmap.mmap(-1, PAGE)])
def test_what_its_owner_may_close_is_not_held(make: Callable[[], bytearray | mmap.mmap]) -> None:
    async def main() -> None:
        device, memory = Device(), make()
        await device.once(np.frombuffer(memory, dtype=np.uint8))
        assert not device.live and device.cache.report() == KeptReport(0, 0, 0, 0)
        if isinstance(memory, bytearray):
            memory.extend(b"more")
        else:
            memory.close()

    run_virtual(main)


def test_memory_is_held_as_long_as_it_is_registered_and_no_longer() -> None:
    async def main() -> None:
        device, memory = Device(), pages(2)
        gone = weakref.ref(memory)
        await device.once(memory[:PAGE])
        del memory
        gc.collect()
        assert gone() is not None and len(device.live) == 1
        await asyncio.sleep(9.9)
        assert gone() is not None and len(device.live) == 1
        await asyncio.sleep(0.2)
        assert gone() is None and not device.live and device.registrar.held == 0

    run_virtual(main)


def test_a_hit_begins_its_time_anew() -> None:
    async def main() -> None:
        device, memory = Device(), pages(1)
        for _ in range(5):
            await device.once(memory)
            await asyncio.sleep(8)
        assert device.made == 1
        await asyncio.sleep(3)
        assert not device.live

    run_virtual(main)


def test_memory_goes_only_when_the_device_has_let_it_go() -> None:
    async def main() -> None:
        device, memory = Device(), pages(2)
        gone = weakref.ref(memory)
        await device.once(memory)
        del memory
        device.gate = asyncio.Event()
        await asyncio.sleep(11)
        assert gone() is not None and len(device.live) == 1 and device.cache.report().idle == 0
        device.gate.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert gone() is None and not device.live

    run_virtual(main)


def test_the_longest_idle_goes_first_by_number_and_by_bytes() -> None:
    async def main() -> None:
        device = Device(pages=8, most=3)
        a, b, c, d = (pages(2) for _ in range(4))
        for memory in (a, b, c, a, d):
            await device.once(memory)
        assert sorted(one.address for one in device.live.values()) == sorted(int(m.ctypes.data) for m in (a, c, d))
        await device.once(pages(5))  # 2 + 2 + 2 + 5 pages: two must go
        assert [one.bytes // PAGE for one in device.live.values()] == [2, 5]
        assert int(d.ctypes.data) in {one.address for one in device.live.values()}
        assert device.cache.report()[2:] == (2, 7 * PAGE)
        await device.once(pages(9))
        assert device.cache.report()[2:] == (2, 7 * PAGE), "larger than all: nobody makes way for it"

    run_virtual(main)


def test_what_is_in_use_is_not_let_go() -> None:
    async def main() -> None:
        device = Device(pages=2, most=1)
        used = await device.acquire(pages(2))
        for _ in range(3):
            await device.once(pages(2))
        await device.cache.give_up()
        assert [one.address for one in device.live.values()] == [used.start]
        await device.cache.close()
        assert len(device.live) == 1
        await device.cache.release(used)
        assert not device.live, "closed: nothing is kept any more"

    run_virtual(main)


@pytest.mark.parametrize("limit", ["mrs_max", "memlock"])
def test_room_is_made_before_anybody_is_refused(limit: str) -> None:
    async def main() -> None:
        device = Device(pages=64, mrs_max=3 if limit == "mrs_max" else 64)
        device.pages_max = 6 if limit == "memlock" else 64
        for _ in range(3):
            await device.once(pages(2))
        assert len(device.live) == 3
        (granted,) = await device.registrar.acquire([Asked(2, 64, 2 * PAGE, 64, peer_reads=True)])
        assert list(device.live) == [granted.handle]
        used = [await device.acquire(pages(2)) for _ in range(2)]
        with pytest.raises(LimitReached) as caught:
            await device.acquire(pages(2))
        assert caught.value.limit == limit and len(device.live) == 3 and len(used) == 2

    run_virtual(main)


def test_a_device_that_does_not_let_go_keeps_the_memory() -> None:
    async def main() -> None:
        device, memory = Device(), pages(2)
        gone = weakref.ref(memory)
        await device.once(memory)
        del memory
        device.stuck = True
        await asyncio.sleep(11)
        asyncio.get_running_loop().tasks.clear()  # type: ignore[attr-defined]  # the refusal's frames know it
        gc.collect()
        assert gone() is not None and len(device.live) == 1 == device.registrar.held
        assert device.cache.report().idle == 0

    run_virtual(main)


def test_nor_does_it_lose_memory_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        device, memory = Device(pages=0), pages(1)
        held: list[object] = []
        monkeypatch.setattr(kept, "keep_forever", held.append)
        local = await device.acquire(memory)
        device.stuck = True
        with pytest.raises(OSError, match="busy"):
            await device.cache.release(local)
        assert held[0] is memory and device.registrar.held == len(device.live) == 1

    asyncio.run(main())


def test_nothing_is_left_at_the_end() -> None:
    async def main() -> None:
        device = Device()
        memories = [pages(1) for _ in range(3)]
        gone = [weakref.ref(memory) for memory in memories]
        for memory in memories:
            await device.once(memory)
        del memory
        memories.clear()
        assert len(device.live) == 3
        await device.cache.close()
        assert not device.live and device.registrar.held == 0 and [ref() for ref in gone] == [None] * 3
        await device.once(pages(1))
        assert not device.live

    run_virtual(main)


def test_nothing_is_kept_where_that_is_switched_off() -> None:
    async def main() -> None:
        device, memory = Device(pages=0), pages(1)
        for _ in range(2):
            await device.once(memory)
            assert not device.live
        assert device.made == 2

    run_virtual(main)


def test_a_cancelled_release_lets_go_all_the_same() -> None:
    async def main() -> None:
        device = Device(pages=2)
        first = await device.once(pages(2))
        used = await device.acquire(pages(2))
        device.gate = asyncio.Event()
        releasing = asyncio.ensure_future(device.cache.release(used))
        await asyncio.sleep(0)
        releasing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await releasing
        assert first.start in {one.address for one in device.live.values()}
        device.gate.set()
        await asyncio.sleep(0.1)
        assert [one.address for one in device.live.values()] == [used.start]

    run_virtual(main)


def test_peers_rights_are_never_kept() -> None:
    async def main() -> None:
        device, memory = Device(), pages(1)
        asked = Asked(1, 0, PAGE, 0, peer_reads=True)
        for one in (asked, replace(asked, peer_reads=False, peer_writes=True)):
            with pytest.raises(AssertionError):
                await device.cache.acquire(memory, [one], writable=True)

    run_virtual(main)
