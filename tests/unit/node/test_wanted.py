"""Which chains are worth a copy."""

from __future__ import annotations

import asyncio

from kvstore.node.far import FarCounts
from kvstore.node.wanted import COPIES_MAX, FAMILIES_MAX, Copier, Wanted


def test_the_second_get_within_the_window() -> None:
    wanted = Wanted(60.0)
    assert not wanted.asked(1, 0, 7, 0, 100.0)
    assert wanted.asked(1, 0, 7, 0, 150.0)
    assert not wanted.asked(1, 0, 7, 0, 151.0)  # begun: it counts anew


def test_later_windows_of_one_get_are_no_other_get() -> None:
    wanted = Wanted(60.0)
    assert not any(wanted.asked(1, 0, 7, position, 100.0 + position) for position in (4, 8, 12, 16))
    assert wanted.asked(1, 0, 7, 4, 120.0)


def test_too_late_another_family_another_shard_and_never() -> None:
    wanted = Wanted(60.0)
    assert not wanted.asked(1, 0, 7, 0, 100.0)
    assert not wanted.asked(1, 0, 8, 0, 101.0)
    assert not wanted.asked(1, 1, 7, 0, 101.0)
    assert not wanted.asked(2, 0, 7, 0, 101.0)
    assert not wanted.asked(1, 0, 7, 0, 160.0)
    assert wanted.asked(1, 0, 7, 0, 200.0)
    never = Wanted(0.0)
    never.crowded(1, 0, 7)
    assert not any(never.asked(1, 0, 7, 0, 1.0) for _ in range(3))


def test_a_crowd_is_reason_enough_once() -> None:
    wanted = Wanted(60.0)
    wanted.crowded(1, 0, 7)
    assert wanted.asked(1, 0, 7, 0, 1.0)
    assert not wanted.asked(1, 0, 7, 0, 2.0)


def test_what_is_remembered_is_limited() -> None:
    wanted = Wanted(60.0)
    for family in range(FAMILIES_MAX + 1):
        wanted.asked(1, 0, family, 0, 1.0)
        wanted.crowded(2, 0, family)
    assert len(wanted._seen) == FAMILIES_MAX == len(wanted._crowded)
    assert not wanted.asked(1, 0, 0, 0, 2.0) and wanted.asked(1, 0, 5, 0, 2.0)


def test_so_many_copies_at_once_and_the_rest_is_counted() -> None:
    async def copy(seconds: float) -> int:
        assert seconds > 0
        await asyncio.sleep(0)
        return 1

    async def nothing(_: float) -> int:
        return 0

    async def run() -> None:
        copier.begin(nothing)
        await asyncio.sleep(0.01)
        for _ in range(COPIES_MAX + 3):
            copier.begin(copy)
        await asyncio.sleep(0.01)
        await copier.close()

    counts = FarCounts()
    copier = Copier(counts)
    asyncio.run(run())
    assert (counts.wanted, counts.unwanted) == (COPIES_MAX, 4)
