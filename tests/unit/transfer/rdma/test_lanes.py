"""Lanes that are being built: what they are tried with, what a trial that fails comes to, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import cast

import pytest

from transfer.errors import PeerUnreachable, Reason
from transfer.rails import RailConfig, RailState
from transfer.rdma import lanes as module
from transfer.rdma.config import RdmaConfig
from transfer.rdma.control import Control
from transfer.rdma.frames import Hello, Join, Joined, Message, Present, RailOffer, Shown
from transfer.rdma.lanes import Lanes
from transfer.rdma.transport import RdmaTransport

OFFER = RailOffer(bytes(16), 0, 5, 1, True, True)
PAGE = Shown(Reason.LANDED, 1 << 44, ((71, 72),))
RETRIES_OVER, ACCESS = 12, 10


class Engine:
    """Lanes as they are handed over, by number: (device, trial)."""

    def __init__(self) -> None:
        self.lanes: dict[int, tuple[int, object]] = {}
        self.dropped: list[int] = []
        self.gave_up = 0

    def add_lane(self, number: int, peer: int, qp: int, device: int, peer_device: int, trial: object) -> None:
        self.lanes[number] = device, trial

    def drop_lane(self, number: int) -> None:
        self.dropped.append(number)

    def give_up(self, peer: int, gone: bool) -> None:
        self.gave_up += 1


class World:
    """A transport with two devices, joined to a peer with two; every queue pair connects."""

    def __init__(self, page: Shown = PAGE, *, landing: tuple[int, ...] = (51, 52), **config: object) -> None:
        self.engine, self.indices, self.pairs = Engine(), {}, []
        self.page = page
        rail = RailConfig(pause_s=0.01)
        self.config = RdmaConfig(qps=1, rail=rail, **config)  # type: ignore[arg-type]
        devices = [
            SimpleNamespace(name=name, gid_index=0, offer=lambda: OFFER, domain=SimpleNamespace(queue_pair=self.pair))
            for name in "ab"
        ]
        numbers = iter(range(100, 1000))
        host = SimpleNamespace(
            number=lambda: next(numbers),
            devices=devices,
            config=self.config,
            in_thread=self.in_thread,
            engine=self.engine,
            landing=SimpleNamespace(address=4096, keys=self.keys),
            lane_opened=lambda number, lanes, index: self.indices.update({number: index}),
        )
        self.landing = landing
        self.lanes = Lanes(cast(RdmaTransport, host), cast(Control, self), Hello(bytes(16), (OFFER, OFFER)))

    def pair(self, depth: int) -> SimpleNamespace:
        made = SimpleNamespace(number=1, address=1, closed=0)
        made.close = lambda: setattr(made, "closed", made.closed + 1)
        self.pairs.append(made)
        return made

    async def in_thread(self, work: Callable[[], object]) -> object:
        return work()

    async def keys(self) -> list[int]:
        return list(self.landing)

    async def ask(self, question: Message, limit_s: float) -> Message:
        if isinstance(question, Join):
            return Joined(1, 1, 5, 1)
        assert question == Present(b"")
        return self.page

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10.0):
            while not holds():
                await asyncio.sleep(0.001)

    def up(self, number: int) -> None:
        self.lanes.lane_up(self.indices[number])

    def down(self, number: int, status: int) -> None:
        self.lanes.lane_down(self.indices[number], status)

    async def close(self) -> None:
        closing = asyncio.ensure_future(self.lanes.close(10.0))
        while not closing.done():
            await asyncio.sleep(0.001)
            for number in self.engine.dropped:
                self.down(number, 0)
            self.engine.dropped.clear()
        assert await closing
        assert all(pair.closed == 1 for pair in self.pairs)


@pytest.fixture(autouse=True)
def _connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "connect_pair", lambda *_, **__: None)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await main()

    asyncio.run(body())


def test_a_lane_is_up_when_its_trial_has_landed() -> None:
    async def main() -> None:
        world = World()
        opening = asyncio.ensure_future(world.lanes.open())
        await world.until(lambda: len(world.engine.lanes) == 2)
        first, second = world.engine.lanes
        assert world.engine.lanes[first] == (0, (4096, 51, 1 << 44, 71, 4096))
        assert world.engine.lanes[second] == (1, (4096, 52, 1 << 44, 72, 4096))
        await asyncio.sleep(0.01)
        assert world.lanes.up == 0 and not opening.done(), "connected is not up"
        world.up(second)
        await opening
        assert world.lanes.up == 1 and world.lanes.states() == [RailState.OK] * 2
        await world.close()

    run(main)


@pytest.mark.parametrize("status", [RETRIES_OVER, ACCESS])
def test_a_rail_whose_trials_fail_is_taken_up_when_one_lands(status: int) -> None:
    """Also where the peer refuses the read: a lane that works nowhere must not be built again without a pause."""

    async def main() -> None:
        world = World()
        opening = asyncio.ensure_future(world.lanes.open())
        await world.until(lambda: len(world.engine.lanes) == 2)
        bad, good = world.engine.lanes
        world.up(good)
        await opening
        for turn in range(3):
            world.down(bad, status)
            await world.until(lambda: world.lanes.states()[0] is RailState.PAUSED)
            assert world.lanes.up == 1 and world.engine.gave_up == 0
            await world.until(lambda turn=turn: len(world.engine.lanes) == 3 + turn)  # type: ignore[misc]
            *_, bad = world.engine.lanes
            assert world.lanes.states()[0] is RailState.PAUSED and world.pairs[0].closed == 1
        world.up(bad)
        assert world.lanes.states() == [RailState.OK] * 2 and world.lanes.up == 2
        await world.close()

    run(main)


def test_a_lane_that_was_up_says_nothing_by_a_grants_end() -> None:
    async def main() -> None:
        world = World()
        opening = asyncio.ensure_future(world.lanes.open())
        await world.until(lambda: len(world.engine.lanes) == 2)
        for number in list(world.engine.lanes):
            world.up(number)
        await opening
        world.down(next(iter(world.engine.lanes)), ACCESS)
        assert world.lanes.states() == [RailState.OK] * 2 and world.lanes.up == 1
        await world.until(lambda: len(world.engine.lanes) == 3)
        await world.close()

    run(main)


def test_nobody_waits_for_a_path_on_which_nothing_comes_back() -> None:
    """By our own time, where a queue pair would try for minutes; what waits for a lane is told when none is left."""

    async def main() -> None:
        world = World(greeting_s=0.05)
        opening = asyncio.ensure_future(world.lanes.open())
        await world.until(lambda: len(world.engine.dropped) == 2)
        dropped, world.engine.dropped = world.engine.dropped, []
        for number in dropped:
            world.down(number, 0)
        with pytest.raises(PeerUnreachable, match="did not land"):
            await opening
        assert world.engine.gave_up
        await world.close()

    run(main)


@pytest.mark.parametrize(
    ("page", "landing"),
    [
        (Shown(Reason.REVOKED), (51, 52)),  # as one answers who knows of no trials
        (Shown(Reason.LANDED, 1, ((71,),)), (51, 52)),
        (PAGE, ()),
    ],
)
def test_without_a_page_nothing_is_tried(page: Shown, landing: tuple[int, ...]) -> None:
    async def main() -> None:
        world = World(page, landing=landing)
        opening = asyncio.ensure_future(world.lanes.open())
        await world.until(lambda: len(world.engine.lanes) == 2)
        assert [trial for _, trial in world.engine.lanes.values()] == [None, None]
        for number in list(world.engine.lanes):
            world.up(number)
        await opening
        await world.close()

    run(main)


def test_a_close_ends_what_is_on_trial() -> None:
    async def main() -> None:
        world = World()
        opening = asyncio.ensure_future(world.lanes.open())
        await world.until(lambda: len(world.engine.lanes) == 2)
        await world.close()
        with pytest.raises(PeerUnreachable):
            await opening
        assert len(world.pairs) == 2

    run(main)


def test_who_waits_for_lanes_to_end_can_be_cancelled() -> None:
    """A device that takes its time keeps its lane, and nobody's cancellation."""

    async def main() -> None:
        world = World()
        asked, answer = asyncio.Event(), asyncio.Event()

        async def in_thread(_: object) -> object:
            asked.set()
            while not answer.is_set():
                try:
                    await answer.wait()
                except asyncio.CancelledError:
                    continue
            raise OSError(5, "the device")

        world.lanes._host.in_thread = in_thread  # type: ignore[method-assign, assignment]
        opening = asyncio.ensure_future(world.lanes.open())
        await asked.wait()
        closing = asyncio.ensure_future(world.lanes.close(30.0))
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        answer.set()
        assert await world.lanes.close(30.0)
        with pytest.raises(PeerUnreachable):
            await opening

    run(main)
