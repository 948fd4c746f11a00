"""What a peer of the door may not do with what is another's: its namespaces, its reservations, its holds, its slots.

`test_door.py` asks what a peer gets wrong; here it gets nothing wrong and has no right.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import native
from tests.integration.test_door import (
    BAD_INPUT,
    HINT,
    HOLD,
    OK,
    PARTS,
    REJECTED,
    RESERVE,
    SEAL,
    STALE,
    WRITE,
    Peer,
    Rig,
    chain,
    eventually,
    field_of,
    put,
)

ABORT, RELEASE, READ, CORRUPT = 6, 8, 10, 12
SIZE = sum(PARTS)
STALE_OUTCOME = 1
MEMORY_TIER = 1


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, trusted=True)
    yield made
    made.stop()


@pytest.fixture
def streamed(tmp_path: Path) -> Iterator[Rig]:
    """Of peers that are not trusted: their bytes travel in frames."""
    made = Rig(tmp_path, trusted=False, streamed_bytes_max=8 * SIZE)
    yield made
    made.stop()


def fetch(rig: Rig, session: native.Session, n: int) -> tuple[native.Result, np.ndarray]:
    into = np.full((n, SIZE), 0xEE, np.uint8)
    addresses = np.array([row.ctypes.data for row in into], np.uint64)
    return session.fetch(rig.ns, 0, chain(n), addresses, np.array([SIZE], np.uint64), HINT, 0.0, 5.0), into


def reserve_frame(ns: int, keys: int) -> bytes:
    return struct.pack("<IHHII", ns, 0, 0, keys, 0) + bytes(64) + chain(keys).tobytes()


def hold_frame(ns: int, keys: int, lease_ms: int = 0) -> bytes:
    return struct.pack("<IHBBIIII", ns, 0, 0, 0, keys, 0, lease_ms, 0) + bytes(32) + chain(keys).tobytes()


def reserved(rig: Rig, peer: Peer, keys: int) -> list[bytes]:
    """The tickets of that many reservations."""
    peer.send(RESERVE, reserve_frame(rig.ns, keys))
    verb, status, body = peer.answer()
    assert (verb, status) == (RESERVE, OK)
    rows = [body[at : at + 24] for at in range(0, len(body), 24)]
    assert [row[0] for row in rows] == [0] * keys
    return [row[8:16] for row in rows]


def allowed(rig: Rig) -> Peer:
    peer = rig.peer()
    assert rig.door.allow(peer.owner, rig.ns)
    return peer


# ---- namespaces -----------------------------------------------------------------------------------------------------


def test_nothing_is_written_into_a_namespace_that_is_not_ones_own(rig: Rig) -> None:
    stranger = native.Session(rig.path)
    stranger.describe(rig.ns, [PARTS])
    refused = put(rig, stranger, 2)
    assert (refused.status, refused.field, refused.blocks) == (STALE, "ns", 0)
    slots = stranger.reserve(rig.ns, 0, chain(2), HINT, 5.0)
    assert slots.result.status == STALE and not slots.granted
    assert rig.core.stats(MEMORY_TIER)["slots_reserved"] == 0
    assert rig.core.lookup(rig.ns, chain(2), [])[1] == 0


def test_what_another_tenant_fetches_is_not_counted_for_this_one(rig: Rig) -> None:
    owner, stranger = rig.session(), native.Session(rig.path)
    before = rig.core.counters()
    stranger.fetched(rig.ns, HINT, 100, (0, 100, 0, 0), 0, 1, 1)
    stranger.flush()
    stranger.describe(rig.ns, [PARTS])
    assert stranger.lookup(rig.ns, chain(1), [], 5.0).status == STALE  # what was said before it has been heard
    assert rig.core.counters()["asked"] == before["asked"]
    owner.fetched(rig.ns, HINT, 100, (0, 100, 0, 0), 0, 1, 1)
    owner.flush()
    eventually(lambda: rig.core.counters()["asked"] == before["asked"] + 100)


def test_a_block_of_another_tenant_is_not_called_damaged(rig: Rig) -> None:
    """The node would read the whole block again for each such word."""
    owner, stranger = rig.session(), native.Session(rig.path)
    put(rig, owner, 1)
    (ticket,) = owner.view(rig.ns, 0, chain(1), HINT, 0.0, 5.0).tickets
    stranger.corrupt([ticket])
    stranger.flush()
    stranger.describe(rig.ns, [PARTS])
    assert stranger.lookup(rig.ns, chain(1), [], 5.0).status == STALE
    assert rig.core.counters()["corrupt_reported"] == 0
    owner.corrupt([ticket])
    owner.flush()
    eventually(lambda: rig.core.counters()["corrupt_reported"] == 1)


# ---- another one's tickets and holds --------------------------------------------------------------------------------


def test_another_ones_reservation_is_not_sealed_written_or_given_back(rig: Rig) -> None:
    writer, other = allowed(rig), allowed(rig)
    (ticket,) = reserved(rig, writer, 1)
    other.send(SEAL, struct.pack("<IIQ", 1, 2, 0) + ticket + bytes(16))
    assert other.answer() == (SEAL, OK, bytes([STALE_OUTCOME]))
    other.send(ABORT, struct.pack("<II", 1, 0) + ticket)
    other.answer()
    assert rig.core.stats(MEMORY_TIER)["slots_reserved"] == 1
    writer.send(SEAL, struct.pack("<IIQ", 1, 2, 0) + ticket + bytes(16))
    assert writer.answer() == (SEAL, OK, bytes([0]))


def test_another_ones_hold_is_neither_read_nor_released(streamed: Rig) -> None:
    put(streamed, streamed.session(), 1)
    holder, other = allowed(streamed), allowed(streamed)
    holder.send(HOLD, hold_frame(streamed.ns, 1))
    verb, status, body = holder.answer()
    assert (verb, status) == (HOLD, OK)
    hold = body[:8]
    other.send(READ, hold + struct.pack("<II", 0, 1))
    assert other.answer()[:2] == (READ, 5)  # gone: as one that never was
    other.send(RELEASE, struct.pack("<II", 1, 0) + hold)
    assert other.answer() == (RELEASE, OK, bytes([STALE_OUTCOME]))
    assert streamed.core.stats(MEMORY_TIER)["holds"] == 1
    holder.send(READ, hold + struct.pack("<II", 0, 1))
    assert len(holder.answer()[2]) == SIZE


def test_offsets_are_told_to_nobody_who_maps_nothing(streamed: Rig) -> None:
    session = streamed.session()
    put(streamed, session, 2)
    peer = allowed(streamed)
    peer.send(RESERVE, reserve_frame(streamed.ns, 4))
    rows = peer.answer()[2]
    peer.send(HOLD, hold_frame(streamed.ns, 2))
    held = peer.answer()[2]
    assert {rows[at + 16 : at + 24] for at in range(0, len(rows), 24)} == {bytes(8)}
    assert {held[24 + at + 8 : 24 + at + 16] for at in (0, 24)} == {bytes(8)}


# ---- bytes in frames ------------------------------------------------------------------------------------------------


def test_bytes_that_changed_in_memory_end_a_streamed_get(streamed: Rig) -> None:
    session = streamed.session()
    assert put(streamed, session, 3).blocks == 3
    got, into = fetch(streamed, session, 3)
    assert (got.blocks, got.blocks_corrupt) == (3, 0) and not into.any()
    (offset,) = streamed.core.hold(MEMORY_TIER, streamed.core.new_owner(), streamed.ns, 0, chain(3)[1:2])[1].offsets
    os.pwrite(streamed.fd, b"\1", int(offset) + PARTS[0] + 17)
    got, _ = fetch(streamed, session, 3)
    assert (got.blocks, got.blocks_corrupt) == (1, 1)
    eventually(lambda: streamed.core.counters()["corrupt_reported"] == 1)


def test_a_block_is_sealed_only_when_all_of_it_has_come(streamed: Rig) -> None:
    peer = allowed(streamed)
    (ticket,) = reserved(streamed, peer, 1)
    peer.send(WRITE, ticket + struct.pack("<Q", 0) + bytes(PARTS[0]))
    assert peer.answer()[:2] == (WRITE, OK)
    peer.send(SEAL, struct.pack("<IIQ", 1, 0, 0) + ticket)
    verb, status, body = peer.answer()
    assert (verb, status) == (SEAL, OK) and body != bytes([0])
    assert streamed.core.lookup(streamed.ns, chain(1), [])[1] == 0
    assert streamed.core.stats(MEMORY_TIER)["slots_reserved"] == 0


@pytest.mark.parametrize(
    ("offset", "length", "field"), [(1, 8, "offset"), (PARTS[0], 8, "offset"), (0, SIZE + 1, "bytes")]
)
def test_bytes_out_of_order_or_beyond_the_block_cost_the_connection(
    streamed: Rig, offset: int, length: int, field: str
) -> None:
    neighbour = streamed.session()
    assert put(streamed, neighbour, 1).blocks == 1
    peer = allowed(streamed)
    keys = chain(1, first=50).tobytes()
    peer.send(RESERVE, struct.pack("<IHHII", streamed.ns, 0, 0, 1, 0) + bytes(64) + keys)
    ticket = peer.answer()[2][8:16]
    peer.send(WRITE, ticket + struct.pack("<Q", offset) + bytes([7]) * length)
    verb, status, body = peer.answer()
    assert (verb, status, field_of(body)) == (127, BAD_INPUT, field)
    assert peer.closed()
    assert fetch(streamed, neighbour, 1)[0].blocks == 1
    eventually(lambda: streamed.core.stats(MEMORY_TIER)["slots_reserved"] == 0)


def test_a_read_ends_where_its_hold_does(streamed: Rig) -> None:
    put(streamed, streamed.session(), 2)
    peer = allowed(streamed)
    peer.send(HOLD, hold_frame(streamed.ns, 2))
    hold = peer.answer()[2][:8]
    for first, count in ((0, 3), (2, 1), (0, 0), (0xFFFFFFFF, 1)):
        peer.send(READ, hold + struct.pack("<II", first, count))
        verb, status, body = peer.answer()
        assert (verb, status, field_of(body)) == (READ, BAD_INPUT, "count")


def test_what_is_being_sent_stays_although_its_lease_is_over(tmp_path: Path) -> None:
    rig = Rig(tmp_path, trusted=False)
    try:
        session, blocks = rig.session(), 400  # more than sockets keep
        assert put(rig, session, blocks, 7).blocks == blocks
        peer = allowed(rig)
        keys = chain(blocks, first=7).tobytes()
        peer.send(HOLD, struct.pack("<IHBBIIII", rig.ns, 0, 0, 0, blocks, 0, 100, 0) + bytes(32) + keys)
        hold = peer.answer()[2][:8]
        peer.send(READ, hold + struct.pack("<II", 0, blocks))
        time.sleep(0.4)  # it reads nothing past its lease, while others need the room
        for first in range(10_000, 14_000, 200):
            put(rig, session, 200, first)
        came = b"".join(peer.answer()[2] for _ in range(blocks))
        assert came == bytes([7]) * (blocks * SIZE)
        eventually(lambda: rig.core.stats(MEMORY_TIER)["holds"] == 0)
    finally:
        rig.stop()


def test_what_is_under_way_in_frames_has_a_limit(streamed: Rig) -> None:
    peer = allowed(streamed)
    peer.send(RESERVE, reserve_frame(streamed.ns, 9))
    verb, status, body = peer.answer()
    assert (verb, status, field_of(body)) == (RESERVE, REJECTED, "streamed_bytes_max")
    assert streamed.core.stats(MEMORY_TIER)["slots_reserved"] == 0
    session = streamed.session()
    for first in (0, 8):
        assert put(streamed, session, 8, first).blocks == 8
    peer.send(HOLD, hold_frame(streamed.ns, 8))
    assert peer.answer()[:2] == (HOLD, OK)
    peer.send(HOLD, hold_frame(streamed.ns, 1))
    verb, status, body = peer.answer()
    assert (verb, status, field_of(body)) == (HOLD, REJECTED, "streamed_bytes_max")
    assert streamed.core.stats(MEMORY_TIER)["holds"] == 1


def test_what_a_silent_peer_reserved_or_held_in_frames_comes_back(streamed: Rig) -> None:
    """Nothing of it can land later, since the door writes for it: no quarantine, and its seal comes too late."""
    put(streamed, streamed.session(), 1)
    peer = allowed(streamed)
    peer.send(RESERVE, struct.pack("<IHHII", streamed.ns, 0, 0, 1, 0) + bytes(64) + chain(1, first=9).tobytes())
    ticket = peer.answer()[2][8:16]
    peer.send(HOLD, hold_frame(streamed.ns, 1, lease_ms=200))
    hold = peer.answer()[2][:8]
    eventually(lambda: streamed.core.stats(MEMORY_TIER)["slots_reserved"] == 0)
    eventually(lambda: streamed.core.stats(MEMORY_TIER)["slots_retired"] == 0)
    eventually(lambda: streamed.core.stats(MEMORY_TIER)["holds"] == 0)
    peer.send(WRITE, ticket + struct.pack("<Q", 0) + bytes(SIZE))
    assert peer.answer() == (WRITE, OK, bytes([STALE_OUTCOME]))
    peer.send(SEAL, struct.pack("<IIQ", 1, 0, 0) + ticket)
    assert peer.answer() == (SEAL, OK, bytes([STALE_OUTCOME]))
    peer.send(READ, hold + struct.pack("<II", 0, 1))
    assert peer.answer()[:2] == (READ, 5)


# ---- peers that map the segment -------------------------------------------------------------------------------------


def test_who_is_cut_off_and_may_still_write_keeps_its_slots(rig: Rig) -> None:
    """A peer that maps the segment is no longer heard after a malformed frame, but it is not gone."""
    peer = allowed(rig)
    reserved(rig, peer, 3)
    peer.send(99, b"")
    assert peer.answer()[:2] == (127, BAD_INPUT)
    assert peer.closed()
    eventually(lambda: rig.core.stats(MEMORY_TIER)["lapsed_reservations"] == 3)
    session = rig.session()
    for first in range(10_000, 14_000, 200):
        put(rig, session, 200, first)
    assert rig.core.stats(MEMORY_TIER)["slots_retired"] == 3, "kept from everybody while it may write"
    peer.socket.close()
    eventually(lambda: rig.core.stats(MEMORY_TIER)["slots_retired"] == 0)
    rig.core.check_integrity(MEMORY_TIER)


def test_clients_that_left_make_room_for_others(rig: Rig) -> None:
    """The table of the segment's clients has 1,024 rows."""
    for _ in range(1_100):
        Peer(rig.path).socket.close()
    eventually(lambda: rig.door.stats()["connections"] == 0)
    assert native.Session(rig.path).info.trusted


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1, 0])
def test_lengths_that_do_not_make_a_block_are_refused_before_a_byte_moves(rig: Rig, length: int) -> None:
    session = rig.session()
    put(rig, session, 1)
    memory = np.full(2 * SIZE, 0xEE, np.uint8)
    place = np.array([memory.ctypes.data], np.uint64), np.array([length], np.uint64)
    with pytest.raises(ValueError, match="lengths"):
        session.fetch(rig.ns, 0, chain(1), *place, HINT, 0.0, 5.0)
    with pytest.raises(ValueError, match="lengths"):
        session.put(rig.ns, 0, chain(1), *place, HINT, 5.0)
    assert (memory == 0xEE).all()
