"""Who waits for events is woken, by one look at the ring for all, and nobody looks where nobody waits."""

from __future__ import annotations

import asyncio

import pytest

from kvstore.node import news
from kvstore.node.news import News

WATCHERS = 200
TURNS = 50


class Ring:
    def __init__(self) -> None:
        self.sequence, self.looks = 7, 0

    def __call__(self) -> int:
        self.looks += 1
        return self.sequence


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is a turn of the loop."""
    monkeypatch.setattr(news, "TURN_S", 0)


async def turns(count: int = TURNS) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_one_look_a_turn_for_all_and_all_are_woken_by_one_event() -> None:
    ring = Ring()
    told = News(ring)
    watchers = [asyncio.ensure_future(told.after(7)) for _ in range(WATCHERS)]
    await turns()
    assert not any(watcher.done() for watcher in watchers)
    assert WATCHERS < ring.looks <= WATCHERS + TURNS, "each looks once when it comes; then one look a turn"
    ring.sequence += 1
    await turns(10)
    assert all(watcher.done() for watcher in watchers)
    ring.looks = 0
    await turns()
    assert ring.looks == 0, "nobody waits, and somebody looks"


async def test_who_is_behind_does_not_wait() -> None:
    ring = Ring()
    async with asyncio.timeout(5):
        await News(ring).after(6)
    assert ring.looks == 1


async def test_who_comes_between_two_looks_hears_of_the_next_event() -> None:
    ring = Ring()
    told = News(ring)
    early = asyncio.ensure_future(told.after(7))
    await asyncio.sleep(0)
    ring.sequence += 1
    while not early.done():
        await asyncio.sleep(0)
    late = asyncio.ensure_future(told.after(8))
    await turns()
    assert not late.done()
    ring.sequence += 1
    async with asyncio.timeout(5):
        await late


async def test_who_has_waited_long_enough_or_was_cancelled_is_forgotten() -> None:
    ring = Ring()
    told = News(ring)
    async with asyncio.timeout(5):
        await told.after(7, within_s=0.0)
    watcher = asyncio.ensure_future(told.after(7))
    await asyncio.sleep(0)
    watcher.cancel()
    await turns(5)
    ring.looks = 0
    await turns()
    assert ring.looks == 0
