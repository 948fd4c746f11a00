"""Ways to holders: made once, bounded, avoided for a while."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from kvstore.client import holders
from kvstore.client.holders import HOLDERS_MAX, Holders
from kvstore.errors import Unavailable
from transfer.offers import Offer


class Way:
    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class World:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[Way] = []
        self.wait = asyncio.Event()
        self.wait.set()
        monkeypatch.setattr(holders, "parse_offer", lambda offer: offer)
        self.holders = Holders(self.connect)  # type: ignore[arg-type]

    async def connect(self, offer: Offer, deadline_s: float) -> Way:
        await self.wait.wait()
        self.made.append(Way())
        return self.made[-1]

    async def reach(self, incarnation: int, deadline_s: float = 5.0) -> Any:
        return await self.holders.reach(incarnation, b"offer", deadline_s)


async def test_one_way_for_all_who_come_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.wait.clear()
    asking = [asyncio.ensure_future(world.reach(7)) for _ in range(5)]
    await asyncio.sleep(0)
    world.wait.set()
    assert len({id(way) for way in await asyncio.gather(*asking)}) == len(world.made) == 1
    assert await world.reach(7) is world.made[0]
    assert world.holders.lost(world.made[0]) and not world.holders.lost(world.made[0])  # type: ignore[arg-type]
    assert await world.reach(7) is world.made[1]


async def test_one_way_also_for_those_who_come_as_the_first_one_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one of two would be forgotten with its connections open."""
    world, asking = World(monkeypatch), list[asyncio.Task[Any]]()
    connect = world.holders._connect
    world.wait.clear()
    asyncio.get_running_loop().call_later(0.01, world.wait.set)

    async def fails_once(offer: Offer, deadline_s: float) -> Any:
        world.holders._connect = connect
        await asyncio.sleep(0)
        asking.append(asyncio.ensure_future(world.reach(7)))  # its turn comes before that of who waits already
        raise Unavailable("refused")

    world.holders._connect = fails_once
    asking += [asyncio.ensure_future(world.reach(7)) for _ in range(2)]
    first, *others = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(first, Unavailable) and len(asking) == 3
    assert {await asking[2], *others} == set(world.made) and len(world.made) == 1
    assert not world.holders._turns


async def test_the_one_used_longest_ago_makes_way_but_not_under_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    with world.holders.reading(0):
        for incarnation in range(HOLDERS_MAX):
            await world.reach(incarnation)
        await world.reach(1)
        await world.reach(1000)
        assert [i for i, way in enumerate(world.made) if way.closed] == [2]
    await world.reach(1001)
    assert [i for i, way in enumerate(world.made) if way.closed] == [0, 2]
    assert len(world.holders.close()) == HOLDERS_MAX and world.holders.close() == []


async def test_one_that_is_not_reached_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch)
    world.wait.clear()
    with pytest.raises(Unavailable):
        await world.reach(7, 0.01)
    world.wait.set()
    assert await world.reach(7) is world.made[0]


def test_who_led_nowhere_is_avoided_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    world, now = World(monkeypatch), [100.0]
    monkeypatch.setattr(holders.time, "monotonic", lambda: now[0])
    world.holders.avoid(1)
    world.holders.avoid(2, b"key")
    assert world.holders.avoided(b"key") == [1, 2] and world.holders.avoided(b"other") == [1]
    now[0] += holders.AVOID_S
    assert world.holders.avoided(b"key") == []
    for incarnation in range(2 * holders.AVOIDED_MAX):
        world.holders.avoid(incarnation)
    assert len(world.holders.avoided(b"")) == holders.AVOIDED_MAX
