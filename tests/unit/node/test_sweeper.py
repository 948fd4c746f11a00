"""How much each namespace may keep, what goes first, and who waits at the limit."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import obstore
import pytest
from hypothesis import given
from hypothesis import strategies as st
from obstore.store import MemoryStore

from kvstore.node.sweeper import Sweeper, shares
from kvstore.tiers.object import Listed, ObjectTier, doomed
from kvstore.tiers.packs import cleared_name, pack_name

A, B = b"a" * 32, b"b" * 32


def test_who_needs_less_than_an_even_share_keeps_all() -> None:
    assert shares({A: 10, B: 500}, 100) == {A: 10, B: 90}
    assert shares({A: 300, B: 500}, 100) == {A: 50, B: 50}
    assert shares({A: 30, B: 50}, 100) == {A: 30, B: 50}
    assert shares({}, 100) == {}


@given(st.dictionaries(st.binary(min_size=1, max_size=3), st.integers(0, 1000), max_size=8), st.integers(0, 3000))
def test_shares_never_exceed_the_limit_nor_waste_it(sizes: dict[bytes, int], limit: int) -> None:
    given_out = shares(sizes, limit)
    assert all(given_out[one] <= sizes[one] for one in sizes)
    assert sum(given_out.values()) <= limit
    if sum(sizes.values()) <= limit:
        assert given_out == sizes
    else:
        assert sum(given_out.values()) > limit - len(sizes), "but for rounding"


def test_the_oldest_go_first_and_those_to_keep_last() -> None:
    packs = [Listed(float(age), f"pack{age}", 10) for age in (3, 1, 2, 4)]
    assert [one.name for one in doomed(packs, 20, set())] == ["pack1", "pack2"]
    assert [one.name for one in doomed(packs, 20, {"pack1"})] == ["pack2", "pack3"]
    assert doomed(packs, 40, set()) == []
    assert len(doomed(packs, 0, {"pack1"})) == 4


async def stored(store: MemoryStore, digest: bytes, count: int, size: int) -> list[str]:
    keys = np.random.default_rng(digest[0]).bytes(32 * count)
    names = [pack_name(digest, 0, keys[32 * i : 32 * i + 32]) for i in range(count)]
    for name in names:
        await obstore.put_async(store, name, bytes(size))
    return names


async def left(store: MemoryStore) -> set[str]:
    return {entry["path"] async for batch in obstore.list(store) for entry in batch}


async def test_a_sweep_shares_the_limit_between_all_that_lies_there() -> None:
    store = MemoryStore()
    small, large = await stored(store, A, 2, 1000), await stored(store, B, 50, 1000)
    sweeper = Sweeper(ObjectTier(store), 20_000, 60.0, lambda: {large[0]})
    await sweeper.sweep()
    there = await left(store)
    assert set(small) <= there and large[0] in there
    assert len(there) == 18, "a tenth of the limit is free"
    assert sweeper.bytes_stored == 18_000


async def test_a_writer_at_the_limit_asks_for_a_sweep_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.sweeper.KICKED_PAUSE_S", 0.0)
    store = MemoryStore()
    await stored(store, A, 9, 1000)
    sweeper = Sweeper(ObjectTier(store), 10_000, 3600.0, set)

    async def swept(times: int) -> None:
        async with asyncio.timeout(20):
            while sweeper.sweeps < times:
                await asyncio.sleep(0.001)

    sweeper.start()
    try:
        await swept(1)
        assert sweeper.admit(1000)
        assert not sweeper.admit(2000)
        await swept(2)  # an hour before its time
        assert sweeper.admit(2000)
    finally:
        await sweeper.stop()


async def test_a_writer_waits_for_a_sweep_at_the_limit() -> None:
    store = MemoryStore()
    await stored(store, A, 9, 1000)
    tier = ObjectTier(store)
    sweeper = Sweeper(tier, 10_000, 60.0, set)
    await sweeper.sweep()
    assert sweeper.admit(1000)
    assert not sweeper.admit(5000)
    assert not sweeper.admit(1500), "and who wants less does not make it forget who wants most"
    await sweeper.sweep()
    assert sweeper.admit(5000)
    tier.counts.bytes_written += 5000
    assert not sweeper.admit(1)


@pytest.mark.parametrize("silent", ["namespaces", "one of them"])
async def test_a_store_that_does_not_tell_is_not_taken_for_an_empty_one(
    monkeypatch: pytest.MonkeyPatch, silent: str
) -> None:
    """Else the limit would be for what is written after each such look."""
    store = MemoryStore()
    await stored(store, A, 5, 1000)
    await stored(store, B, 5, 1000)
    tier = ObjectTier(store)
    sweeper = Sweeper(tier, 12_000, 60.0, set)
    await sweeper.sweep()
    tier.counts.bytes_written += 1000
    with monkeypatch.context() as patch:
        if silent == "namespaces":
            patch.setattr(tier, "namespaces", _nothing)
        else:
            listing = tier.listing
            patch.setattr(tier, "listing", lambda digest: _nothing() if digest == A else listing(digest))
        assert not sweeper.admit(2000)
        await sweeper.sweep()
        assert sweeper.bytes_stored == 11_000 and sweeper.sweeps == 1
        assert not sweeper.admit(2000) and len(await left(store)) == 10
    await sweeper.sweep()
    assert sweeper.admit(2000)


async def test_what_is_written_during_a_sweep_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the sweep saw it or not: twice is safe until the next, not at all would break the limit."""
    store = MemoryStore()
    await stored(store, A, 5, 1000)
    tier = ObjectTier(store)
    sweeper = Sweeper(tier, 10_000, 60.0, set)
    namespaces = tier.namespaces

    async def meanwhile() -> list[bytes] | None:
        tier.counts.bytes_written += 3000
        return await namespaces()

    monkeypatch.setattr(tier, "namespaces", meanwhile)
    await sweeper.sweep()
    assert sweeper.bytes_stored == 8000


async def _nothing() -> None:
    return None


async def test_what_could_not_be_deleted_is_still_there(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    await stored(store, A, 12, 1000)
    tier = ObjectTier(store)
    sweeper = Sweeper(tier, 10_000, 60.0, set)

    async def refused(_: list[str], *, swept: bool) -> set[str]:
        return set()

    monkeypatch.setattr(tier, "delete", refused)
    await sweeper.sweep()
    assert sweeper.bytes_stored == 12_000 and not sweeper.admit(1)


async def test_who_is_told_of_packs_that_went_is_told_why() -> None:
    """What the sweeper took for room is not to be written again at once; what a clear deletes is nobody's any more."""
    store = MemoryStore()
    packs = await stored(store, A, 12, 1000)
    tier = ObjectTier(store)
    told: list[tuple[str, bool]] = []
    tier.on_gone = lambda name, swept: told.append((name, swept))
    await Sweeper(tier, 10_000, 60.0, set).sweep()
    assert told and all(swept for _, swept in told) and {name for name, _ in told} == set(packs) - await left(store)
    told.clear()
    await tier.delete(sorted(await left(store))[:1])
    assert [swept for _, swept in told] == [False]


async def test_a_store_where_nothing_was_ever_written_is_empty(tmp_path: Path) -> None:
    tier = ObjectTier.open(f"file://{tmp_path}/objects", timeout_s=5, retries=0, concurrency=4, options={})
    assert await tier.namespaces() == []


async def test_without_a_limit_nothing_is_refused() -> None:
    assert Sweeper(ObjectTier(MemoryStore()), 0, 60.0, set).admit(1 << 60)


async def test_what_was_cleared_is_deleted_even_when_an_upload_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.sweeper.CLEAR_AGAIN_S", 0.01)
    store = MemoryStore()
    await stored(store, A, 3, 10)
    kept = await stored(store, B, 1, 10)
    tier = ObjectTier(store)
    sweeper = Sweeper(tier, 0, 60.0, set)
    gone: list[str] = []
    tier.on_gone = lambda name, _swept: gone.append(name)
    listing = tier.listing

    async def with_a_late_one(digest: bytes) -> list[Listed] | None:
        if len(gone) == 3:
            await stored(store, A, 1, 10)
            gone.append("late")
        return await listing(digest)

    monkeypatch.setattr(tier, "listing", with_a_late_one)
    sweeper.clear(A)
    while sweeper._tasks:
        await next(iter(sweeper._tasks))
    assert await left(store) == {*kept, cleared_name(A)}
    assert await tier.is_cleared(A) is True and await tier.is_cleared(B) is False
    assert await ObjectTier(store).mark_cleared(A), "another node was first"


async def test_a_clear_is_not_over_before_it_is_known_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """It must be marked, and looked at after an upload that was under way, and the store must have said so itself."""
    monkeypatch.setattr("kvstore.node.sweeper.CLEAR_AGAIN_S", 0.0)
    store = MemoryStore()
    tier = ObjectTier(store)
    sweeper = Sweeper(tier, 0, 60.0, set)
    looks, marks = 0, 0
    listing, mark = tier.listing, tier.mark_cleared

    async def listed(digest: bytes) -> list[Listed] | None:
        nonlocal looks
        looks += 1
        if looks == 2:
            await stored(store, A, 1, 10)
            return None
        return await listing(digest)

    async def marked(digest: bytes) -> bool:
        nonlocal marks
        marks += 1
        return marks == 5 and await mark(digest)

    monkeypatch.setattr(tier, "listing", listed)
    monkeypatch.setattr(tier, "mark_cleared", marked)
    sweeper.clear(A)
    while sweeper._tasks:
        await next(iter(sweeper._tasks))
    assert (looks, marks) == (5, 5)
    assert await left(store) == {cleared_name(A)}


async def test_a_clear_outlasts_a_store_that_is_away_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else would ever mark it: whoever has lost its disk would find what was cleared."""
    monkeypatch.setattr("kvstore.node.sweeper.CLEAR_AGAIN_S", 0.0)
    store = MemoryStore()
    await stored(store, A, 2, 10)
    tier = ObjectTier(store)
    sweeper, looks = Sweeper(tier, 0, 60.0, set), 0
    listing, mark = tier.listing, tier.mark_cleared

    async def listed(digest: bytes) -> list[Listed] | None:
        nonlocal looks
        looks += 1
        return await listing(digest) if looks > 30 else None

    async def marked(digest: bytes) -> bool:
        return looks >= 30 and await mark(digest)

    monkeypatch.setattr(tier, "listing", listed)
    monkeypatch.setattr(tier, "mark_cleared", marked)
    sweeper.clear(A)
    while sweeper._tasks:
        await next(iter(sweeper._tasks))
    assert await left(store) == {cleared_name(A)} and looks == 32


async def test_a_clear_looks_twice_at_what_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.node.sweeper.CLEAR_AGAIN_S", 0.0)
    store = MemoryStore()
    tier = ObjectTier(store)
    sweeper = Sweeper(tier, 0, 60.0, set)
    listing, looks = tier.listing, 0

    async def then_an_upload_ends(digest: bytes) -> list[Listed] | None:
        nonlocal looks
        looks += 1
        found = await listing(digest)
        if looks == 1:
            await stored(store, A, 1, 10)
        return found

    monkeypatch.setattr(tier, "listing", then_an_upload_ends)
    sweeper.clear(A)
    while sweeper._tasks:
        await next(iter(sweeper._tasks))
    assert await left(store) == {cleared_name(A)}


@pytest.mark.parametrize("turns", range(5))
async def test_a_stop_is_not_lost_to_a_kick(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whichever turn of the loop it comes. wait_for of Python 3.11 loses a cancellation that meets an answer."""
    monkeypatch.setattr("kvstore.node.sweeper.KICKED_PAUSE_S", 0.0)
    sweeper = Sweeper(ObjectTier(MemoryStore()), 1000, 60.0, set)
    sweeper.start()
    while not sweeper.sweeps:
        await asyncio.sleep(0)
    for _ in range(10):  # now it waits to be kicked
        await asyncio.sleep(0)
    assert not sweeper.admit(2000)
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await sweeper.stop()
