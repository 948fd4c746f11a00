"""The slot table by its contract (native/core/slot_table.hpp), one rule a test; integrity after every one."""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator

import numpy as np
import pytest

from kvstore.identity import Keys
from kvstore.lifecycle import NO_SLOT, HoldKind, Outcome, ReserveStatus, SlotState, Ticket
from kvstore.native import SlotTable

KIB = 1024
SLAB = 64 * KIB
A, B, MANY_PARTS, SHARDED = 0, 1, 2, 3


def keys(first: int, count: int = 1) -> Keys:
    out = np.zeros((count, 32), np.uint8)
    for i in range(count):
        out[i] = np.random.default_rng(first + i).integers(1, 256, 32, np.uint8)
    return out


def make(
    slabs: int = 4, header: int = 0, meta: mmap.mmap | bytearray | None = None, policy: str = "leaf_lru"
) -> SlotTable:
    return SlotTable(slabs * SLAB, slab_bytes=SLAB, header_bytes=header, policy=policy, meta=meta)


def open_all(table: SlotTable) -> SlotTable:
    table.add_namespace(A, bytes([1] * 32), [[4 * KIB]])
    table.add_namespace(B, bytes([2] * 32), [[10 * KIB]])
    table.add_namespace(MANY_PARTS, bytes([3] * 32), [[KIB] * 8])
    table.add_namespace(SHARDED, bytes([4] * 32), [[KIB]] * 3)
    return table


@pytest.fixture
def table() -> Iterator[SlotTable]:
    table = open_all(make())
    yield table
    table.check_integrity()


PARTS = {A: 1, B: 1, MANY_PARTS: 8, SHARDED: 1}


def put(table: SlotTable, ns: int, chain: Keys, shard: int = 0, **more: object) -> list[int]:
    statuses, tickets, _ = table.reserve(1, ns, shard, chain, **more)  # type: ignore[arg-type]
    granted = tickets[statuses == ReserveStatus.GRANTED]
    sums = np.arange(len(granted) * PARTS[ns], dtype=np.uint64).reshape(len(granted), PARTS[ns])
    assert not table.seal(1, granted, sums).any()
    table.check_integrity()
    return [int(s) for s in statuses]


def word(table: SlotTable, ns: int, key: Keys) -> int:
    (slot,) = table.find(ns, 0, key)
    info = table.info(int(slot))
    assert info is not None
    return int(info["ticket"])  # type: ignore[call-overload, no-any-return]


def test_a_put_is_found_once_sealed(table: SlotTable) -> None:
    chain = keys(0, 5)
    statuses, tickets, offsets = table.reserve(1, A, 0, chain, metas=[b"m" * i for i in range(5)], position=7)
    assert statuses.tolist() == [ReserveStatus.GRANTED] * 5
    assert len(set(offsets.tolist())) == 5
    assert table.longest(A, 0, chain) == 0
    assert table.seal(1, tickets, np.arange(5, dtype=np.uint64).reshape(5, 1)).tolist() == [Outcome.OK] * 5
    assert table.longest(A, 0, chain) == 5
    info = table.info(Ticket.of(int(tickets[3])).slot)
    assert info is not None
    assert (info["key"], info["parent"]) == (chain[3].tobytes(), chain[2].tobytes())
    assert (info["meta"], info["checksums"], info["position"]) == (b"mmm", [3], 10)
    assert (info["state"], info["offset"], info["bytes"]) == (SlotState.SEALED, offsets[3], 4 * KIB)


def test_put_of_what_is_held_is_a_no_op_that_says_so(table: SlotTable) -> None:
    put(table, A, keys(0, 3))
    before = table.stats()
    statuses, tickets, _ = table.reserve(2, A, 0, keys(0, 3))
    assert statuses.tolist() == [ReserveStatus.HELD] * 3
    assert int(tickets[0]) == word(table, A, keys(0))
    assert table.stats() == before


def test_two_writers_of_one_key(table: SlotTable) -> None:
    _, tickets, _ = table.reserve(1, A, 0, keys(0))
    assert table.reserve(2, A, 0, keys(0))[0].tolist() == [ReserveStatus.PENDING]
    assert table.seal(2, tickets, np.zeros((1, 1), np.uint64)).tolist() == [Outcome.STALE]  # not the second's
    assert table.abort(1, int(tickets[0])) == Outcome.OK
    assert table.reserve(2, A, 0, keys(0))[0].tolist() == [ReserveStatus.GRANTED]


def test_a_key_twice_in_one_call_is_granted_once(table: SlotTable) -> None:
    twice = np.concatenate([keys(0), keys(1), keys(0)])
    assert table.reserve(1, A, 0, twice)[0].tolist() == [0, 0, ReserveStatus.PENDING]


def test_namespaces_and_shards_are_apart(table: SlotTable) -> None:
    put(table, A, keys(0))
    assert table.find(B, 0, keys(0)).tolist() == [NO_SLOT]
    put(table, SHARDED, keys(0), shard=2)
    put(table, SHARDED, keys(0), shard=0)
    assert table.shards_of(SHARDED, keys(0).tobytes()) == 0b101
    assert table.shards_of(A, keys(0).tobytes()) == 0b1
    assert table.retire_keys(SHARDED, keys(0)) == 2
    assert table.shards_of(SHARDED, keys(0).tobytes()) == 0


def test_parts_are_published_in_order_and_followed(table: SlotTable) -> None:
    _, tickets, _ = table.reserve(1, MANY_PARTS, 0, keys(0, 2))
    first = int(tickets[0])
    assert table.hold(2, MANY_PARTS, 0, keys(0, 2), following=True)[0] == 0
    assert table.publish_part(1, first, 1, 11) == Outcome.BAD_INPUT
    assert table.publish_part(2, first, 0, 10) == Outcome.STALE
    assert table.publish_part(1, first, 0, 10) == Outcome.OK
    assert table.publish_part(1, first, 0, 10) == Outcome.BAD_INPUT
    hold, held, _, ready = table.hold(2, MANY_PARTS, 0, keys(0, 2), following=True)
    assert hold and held.tolist() == [first] and ready.tolist() == [1]
    assert table.hold(2, MANY_PARTS, 0, keys(0, 2))[0] == 0
    rest = np.arange(7, dtype=np.uint64).reshape(1, 7)
    assert table.seal(1, tickets[:1], np.zeros((1, 5), np.uint64)).tolist() == [Outcome.BAD_INPUT]
    assert table.seal(1, tickets[:1], rest).tolist() == [Outcome.OK]
    info = table.info(Ticket.of(first).slot)
    assert info is not None and info["checksums"] == [10, 0, 1, 2, 3, 4, 5, 6]


def test_nothing_held_is_evicted_and_kFull_says_so(table: SlotTable) -> None:  # noqa: N802
    put(table, A, keys(0, 64))
    hold, held, _, _ = table.hold(2, A, 0, keys(0, 64), HoldKind.VIEW)
    assert len(held) == 64
    statuses, _, _ = table.reserve(1, A, 0, keys(100, 3))
    assert statuses.tolist() == [ReserveStatus.FULL] * 3
    assert table.take_evicted().tolist() == []
    assert table.release(2, hold) == Outcome.OK
    assert table.release(2, hold) == Outcome.STALE
    assert put(table, A, keys(100, 3)) == [0, 0, 0]
    assert len(table.take_evicted()) == 3
    assert table.longest(A, 0, keys(0, 64)) == 61


def test_a_put_never_evicts_its_own_chain(table: SlotTable) -> None:
    chain = keys(0, 100)
    put(table, A, chain[:64])
    statuses, _, _ = table.reserve(1, A, 0, chain)
    assert statuses.tolist() == [ReserveStatus.HELD] * 64 + [ReserveStatus.FULL] * 36
    assert table.take_evicted().tolist() == []


def test_a_put_never_evicts_its_parent(table: SlotTable) -> None:
    put(table, A, keys(0, 63))
    parent = keys(100)
    put(table, A, parent)
    for i in range(63):
        table.release(1, table.hold(1, A, 0, keys(i))[0])  # all warmer than the parent
    put(table, A, keys(101), parent=parent.tobytes())
    assert table.longest(A, 0, keys(100, 2)) == 2


def test_parents_of_held_leaves_can_go_before_a_put_is_refused(table: SlotTable) -> None:
    chain = keys(0, 64)
    put(table, A, chain)
    table.hold(1, A, 0, chain[63:], HoldKind.PIN)
    assert table.reserve(1, A, 0, keys(100, 64))[0].tolist() == [0] * 63 + [ReserveStatus.FULL]
    assert table.find(A, 0, chain[63:])[0] != NO_SLOT


def test_the_coldest_goes_leaf_first(table: SlotTable) -> None:
    old, new = keys(0, 32), keys(100, 32)
    put(table, A, old)
    put(table, A, new)
    put(table, A, keys(200, 4))
    assert table.longest(A, 0, old) == 28
    table.release(1, table.hold(1, A, 0, old[:28])[0])
    put(table, A, keys(300, 4))
    assert (table.longest(A, 0, old), table.longest(A, 0, new)) == (28, 28)


def test_slabs_move_between_sizes(table: SlotTable) -> None:
    put(table, A, keys(0, 64))
    for at in range(0, 20, 2):
        put(table, B, keys(1000 + at, 2))
    stats = table.stats()
    assert stats["slabs_moved"] == 4
    assert stats["payload_bytes_sealed"] == 20 * 10 * KIB  # five 12 KiB cells in each 64 KiB slab
    for at in range(0, 64, 4):
        put(table, A, keys(2000 + at, 4))
    assert table.stats()["payload_bytes_sealed"] >= 0.9 * 4 * SLAB


def test_a_slab_with_a_held_slot_is_passed_over(table: SlotTable) -> None:
    for at in range(0, 64, 16):
        put(table, A, keys(at, 16))
    table.hold(2, A, 0, keys(5), HoldKind.PIN)
    assert put(table, B, keys(1000, 15)) == [0] * 15
    assert table.reserve(1, B, 0, keys(2000, 20))[0].tolist().count(ReserveStatus.GRANTED) == 15
    assert table.find(A, 0, keys(5))[0] != NO_SLOT
    assert table.stats()["slabs_moved"] == 3


def test_blocks_of_all_sizes_up_to_a_slab() -> None:
    table = SlotTable(4 * (64 << 20), slab_bytes=64 << 20)
    sizes = [4 * KIB, 4 * KIB + 1, 100_000, 1 << 20, (1 << 20) + 1, (32 << 20) + 1, 64 << 20]
    for ns, size in enumerate(sizes):
        table.add_namespace(ns, bytes([ns + 1] * 32), [[size]])
    for ns, size in enumerate(sizes):
        statuses, tickets, offsets = table.reserve(1, ns, 0, keys(ns * 10, 2))
        assert statuses.tolist() == [0, 0] if ns < 6 else statuses[0] == 0
        assert all(
            o % 4096 == 0 and o // (64 << 20) == (o + size - 1) // (64 << 20) for o in offsets[statuses == 0].tolist()
        )
        table.seal(1, tickets[statuses == 0], np.zeros((int((statuses == 0).sum()), 1), np.uint64))
        table.check_integrity()
    small = SlotTable(SLAB, slab_bytes=SLAB, header_bytes=4096)
    small.add_namespace(0, bytes(32), [[SLAB]])
    assert small.reserve(1, 0, 0, keys(0))[0].tolist() == [ReserveStatus.TOO_LARGE]


def test_reservations_lapse(table: SlotTable) -> None:
    _, by_node, _ = table.reserve(1, A, 0, keys(0), now=100, lapse_after=50)
    _, in_place, _ = table.reserve(1, A, 0, keys(1), now=100, lapse_after=60, in_place=True)
    assert table.next_expiry() == 150
    table.expire(149)
    assert table.stats()["slots_reserved"] == 2
    table.expire(200)
    table.check_integrity()
    assert table.info(Ticket.of(int(by_node[0])).slot) is None
    lapsed = table.info(Ticket.of(int(in_place[0])).slot)
    assert lapsed is not None and lapsed["state"] == SlotState.RETIRED  # its client may still write
    sums = np.zeros((1, 1), np.uint64)
    assert table.seal(1, by_node, sums).tolist() == table.seal(1, in_place, sums).tolist() == [Outcome.STALE]
    stats = table.stats()
    assert (stats["lapsed_reservations"], stats["quarantined"], stats["slots_retired"]) == (2, 1, 1)
    assert put(table, A, keys(1)) == [0]  # elsewhere
    table.owner_gone(1)
    assert table.stats()["slots_retired"] == 0


def test_an_owner_lifts_its_own_quarantine(table: SlotTable) -> None:
    _, tickets, _ = table.reserve(1, A, 0, keys(0), lapse_after=1, in_place=True)
    table.expire(1)
    assert table.abort(2, int(tickets[0])) == Outcome.STALE
    assert table.stats()["slots_retired"] == 1
    assert table.abort(1, int(tickets[0])) == Outcome.STALE
    assert table.stats()["slots_retired"] == 0


def test_leases_lapse_and_views_do_not(table: SlotTable) -> None:
    put(table, A, keys(0, 3))
    lease, *_ = table.hold(1, A, 0, keys(0, 3), HoldKind.LEASE, now=0, lapse_after=10)
    view, *_ = table.hold(1, A, 0, keys(0, 3), HoldKind.VIEW, now=0, lapse_after=10)
    pin, *_ = table.hold(1, A, 0, keys(0, 3), HoldKind.PIN, now=0, lapse_after=20)
    assert table.holds_of(1) == 3
    assert table.stats()["pinned_bytes"] == 12 * KIB
    table.expire(10)
    assert table.release(1, lease) == Outcome.STALE
    table.expire(1 << 60)
    assert table.release(1, pin) == Outcome.STALE
    assert table.stats()["pinned_bytes"] == 0
    assert table.release(1, view) == Outcome.OK
    assert table.holds_of(1) == 0
    assert table.stats()["lapsed_leases"] == 1


def test_retired_is_unlisted_now_and_free_at_the_last_release(table: SlotTable) -> None:
    put(table, A, keys(0, 2))
    hold, tickets, _, _ = table.hold(1, A, 0, keys(0, 2), HoldKind.VIEW)
    slot = Ticket.of(int(tickets[0])).slot
    assert table.retire(slot) == Outcome.OK
    assert table.retire(slot) == Outcome.STALE
    assert table.retire(1 << 30) == Outcome.BAD_INPUT
    assert table.longest(A, 0, keys(0, 2)) == 0
    info = table.info(slot)
    assert info is not None and info["state"] == SlotState.RETIRED
    table.check_integrity()
    table.release(1, hold)
    assert table.info(slot) is None


def test_a_dropped_namespace_is_gone_and_its_views_are_not(table: SlotTable) -> None:
    put(table, A, keys(0, 10))
    put(table, B, keys(0, 2))
    _, writing, _ = table.reserve(3, A, 0, keys(50), in_place=True)
    hold, *_ = table.hold(1, A, 0, keys(0, 2), HoldKind.VIEW)
    assert table.drop_namespace(A) == 11
    assert table.stats()["slots_retired"] == 3
    assert table.longest(A, 0, keys(0, 10)) == 0
    assert table.longest(B, 0, keys(0, 2)) == 2
    with pytest.raises(ValueError, match="ns is not open"):
        table.reserve(1, A, 0, keys(0))
    assert table.seal(3, writing, np.zeros((1, 1), np.uint64)).tolist() == [Outcome.STALE]
    table.release(1, hold)
    table.owner_gone(3)
    assert table.stats()["slots_retired"] == 0


def test_write_behind_asks_for_the_coldest_dirty(table: SlotTable) -> None:
    put(table, A, keys(0, 8))
    coldest = [word(table, A, keys(i)) for i in (7, 6, 5)]
    assert table.dirty_victims(12 * KIB).tolist() == coldest
    hold, *_ = table.hold_slots(9, np.array(coldest[:1], np.uint64))
    assert coldest[0] not in table.dirty_victims(64 * KIB).tolist()
    table.release(9, hold)
    for ticket in coldest:
        table.mark_clean(ticket)
    assert table.dirty_victims(12 * KIB).tolist() == []
    put(table, A, keys(100, 64 - 8 + 4))
    assert table.stats()["evicted_clean"] == 3
    assert table.stats()["evicted_dirty"] == 1


def test_bad_input_is_refused_by_name(table: SlotTable) -> None:
    with pytest.raises(ValueError, match="shard"):
        table.reserve(1, A, 1, keys(0))
    with pytest.raises(ValueError, match="meta"):
        table.reserve(1, A, 0, keys(0), metas=[bytes(1025)])
    with pytest.raises(ValueError, match="meta"):
        table.reserve(1, A, 0, keys(0, 2), metas=[b""])
    with pytest.raises(ValueError, match="parts"):
        table.add_namespace(9, bytes([9] * 32), [[1] * 257])
    with pytest.raises(ValueError, match="another handle"):
        table.add_namespace(9, bytes([1] * 32), [[4 * KIB]])
    with pytest.raises(ValueError, match="multiple of slab_bytes"):
        SlotTable(SLAB + 4096, slab_bytes=SLAB)
    with pytest.raises(ValueError, match="meta_bytes"):
        make(meta=bytearray(4096))


def test_a_restart_finds_what_was_sealed() -> None:
    meta = mmap.mmap(-1, SlotTable.meta_bytes(4 * SLAB, SLAB))
    table = open_all(make(meta=meta))
    put(table, A, keys(0, 20), metas=[b"meta"] * 20)
    put(table, MANY_PARTS, keys(100, 3))
    table.hold(1, A, 0, keys(0, 1), HoldKind.VIEW)
    table.hold(1, A, 0, keys(0, 20), HoldKind.LEASE)
    _, writing, _ = table.reserve(1, A, 0, keys(50))
    table.mark_clean(word(table, A, keys(1)))
    del table
    table = make(meta=meta)
    assert table.recover() == 23
    table.check_integrity()
    assert table.longest(A, 0, keys(0, 20)) == 0  # not open yet: kept, unlisted
    open_all(table)
    assert table.longest(A, 0, keys(0, 20)) == 20
    info = table.info(int(table.find(A, 0, keys(3))[0]))
    assert info is not None and (info["meta"], info["checksums"]) == (b"meta", [3])
    clean = table.info(int(table.find(A, 0, keys(1))[0]))
    assert clean is not None and clean["clean"]
    assert table.quarantine_left()
    assert table.stats()["quarantined"] == 2  # the view's and the writer's
    written = table.info(Ticket.of(int(writing[0])).slot)
    assert written is not None and written["state"] == SlotState.RETIRED
    put(table, A, keys(1000, 100))
    assert table.find(A, 0, keys(0))[0] != NO_SLOT  # viewed by somebody: not evicted
    table.former_clients_gone()
    assert not table.quarantine_left()
    assert table.stats()["slots_retired"] == 0
    table.check_integrity()


def test_a_flipped_bit_in_meta_costs_its_entry() -> None:
    rng = np.random.default_rng(5)
    meta = mmap.mmap(-1, SlotTable.meta_bytes(4 * SLAB, SLAB))
    table = open_all(make(meta=meta))
    put(table, A, keys(0, 20), metas=[b"metadata"] * 20)
    put(table, MANY_PARTS, keys(100, 3))
    del table
    kept = meta[:]
    used = np.flatnonzero(np.frombuffer(kept, np.uint8))
    for at in rng.choice(used, 300).tolist():
        meta[:] = kept
        meta[at] ^= 1 << int(rng.integers(8))
        table = make(meta=meta)
        found = table.recover()
        table.check_integrity()
        assert found <= 23
        open_all(table)
        for slot in table.find(A, 0, keys(0, 20)).tolist():
            info = table.info(slot)
            assert info is None or (info["meta"] == b"metadata" and len(info["checksums"]) == 1)  # type: ignore[arg-type]
        put(table, A, keys(500, 70))
        del table


def test_a_file_tier_starts_from_its_rows() -> None:
    table = open_all(make(header=4096))
    put(table, A, keys(0, 20), metas=[b"x"] * 20)
    table.retire_keys(A, keys(3))
    first = word(table, A, keys(0))
    rows, freed = table.drain_changes(10_000)
    assert len(freed) == 1
    assert table.drain_changes(10_000)[0] == b""
    table.mark_clean(first)
    marked, _ = table.drain_changes(10_000)
    again = open_all(make(header=4096))
    assert again.restore(rows) == 19
    again.check_integrity()
    assert again.find(A, 0, keys(0, 20)).tolist() == table.find(A, 0, keys(0, 20)).tolist()
    assert again.record(first, np.empty(0, np.uint64)) == rows[: len(marked)] or again.restore(marked) == 0
    assert again.restore(rows) == 0  # all are taken
    assert again.stats()["recovered_rejected"] >= 19
    broken = bytearray(rows)
    broken[60] ^= 1
    third = open_all(make(header=4096))
    assert third.restore(bytes(broken)) == 0
    assert third.stats()["recovered_rejected"] == 1
    assert put(third, A, keys(0, 20)) == [0] * 20


def test_the_newer_claim_on_a_place_wins() -> None:
    old, new = open_all(make(1, header=4096)), open_all(make(1, header=4096))
    put(old, A, keys(0, 8))
    put(new, A, keys(50, 8))
    for ns in (B, B):  # the slab goes to B: its epoch is later
        put(new, ns, keys(100, 4))
    rows_old, rows_new = old.drain_changes(100)[0], new.drain_changes(100)[0]
    table = open_all(make(1, header=4096))
    assert table.restore(rows_old + rows_new) == 4
    assert table.longest(B, 0, keys(100, 4)) == 4
    table.check_integrity()


def test_a_hundred_thousand_rows_are_restored_quickly() -> None:
    count = 100_000
    table = SlotTable(table_bytes(count), slab_bytes=1 << 20, header_bytes=4096)
    table.add_namespace(0, bytes(32), [[4096]])
    for at in range(0, count, 1000):
        chain = np.random.default_rng(at).integers(0, 256, (1000, 32), np.uint8)
        _, tickets, _ = table.reserve(1, 0, 0, chain)
        table.seal(1, tickets, np.zeros((1000, 1), np.uint64))
    rows = b""
    while more := table.drain_changes(1 << 20)[0]:
        rows += more
    again = SlotTable(table_bytes(count), slab_bytes=1 << 20, header_bytes=4096)
    start = time.process_time()
    assert again.restore(rows) == count
    assert time.process_time() - start < 1.0
    again.add_namespace(0, bytes(32), [[4096]])
    assert len(again.sealed()) == count


def table_bytes(count: int) -> int:
    return 8192 * count + (-8192 * count) % (1 << 20)


def test_a_record_is_known_before_the_seal() -> None:
    table = open_all(make(header=4096))
    _, tickets, _ = table.reserve(1, A, 0, keys(0), metas=[b"m"])
    sums = np.array([7], np.uint64)
    before = table.record(int(tickets[0]), sums)
    table.seal(1, tickets, sums.reshape(1, 1))
    assert before == table.record(int(tickets[0]), np.empty(0, np.uint64)) == table.drain_changes(10)[0]
    with pytest.raises(ValueError, match="checksums"):
        table.record(int(tickets[0]), sums)
    assert table.record(int(tickets[0]) + (1 << 32), sums) is None


@pytest.mark.parametrize("policy", ["leaf_lru", "s3_fifo"])
def test_memory_is_counted(policy: str) -> None:
    table = SlotTable(4096 * 10_000 // SLAB * SLAB, slab_bytes=SLAB, policy=policy)
    table.add_namespace(0, bytes(32), [[4096]])
    for at in range(0, 9000, 100):
        put(table, 0, keys(at, 100))
    assert table.stats()["index_bytes"] / 9000 < 145
