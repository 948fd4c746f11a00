from __future__ import annotations

import asyncio

import pytest

from kvstore.tiers.page_pool import PAGE_BYTES, PagePool


async def test_pages_are_apart_and_come_back() -> None:
    pool = PagePool(4)
    pages = await pool.take(4)
    for i, page in enumerate(pages):
        assert len(page) == PAGE_BYTES
        page[:] = bytes([i]) * PAGE_BYTES
    assert [page[0] for page in pages] == [0, 1, 2, 3]
    pool.give(pages)
    assert len(await pool.take(4)) == 4


async def test_turns_are_kept_in_order() -> None:
    pool = PagePool(4)
    held = await pool.take(3)
    order: list[int] = []

    async def want(name: int, count: int) -> None:
        pages = await pool.take(count)
        order.append(name)
        pool.give(pages)

    tasks = [asyncio.ensure_future(want(1, 4)), asyncio.ensure_future(want(2, 1)), asyncio.ensure_future(want(3, 1))]
    await asyncio.sleep(0)
    assert order == []  # a small request does not overtake a large one for ever
    pool.give(held)
    await asyncio.gather(*tasks)
    assert order == [1, 2, 3]


async def test_a_cancelled_turn_costs_no_page() -> None:
    pool = PagePool(2)
    held = await pool.take(2)
    waiting = [asyncio.ensure_future(pool.take(2)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # while it waits
    await asyncio.sleep(0)
    pool.give(held)  # hands over to the second,
    waiting[1].cancel()  # which is cancelled before it runs
    got = await waiting[2]
    assert len(got) == 2
    pool.give(got)
    assert len(await pool.take(2)) == 2


async def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="count"):
        await PagePool(2).take(3)
