"""What a peer of the door may not do with what is another's: its namespaces, its reservations, its holds, its slots.

`test_door.py` asks what a peer gets wrong; here it gets nothing wrong and has no right.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import native
from tests.integration.test_door import (
    BAD_INPUT,
    DENIED,
    HINT,
    HOLD,
    LOOKUP,
    OK,
    PARTS,
    REJECTED,
    RESERVE,
    SEAL,
    STALE,
    Peer,
    Rig,
    chain,
    eventually,
    field_of,
    put,
)
from tests.integration.test_door_tcp import TcpRig

PART, ABORT, RELEASE, CORRUPT, QUIET = 4, 6, 8, 12, 13
NO_ANSWER = 1
SIZE = sum(PARTS)
STALE_OUTCOME = 1
MEMORY_TIER = 1


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[TcpRig]:
    made = TcpRig(tmp_path, anonymous_over_tcp=True)
    yield made
    made.stop()


def fetch(rig: Rig, session: native.Session, n: int) -> tuple[native.Result, np.ndarray]:
    into = np.full((n, SIZE), 0xEE, np.uint8)
    addresses = np.array([row.ctypes.data for row in into], np.uint64)
    return session.fetch(rig.ns, 0, chain(n), addresses, np.array([SIZE], np.uint64), HINT, 0.0, 5.0), into


def reserve_frame(ns: int, keys: int) -> bytes:
    return struct.pack("<IHHII", ns, 0, 0, keys, 0) + bytes(64) + chain(keys).tobytes()


def reserved(rig: Rig, peer: Peer, keys: int) -> list[bytes]:
    """The tickets of that many reservations."""
    peer.send(RESERVE, reserve_frame(rig.ns, keys))
    verb, status, body = peer.answer()
    assert (verb, status) == (RESERVE, OK)
    rows = [body[at : at + 24] for at in range(0, len(body), 24)]
    assert [row[0] for row in rows] == [0] * keys
    return [row[8:16] for row in rows]


def held(rig: Rig, peer: Peer) -> bytes:
    """The answer to a hold of one block."""
    peer.send(HOLD, struct.pack("<IHBBIIII", rig.ns, 0, 0, 0, 1, 0, 0, 0) + bytes(32) + chain(1).tobytes())
    verb, status, body = peer.answer()
    assert (verb, status, len(body)) == (HOLD, OK, 24 + 24 + 16)
    return body


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
    nowhere = np.zeros(1, np.uint64), np.array([PARTS[0]], np.uint64)
    assert slots.write(0, *nowhere).status == slots.seal(5.0).status == BAD_INPUT
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


def test_another_ones_hold_is_not_released(rig: Rig) -> None:
    put(rig, rig.session(), 1)
    holder, other = allowed(rig), allowed(rig)
    hold = held(rig, holder)[:8]
    other.send(RELEASE, struct.pack("<II", 1, 0) + hold)
    assert other.answer() == (RELEASE, OK, bytes([STALE_OUTCOME]))
    assert rig.core.stats(MEMORY_TIER)["holds"] == 1
    holder.send(RELEASE, struct.pack("<II", 1, 0) + hold)
    assert holder.answer() == (RELEASE, OK, bytes([0]))


# ---- peers that map nothing -----------------------------------------------------------------------------------------


@pytest.fixture(params=["unix", "tcp"])
def far(request: pytest.FixtureRequest, rig: TcpRig, tmp_path: Path) -> Iterator[tuple[Rig, Peer]]:
    """A peer that is not trusted, and may use the namespace: of another user, or by TCP beside peers that are."""
    if request.param == "tcp":
        peer = TcpPeer(rig)
        assert rig.door.allow(peer.owner, rig.ns)
        yield rig, peer
    else:
        folder = tmp_path / "untrusted"
        folder.mkdir()
        other = Rig(folder, trusted=False)
        yield other, allowed(other)
        other.stop()


class TcpPeer(Peer):
    def __init__(self, rig: TcpRig) -> None:
        self.socket = rig.bare()
        self.hello()


WORDS = [
    (RESERVE, struct.pack("<IHHII", 0, 0, 0, 1, 0) + bytes(64) + chain(1, first=9).tobytes()),
    (PART, struct.pack("<II", 1, 0) + bytes(24)),
    (SEAL, struct.pack("<IIQ", 1, 2, 0) + bytes(8 + 16)),
    (ABORT, struct.pack("<II", 1, 0) + bytes(8)),
    (HOLD, struct.pack("<IHBBIIII", 0, 0, 0, 0, 1, 0, 0, 0) + bytes(32) + chain(1).tobytes()),
    (RELEASE, struct.pack("<II", 1, 0) + bytes(8)),
    (CORRUPT, struct.pack("<II", 1, 0) + bytes(8)),
    (QUIET, bytes(16)),
]


@pytest.mark.parametrize(("verb", "body"), WORDS, ids=[str(verb) for verb, _ in WORDS])
def test_slots_and_holds_are_not_spoken_of(far: tuple[Rig, Peer], verb: int, body: bytes) -> None:
    """Whoever maps nothing moves bytes by transfers; the verb is refused, whatever it says, and nothing is done."""
    rig, peer = far
    for said in (body, body[:3]):
        peer.send(verb, said)
        told, status, why = peer.answer()
        assert (told, status, field_of(why)) == (verb, DENIED, "verb")
    before = rig.door.stats()
    if verb not in {RESERVE, SEAL, HOLD}:  # which are always answered
        peer.send(verb, body, NO_ANSWER)
    peer.send(LOOKUP, struct.pack("<IIII", rig.ns, 1, 0, 0) + chain(1).tobytes())
    assert peer.answer()[:2] == (LOOKUP, OK)
    stats = rig.core.stats(MEMORY_TIER)
    assert (stats["slots_reserved"], stats["holds"]) == (0, 0)
    assert rig.core.counters()["corrupt_reported"] == 0 and rig.door.stats()["cut_malformed"] == before["cut_malformed"]


def test_what_others_reserved_and_hold_is_out_of_reach_by_tcp(rig: TcpRig) -> None:
    """Numbers are no capabilities: with another one's ticket and hold nothing is done either."""
    put(rig, rig.session(), 1)
    near, peer = allowed(rig), TcpPeer(rig)
    assert rig.door.allow(peer.owner, rig.ns)
    near.send(RESERVE, struct.pack("<IHHII", rig.ns, 0, 0, 1, 0) + bytes(64) + chain(1, first=9).tobytes())
    ticket, hold = near.answer()[2][8:16], held(rig, near)
    for verb, body in (
        (ABORT, struct.pack("<II", 1, 0) + ticket),
        (PART, struct.pack("<II", 1, 0) + ticket + bytes(16)),
        (SEAL, struct.pack("<IIQ", 1, 2, 0) + ticket + bytes(16)),
        (RELEASE, struct.pack("<II", 1, 0) + hold[:8]),
        (CORRUPT, struct.pack("<II", 1, 0) + hold[24:32]),
    ):
        peer.send(verb, body)
        assert peer.answer()[:2] == (verb, DENIED)
    stats = rig.core.stats(MEMORY_TIER)
    assert (stats["slots_reserved"], stats["holds"]) == (1, 1)
    assert rig.core.counters()["corrupt_reported"] == 0
    near.send(SEAL, struct.pack("<IIQ", 1, 2, 0) + ticket + bytes(16))
    assert near.answer() == (SEAL, OK, bytes([0]))


def test_a_session_without_the_segment_says_so_itself(far: tuple[Rig, Peer]) -> None:
    rig, _ = far
    session = rig.far() if isinstance(rig, TcpRig) else rig.session()
    rig.door.allow(session.info.session, rig.ns)
    session.describe(rig.ns, [PARTS])
    frames = rig.door.stats()["frames"]
    told = [
        put(rig, session, 1),
        fetch(rig, session, 1)[0],
        session.view(rig.ns, 0, chain(1), HINT, 0.0, 5.0),
        session.reserve(rig.ns, 0, chain(1), HINT, 5.0).result,
    ]
    assert [(one.status, one.field) for one in told] == [
        (REJECTED, field) for field in ("put", "fetch", "view", "reserve")
    ]
    assert session.lookup(rig.ns, chain(1), [], 5.0).status == OK
    assert rig.door.stats()["frames"] <= frames + 2, "four refusals, and none asked for"


# ---- peers that map the segment -------------------------------------------------------------------------------------


def test_who_is_cut_off_and_may_still_write_keeps_its_slots(tmp_path: Path) -> None:
    """A peer that maps the segment is no longer heard after a malformed frame, but it is not gone."""
    rig = Rig(tmp_path, trusted=True, lapse_ms=1_000)
    try:
        cut_off(rig)
    finally:
        rig.stop()


def cut_off(rig: Rig) -> None:
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
