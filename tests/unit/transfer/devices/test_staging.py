"""Staging through pinned memory, over a stream whose copies end when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from transfer.devices.crossing import Stager
from transfer.devices.memory import DeviceMemory
from transfer.devices.staging import Bytes, StagingPool
from transfer.errors import LimitReached, RegionPoisoned

SIZE = 4096
BASE = 1 << 20


class Device:
    """Memory at BASE; a copy's bytes move when `end` lets it, as late as can be."""

    def __init__(self, count: int = 16 * SIZE) -> None:
        self.memory = np.zeros(count, np.uint8)
        self.copies: list[Callable[[], None]] = []
        self.ended = 0
        self.broken = False
        self.refuses_marks = False
        self.refuses_copies = False
        self.free_running = False
        self.waited_for: list[int] = []

    def open_stream(self, device: int) -> Device:
        assert device == 3
        return self

    def to_device(self, address: int, host: Bytes) -> None:
        self._queue(lambda: np.copyto(self._at(address, host.nbytes), host))

    def to_host(self, host: Bytes, address: int) -> None:
        self._queue(lambda: np.copyto(host, self._at(address, host.nbytes)))

    def mark(self) -> Place:
        if self.refuses_marks:
            raise RuntimeError("no mark")
        return Place(self, len(self.copies))

    def after(self, stream: int) -> None:
        self.waited_for += [stream]

    def end(self, count: int) -> None:
        for _ in range(min(count, len(self.copies) - self.ended)):
            self.copies[self.ended]()
            self.ended += 1

    def _queue(self, copy: Callable[[], None]) -> None:
        if self.refuses_copies:
            raise RuntimeError("no copy")
        self.copies += [copy]

    def _at(self, address: int, count: int) -> Bytes:
        return self.memory[address - BASE : address - BASE + count]


class Place:
    def __init__(self, device: Device, position: int) -> None:
        self.device, self.position = device, position

    def done(self) -> bool:
        if self.device.broken:
            raise RuntimeError("device lost")
        if self.device.free_running:
            self.device.end(1)
        return self.device.ended >= self.position


def pool(buffers: int) -> StagingPool:
    return StagingPool(lambda count: np.zeros(count, np.uint8), staging_bytes_max=buffers * SIZE, buffer_bytes=SIZE)


def stager(buffers: StagingPool, device: Device, *, ahead_max: int = 4, quiesce_max_s: float = 60.0) -> Stager:
    async def sleep(_s: float) -> None:
        await asyncio.sleep(0)

    return Stager(buffers, device.open_stream, ahead_max=ahead_max, quiesce_max_s=quiesce_max_s, sleep=sleep)


def memory(device: Device, *, writable: bool = True, stream: int | None = None) -> DeviceMemory:
    return DeviceMemory(BASE, len(device.memory), 3, writable, device, stream)


async def turns(count: int = 50) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def pattern(count: int) -> Bytes:
    return np.random.default_rng(5).integers(1, 256, count, np.uint8)


@pytest.mark.parametrize("count", [0, 1, SIZE - 1, SIZE, SIZE + 1, 9 * SIZE + 77])
@pytest.mark.parametrize(("buffers", "ahead"), [(1, 4), (2, 1), (8, 4)])
async def test_bytes_land_and_leave_whole(count: int, buffers: int, ahead: int) -> None:
    device, held = Device(), pool(buffers)
    device.free_running = True
    moved, back = pattern(count), np.zeros(count, np.uint8)
    positions: list[int] = []

    async def fill(host: Bytes, position: int) -> None:
        await asyncio.sleep(0)
        host[:] = moved[position : position + len(host)]

    async def drain(host: Bytes, position: int) -> None:
        await asyncio.sleep(0)
        positions.append(position)
        back[position : position + len(host)] = host

    mover = stager(held, device, ahead_max=ahead)
    await mover.land(memory(device), 13, count, fill, deadline_s=60)
    assert (device.memory[13 : 13 + count] == moved).all()
    assert not device.memory[:13].any() and not device.memory[13 + count :].any()
    await mover.leave(memory(device), 13, count, drain, deadline_s=60)
    assert (back == moved).all()
    assert len(positions) == -(-count // SIZE)
    assert held.free == held.live == buffers


async def test_copies_are_queued_ahead_but_not_too_far() -> None:
    device, held = Device(), pool(8)

    async def fill(host: Bytes, _position: int) -> None:
        host[:] = 1

    task = asyncio.create_task(stager(held, device, ahead_max=3).land(memory(device), 0, 6 * SIZE, fill, deadline_s=60))
    await turns()
    assert (len(device.copies), held.free) == (3, 5)
    device.end(1)
    await turns()
    assert (len(device.copies), held.free) == (4, 5)
    device.free_running = True
    await task


async def test_no_answer_before_the_copies_are_over() -> None:
    device, held = Device(), pool(2)

    async def fill(host: Bytes, _position: int) -> None:
        host[:] = 9

    task = asyncio.create_task(stager(held, device).land(memory(device), 0, 2 * SIZE, fill, deadline_s=60))
    await turns()
    device.end(1)
    await turns()
    assert not task.done()
    device.end(1)
    await task


async def test_a_cancelled_transfer_answers_when_its_memory_is_quiet() -> None:
    device, held = Device(), pool(3)

    async def fill(host: Bytes, position: int) -> None:
        host[:] = 9
        if position == 2 * SIZE:
            await asyncio.Event().wait()

    task = asyncio.create_task(stager(held, device).land(memory(device), 0, 3 * SIZE, fill, deadline_s=60))
    await turns()
    for _ in range(3):  # however often
        task.cancel()
        await turns()
        assert not task.done() and held.free == 1  # what was not queued is free
    device.end(2)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held.free == held.live == 3
    assert (len(device.copies), device.ended) == (2, 2)


async def test_the_deadline_passes_and_memory_is_quiet() -> None:
    device, held = Device(), pool(1)

    async def fill(host: Bytes, position: int) -> None:
        device.end(len(device.copies))
        await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await stager(held, device).land(memory(device), 0, SIZE, fill, deadline_s=0)
    assert held.free == 1


@pytest.mark.parametrize("which", ["fill", "copy", "drain"])
async def test_an_error_is_told_when_memory_is_quiet(which: str) -> None:
    device, held = Device(), pool(4)

    async def move(host: Bytes, position: int) -> None:
        if position == SIZE:
            device.refuses_copies = which == "copy"
            if which != "copy":
                raise RuntimeError("no move")

    mover = stager(held, device)
    verb = mover.leave if which == "drain" else mover.land
    task = asyncio.create_task(verb(memory(device), 0, 3 * SIZE, move, deadline_s=60))
    await turns()
    if which == "drain":
        device.end(2)
        await turns()
    assert not task.done()
    device.end(3)
    with pytest.raises(RuntimeError, match=r"no (move|copy)"):
        await task
    assert held.free == held.live == 4


@pytest.mark.parametrize("how", ["stuck", "broken", "no mark"])
async def test_what_does_not_become_quiet_is_poisoned(how: str) -> None:
    device, held = Device(), pool(1)
    device.refuses_marks = how == "no mark"

    async def fill(host: Bytes, _position: int) -> None:
        device.broken = how == "broken"

    with pytest.raises(RegionPoisoned):
        await stager(held, device, quiesce_max_s=0).land(memory(device), 0, SIZE, fill, deadline_s=0.01)
    assert (held.free, held.live) == (0, 0)
    with pytest.raises(LimitReached) as raised:
        await held.lease()
    assert raised.value.limit == "staging_bytes_max"


async def test_a_loop_that_closes_leaves_nothing_that_looks_quiet() -> None:
    device, held = Device(), pool(2)

    async def fill(host: Bytes, _position: int) -> None:
        host[:] = 9

    task = asyncio.create_task(stager(held, device).land(memory(device), 0, SIZE, fill, deadline_s=60))
    await turns()
    for _ in range(2):  # as asyncio.run does at its end: whatever is left, the wait itself too
        for one in asyncio.all_tasks() - {asyncio.current_task()}:
            one.cancel()
        await turns()
    with pytest.raises(RegionPoisoned):
        await task
    assert (held.free, held.live) == (1, 1)


async def test_buffers_go_to_those_that_wait_in_their_order() -> None:
    held = pool(1)
    first = await held.lease()
    waiting = [asyncio.create_task(held.lease()) for _ in range(3)]
    await turns()
    waiting[0].cancel()
    held.give_back(first)
    await turns()
    assert [task.done() for task in waiting] == [True, True, False]
    assert waiting[1].result() is first
    waiting[2].cancel()
    await turns()
    held.give_back(first)
    assert held.free == 1


async def test_a_buffer_that_comes_as_its_waiter_is_cancelled_is_not_lost() -> None:
    held = pool(1)
    buffer = await held.lease()
    task = asyncio.create_task(held.lease())
    await turns()
    held.give_back(buffer)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert held.free == 1


async def test_those_that_wait_are_told_when_no_buffer_is_left() -> None:
    held = pool(1)
    buffer = await held.lease()
    task = asyncio.create_task(held.lease())
    await turns()
    held.poison(buffer)
    with pytest.raises(LimitReached):
        await task


async def test_two_transfers_over_one_pool_never_wait_for_each_other() -> None:
    device, held = Device(), pool(2)
    device.free_running = True

    async def fill(host: Bytes, _position: int) -> None:
        await asyncio.sleep(0)
        host[:] = 3

    mover = stager(held, device)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(mover.land(memory(device), 0, 7 * SIZE, fill, deadline_s=60))
    assert held.free == 2


async def test_the_producers_stream_is_waited_for() -> None:
    device = Device()
    device.free_running = True

    async def drain(_host: Bytes, _position: int) -> None:
        assert device.waited_for == [77]

    await stager(pool(1), device).leave(memory(device, stream=77), 0, 5, drain, deadline_s=60)
    assert device.waited_for == [77]


async def test_what_is_refused() -> None:
    device, held = Device(), pool(1)

    async def move(_host: Bytes, _position: int) -> None:
        raise AssertionError

    mover = stager(held, device)
    with pytest.raises(ValueError, match="read-only"):
        await mover.land(memory(device, writable=False), 0, 1, move, deadline_s=1)
    for offset, count in ((-1, 1), (0, -1), (16 * SIZE, 1)):
        with pytest.raises(ValueError, match="beyond"):
            await mover.leave(memory(device), offset, count, move, deadline_s=1)
    with pytest.raises(ValueError, match="staging_bytes_max"):
        pool(0)
    with pytest.raises(ValueError, match="buffer_bytes"):
        StagingPool(lambda count: np.zeros(count, np.uint8), staging_bytes_max=100, buffer_bytes=100)
    with pytest.raises(ValueError, match="ahead_max"):
        Stager(held, device.open_stream, ahead_max=0)
