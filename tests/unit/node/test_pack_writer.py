"""What goes into which pack, who wins a race for one, and what is left alone when the store or the chain fails."""

from __future__ import annotations

import asyncio

import numpy as np
import obstore
import pytest
from obstore.store import MemoryStore

from tests.unit.node.packs_rig import PER_PACK, PacksRig, Requests, chain_of, eventually, joined, name, requests

__all__ = ["requests"]


@pytest.fixture
async def rig(requests: Requests) -> PacksRig:
    return PacksRig(MemoryStore())


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 11])
async def test_a_chain_becomes_aligned_groups_and_a_tail(rig: PacksRig, count: int) -> None:
    keys = chain_of("a", count)
    await rig.put(keys)
    await rig.writer.flush()
    ends = [*range(PER_PACK - 1, count, PER_PACK), *([count - 1] if count % PER_PACK else [])]
    assert await rig.stored() == {name(keys, end) for end in ends}
    assert rig.writer.blocks_written == count
    assert rig.dirty() == 0
    other = PacksRig(rig.bucket)
    found = await other.store.find(rig.tier.shapes.shape(rig.ns, 0).digest, 0, keys, PER_PACK)  # type: ignore[union-attr]
    heads = found.packs
    assert [(head.position, head.blocks) for head in heads] == [
        (at, min(PER_PACK, count - at)) for at in range(0, count, PER_PACK)
    ]
    for head in heads:
        other.index.add(other.ns, head)
    assert await other.read(keys) == count


async def test_chains_that_part_within_a_group_have_its_start_in_both_packs(rig: PacksRig) -> None:
    trunk = chain_of("trunk", 2)
    one, two = joined(trunk, chain_of("one", 2)), joined(trunk, chain_of("two", 1))
    await rig.put(one)
    await rig.put(two)
    await rig.writer.flush()
    assert await rig.stored() == {name(one, 3), name(two, 2)}
    assert await rig.read(one) == 4
    assert await rig.read(two) == 3


async def test_a_tail_that_grew_is_written_anew_as_a_group(rig: PacksRig) -> None:
    keys = chain_of("a", 4)
    await rig.put(keys[:2])
    await rig.writer.flush()
    await rig.put(keys[2:], keys[1].tobytes(), 2)
    await rig.writer.flush()
    assert await rig.stored() == {name(keys, 1), name(keys, 3)}
    assert rig.dirty() == 0


async def test_a_group_whose_start_is_not_here_is_passed_over_and_counted(rig: PacksRig) -> None:
    keys = chain_of("a", 4)
    await rig.put(keys[2:], keys[1].tobytes(), 2)
    await rig.writer.flush()
    assert await rig.stored() == set()
    assert rig.writer.blocks_passed == 2
    assert rig.writer.blocks_written == 0
    assert rig.dirty() == 2


async def test_a_group_that_begins_here_needs_nothing_before_it(rig: PacksRig) -> None:
    keys = chain_of("a", 6)
    await rig.put(keys[4:], keys[3].tobytes(), 4)
    await rig.writer.flush()
    assert await rig.stored() == {name(keys, 5)}


async def test_of_two_writers_of_one_pack_one_writes_and_both_know_it(requests: Requests) -> None:
    bucket = MemoryStore()
    one, two = PacksRig(bucket), PacksRig(bucket)
    keys = chain_of("a", 4)
    await one.put(keys)
    await two.put(keys)
    requests.hold_back("put_async")  # neither has seen the other's
    both = [asyncio.ensure_future(rig.writer.flush()) for rig in (one, two)]
    await eventually(lambda: requests.seen["put_async"] == 2)
    requests.open.set()
    await asyncio.gather(*both)
    assert one.store.counts.packs_written + two.store.counts.packs_written == 1
    assert one.store.counts.packs_there_already + two.store.counts.packs_there_already == 1
    for rig in (one, two):
        assert rig.writer.blocks_written == 4
        assert rig.dirty() == 0
        assert await rig.read(keys) == 4


async def test_what_another_node_wrote_is_not_sent_again(requests: Requests) -> None:
    bucket = MemoryStore()
    one, two = PacksRig(bucket), PacksRig(bucket)
    keys = chain_of("a", 4)
    for rig in (one, two):
        await rig.put(keys)
        await rig.writer.flush()
    assert requests.seen["put_async"] == 1
    assert two.dirty() == 0


async def test_while_the_circuit_is_open_nothing_is_copied_or_asked_and_nothing_is_lost(
    rig: PacksRig, requests: Requests
) -> None:
    chains = [chain_of(seed, 4) for seed in range(12)]
    for keys in chains[:2]:
        await rig.put(keys)
    await rig.writer.flush()
    requests.fails = lambda _verb, _name: True
    for keys in chains[2:]:
        await rig.put(keys)
    await rig.writer.flush()
    assert rig.store.circuit.is_open
    assert rig.writer.blocks_written == 2 * 4
    assert rig.writer.failures > 0
    assert rig.dirty() == 10 * 4
    asked, not_asked = dict(requests.seen), rig.store.counts.not_asked
    await rig.writer.flush()
    assert rig.store.counts.not_asked == not_asked, "and no pack is put together for it"
    assert dict(requests.seen) == asked, "a store that does not answer is left alone"
    requests.fails = lambda _verb, _name: False
    rig.clock.advance_ns(2 * 10**9)
    assert await rig.store.answers()
    await rig.writer.flush()
    assert rig.dirty() == 0
    assert [await rig.read(keys) for keys in chains] == [4] * 12


async def test_copies_under_way_are_bounded_in_bytes(requests: Requests) -> None:
    rig = PacksRig(MemoryStore(), write_bytes_max=2 * PER_PACK * 16_384)
    for seed in range(6):
        await rig.put(chain_of(seed, PER_PACK))
    requests.hold_back("put_async")
    flush = asyncio.ensure_future(rig.writer.flush())
    await eventually(lambda: requests.seen["put_async"] == 2)
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert requests.seen["put_async"] == 2
    requests.open.set()
    await flush
    assert rig.writer.blocks_written == 6 * PER_PACK


async def test_what_is_not_admitted_is_not_written(rig: PacksRig, requests: Requests) -> None:
    await rig.put(chain_of("a", 4))
    rig.admitted = False
    await rig.writer.flush()
    assert not requests.seen
    assert rig.dirty() == 4
    rig.admitted = True
    await rig.writer.flush()
    assert rig.dirty() == 0


async def test_rot_above_does_not_get_into_a_pack(rig: PacksRig) -> None:
    keys, others = chain_of("a", 4), chain_of("b", 4)
    await rig.put(keys)
    hold, rows = rig.core.hold(1, rig.storage.owner, rig.ns, 0, keys)
    rig.storage.payload[int(rows.offsets[2]) + 77] ^= 1
    rig.core.release(1, rig.storage.owner, hold)
    await rig.put(others)
    await rig.writer.flush()
    assert await rig.stored() == {name(others, 3), name(keys, 1)}, "what comes before it is well"
    assert rig.known(keys) == [True, True, False, False]
    assert await rig.read(keys) == 2


async def test_a_namespace_that_is_cleared_during_the_upload_is_not_listed(rig: PacksRig, requests: Requests) -> None:
    keys = chain_of("a", 4)
    await rig.put(keys)
    requests.hold_back("put_async")
    flush = asyncio.ensure_future(rig.writer.flush())
    await eventually(lambda: requests.seen["put_async"] == 1)
    rig.storage.shapes.rows.clear()
    requests.open.set()
    await flush
    assert rig.writer.blocks_written == 0
    assert rig.dirty() == 4, "nobody may take them for safe"
    assert rig.known(keys) == [False] * 4


async def test_a_cancelled_upload_leaves_blocks_dirty_and_slots_free_to_go(rig: PacksRig, requests: Requests) -> None:
    keys = chain_of("a", 4)
    await rig.put(keys)
    requests.hold_back("put_async")
    flush = asyncio.ensure_future(rig.writer.flush())
    await eventually(lambda: requests.seen["put_async"] == 1)
    assert rig.core.stats(1)["holds"] == 0, "nothing is held while the store is slow"
    flush.cancel()
    await asyncio.wait([flush])
    requests.open.set()
    assert rig.dirty() == 4
    assert rig.known(keys) == [False] * 4


async def test_it_begins_by_itself_when_room_runs_short_and_writes_the_coldest(requests: Requests) -> None:
    rig = PacksRig(MemoryStore(), memory_bytes=1 << 20)
    rig.writer.start()
    chains = [chain_of(seed, PER_PACK) for seed in range(14)]  # of 16 that fit
    for keys in chains[:6]:
        await rig.put(keys)
    await rig.writer.kick()
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert await rig.stored() == set(), "there is room enough"
    for keys in chains[6:]:
        await rig.put(keys)
    await rig.writer.kick()
    await eventually(lambda: rig.writer.blocks_written >= 4 * PER_PACK)
    await rig.writer.stop()
    stored = await rig.stored()
    assert {name(keys, PER_PACK - 1) for keys in chains[:3]} <= stored
    assert name(chains[-1], PER_PACK - 1) not in stored
    assert np.count_nonzero([name(keys, 3) in stored for keys in chains]) == len(stored)


@pytest.mark.parametrize("how", ["missing", "cut", "damaged", "damaged and read-only", "retired"])
async def test_what_a_lost_pack_leaves_above_is_written_again(rig: PacksRig, requests: Requests, how: str) -> None:
    """Else it would be evicted as if it were below, and be lost to everybody."""
    keys = chain_of("a", 8)
    await rig.put(keys)
    await rig.writer.flush()
    assert rig.dirty() == 0
    at = name(keys, 7)
    data = bytearray((await obstore.get_async(rig.bucket, at)).bytes())
    if how == "missing":
        await obstore.delete_async(rig.bucket, at)
    elif how == "cut":
        await obstore.put_async(rig.bucket, at, bytes(data[:-20_000]))
    elif how == "retired":
        assert rig.tier.retire(rig.ns, keys[7:]) == 1
        await rig.tier.settled(at)
    else:
        data[-5_000] ^= 1
        await obstore.put_async(rig.bucket, at, bytes(data))
        requests.fails = lambda verb, _name: how == "damaged and read-only" and verb == "delete_async"
    if how != "retired":
        assert 4 <= await rig.read(keys) < 8
    assert rig.dirty() == 4, "those of the other pack are below"
    requests.fails = lambda _verb, _name: False
    if how == "damaged and read-only":
        await obstore.delete_async(rig.bucket, at)
    assert await rig.writer._write_short()
    assert rig.dirty() == 0
    assert await rig.read(keys) == 8


async def test_what_was_swept_is_not_written_again_until_somebody_asks_for_it(rig: PacksRig) -> None:
    """Else a store that is smaller than memory would be written for ever: each pack pushes out another."""
    keys = chain_of("a", 8)
    await rig.put(keys)
    await rig.writer.flush()
    await rig.store.delete(sorted(await rig.stored()), swept=True)
    assert rig.known(keys) == [False] * 8
    written = rig.writer.blocks_written
    assert rig.dirty() == 8, "it is not below"
    while await rig.writer._write_short():
        pass
    assert rig.writer.blocks_written == written
    await rig.put(keys[:4])  # of what is held: that touches it
    while await rig.writer._write_short():
        pass
    assert rig.writer.blocks_written == written + 4
    assert await rig.read(keys) == 4
