"""The conducts of a client that maps nothing, step by step: what is asked, and what is given back whatever happens."""

from __future__ import annotations

import asyncio
import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.client.away import _awaited
from kvstore.client.buffers import Memory, Places, Registry
from kvstore.client.calls import Times, times_of
from kvstore.client.conducts import Awaited, Called, Mover, drive, drive_async
from kvstore.client.followed import Followed
from kvstore.client.held import Reach
from kvstore.client.journeys import Limits
from kvstore.client.landed import Read
from kvstore.client.moving import AwaySlots, conduct_of
from kvstore.client.steps import Fetch, Follow, Hold, Put, PutOutcome, Reserve, Status, WireHint
from kvstore.errors import Poisoned, Unavailable
from kvstore.wire import framed, store
from transfer.offers import Carrier

SIZE, BLOCKS = 64, 3
KEYS = np.arange(BLOCKS * 32, dtype=np.uint8).reshape(BLOCKS, 32)


class Session:
    def __init__(self) -> None:
        self.told: list[tuple[int, bytes]] = []

    def tell_call(self, method: int, body: bytes) -> None:
        self.told.append((method, body))

    def released(self) -> list[framed.ReleaseRequest]:
        return [framed.ReleaseRequest.FromString(body) for method, body in self.told if method == store.METHOD_RELEASE]

    def aborted(self) -> list[int]:
        return [
            framed.AbortRequest.FromString(body).reservation
            for method, body in self.told
            if method == store.METHOD_ABORT
        ]


class Ways:
    """Nothing of it is called by a conduct but `known`: the rest is asked for, and answered by the test."""

    def __init__(self) -> None:
        path = SimpleNamespace(carrier=Carrier.TCP)
        way = SimpleNamespace(chosen=SimpleNamespace(path=path))
        self.reached: object = SimpleNamespace(fetching=way, pulling=way)

    def known(self, line: object) -> object:
        return self.reached

    def reach(self, *_: object) -> None: ...
    def read(self, *_: object, **__: object) -> None: ...
    def lend(self, *_: object) -> None: ...
    def take_back(self, *_: object) -> None: ...


class World:
    def __init__(self) -> None:
        self.session, self.ways = Session(), Ways()
        limits = Limits(1000, 1 << 20, 1024, 1.0)
        reach = Reach(self.session)  # type: ignore[arg-type]
        line = SimpleNamespace(
            session=self.session, limits=limits, reach=reach, numbers=iter(range(1, 100)), maps=False
        )
        self.mover: Any = Mover(self.ways, line, True)  # type: ignore[arg-type]
        known = SimpleNamespace(digest=bytes(32))
        self.space: Any = SimpleNamespace(
            known=known, part_bytes=[[SIZE // 2, SIZE // 2]], shard_bytes=(SIZE,), registry=Registry()
        )
        self.memory = np.zeros(BLOCKS * SIZE, np.uint8)
        at = int(self.memory.ctypes.data)
        addresses = np.arange(at, at + BLOCKS * SIZE, SIZE, dtype=np.uint64)
        lengths = np.array([SIZE], np.uint64)
        self.places = Places(addresses, lengths, 1, (Memory(at, self.memory.nbytes, True, self.memory),))
        self.times: Times = times_of(5.0, None)

    def conduct(self, step: object) -> Any:
        return conduct_of(self.mover, self.space, step, self.times, lambda *_: None)  # type: ignore[arg-type, return-value]

    def fetch(self) -> Any:
        return self.conduct(Fetch(0, KEYS, self.places, WireHint()))

    def hold(self) -> Any:
        return self.conduct(Hold(0, KEYS, WireHint()))

    def put(self) -> Any:
        return self.conduct(Put(0, KEYS, self.places, WireHint(), b"", ()))

    def reserve(self) -> Any:
        return self.conduct(Reserve(0, KEYS, WireHint(), b"", ()))


def answer(message: Any = None, status: int = Status.OK) -> SimpleNamespace:
    body = message.SerializeToString() if message is not None else b""
    return SimpleNamespace(status=status, field="", reason="", limit=0, body=body)


def lease(blocks: int) -> SimpleNamespace:
    sums = np.arange(2 * blocks, dtype="<u8").tobytes()
    return answer(
        framed.LeaseResponse(
            lease_ms=1000,
            descriptor=b"d",
            offsets=range(0, blocks * SIZE, SIZE),
            tiers=bytes([1] * blocks),
            checksums=sums,
            tickets=range(100, 100 + blocks),
        )
    )


def ended(conduct: Any, value: object) -> Any:
    """What a conduct returns when its last question is answered."""
    with pytest.raises(StopIteration) as stop:
        conduct.send(value)
    return stop.value.value


def test_a_fetch_leases_reads_and_releases() -> None:
    world = World()
    conduct = world.fetch()
    asked = next(conduct)
    assert isinstance(asked, Called) and asked.method == store.METHOD_LEASE
    request = framed.LeaseRequest.FromString(asked.body)
    assert (request.lease, request.carrier, request.chain.keys) == (1, Carrier.TCP, KEYS.tobytes())
    assert isinstance(conduct.send(lease(2)), Awaited) and not world.session.told
    told = ended(conduct, Read(2))
    assert (told.status, told.blocks, told.tiers, told.bytes) == (Status.OK, 2, b"\1\1", 2 * SIZE)
    (release,) = world.session.released()
    assert (release.lease, release.bytes, list(release.corrupt)) == (1, 2 * SIZE, [])


def test_a_block_that_does_not_verify_is_told_by_its_ticket() -> None:
    world = World()
    conduct = world.fetch()
    next(conduct)
    conduct.send(lease(3))
    told = ended(conduct, Read(1, corrupt=1))
    assert (told.status, told.blocks, told.blocks_corrupt) == (Status.OK, 1, 1)
    assert list(world.session.released()[0].corrupt) == [101]


@pytest.mark.parametrize(
    ("read", "status"),
    [(Read(1, late=True, failure="late"), Status.LATE), (Read(1, failure="lost"), Status.UNAVAILABLE)],
)
def test_what_arrived_before_a_failure_counts(read: Read, status: Status) -> None:
    world = World()
    conduct = world.fetch()
    next(conduct)
    conduct.send(lease(3))
    told = ended(conduct, read)
    assert (told.status, told.blocks, told.bytes) == (status, 1, SIZE)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_fetch_that_is_interrupted_releases(steps: int) -> None:
    """Even a lease that has not been answered yet."""
    world = World()
    conduct = world.fetch()
    next(conduct)
    if steps == 2:
        conduct.send(lease(3))
    with pytest.raises(KeyboardInterrupt):
        conduct.throw(KeyboardInterrupt())
    assert [one.lease for one in world.session.released()] == [1]


def test_poisoned_memory_is_raised_and_never_tried_again() -> None:
    world = World()
    conduct = world.fetch()
    next(conduct)
    conduct.send(lease(3))
    with pytest.raises(Poisoned):
        conduct.throw(Poisoned("not quiet"))
    assert world.session.released()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda message: message.offsets.append(0),
        lambda message: message.tickets.pop(),
        lambda message: setattr(message, "checksums", message.checksums[:-1]),
        lambda message: setattr(message, "tiers", b""),
        lambda message: message.offsets.__setitem__(0, 2**63),
    ],
)
def test_a_lease_that_does_not_fit_the_question_is_not_read(spoil: Any) -> None:
    world = World()
    conduct = world.fetch()
    next(conduct)
    message = framed.LeaseResponse.FromString(lease(BLOCKS).body)
    spoil(message)
    told = ended(conduct, answer(message))
    assert (told.status, told.blocks) == (Status.UNAVAILABLE, 0)


def test_a_put_grants_asks_and_takes_back() -> None:
    world = World()
    conduct = world.put()
    assert isinstance(next(conduct), Awaited)  # lend
    asked = conduct.send(SimpleNamespace(source=framed.Source(carrier=3, pieces=b"p")))
    assert isinstance(asked, Called) and asked.method == store.METHOD_PULL
    assert framed.PullRequest.FromString(asked.body).source.pieces == b"p"
    back = conduct.send(answer(framed.PullResponse(outcomes=bytes((0, 1, 0)))))
    assert isinstance(back, Awaited) and back.whole
    told = ended(conduct, None)
    assert (told.status, told.blocks, told.outcomes) == (Status.OK, 2, bytes((0, 1, 0)))


def test_a_put_that_is_interrupted_takes_its_memory_back_first() -> None:
    world = World()
    conduct = world.put()
    next(conduct)
    conduct.send(SimpleNamespace(source=framed.Source()))
    back = conduct.throw(KeyboardInterrupt())
    assert isinstance(back, Awaited) and back.whole, "not to be interrupted itself"
    with pytest.raises(KeyboardInterrupt):
        conduct.send(None)


async def test_a_put_that_is_cancelled_just_as_its_memory_is_granted_takes_it_back() -> None:
    world, back = World(), list[object]()
    loan = SimpleNamespace(source=framed.Source())
    put: asyncio.Task[Any]

    async def lend(*_: object) -> Any:
        asyncio.get_running_loop().call_soon(put.cancel)  # before whoever waits for it is told that it is there
        return loan

    async def take_back(one: object) -> None:
        back.append(one)

    async def call(asked: Called) -> object:
        raise AssertionError("it was cancelled before")

    world.ways.lend, world.ways.take_back = lend, take_back  # type: ignore[method-assign, assignment]
    put = asyncio.ensure_future(drive_async(world.put(), call, _awaited))
    with pytest.raises(asyncio.CancelledError):
        await put
    assert back == [loan], "or it stays registered for as long as the client lives"


def test_memory_that_the_node_may_still_read_is_raised() -> None:
    world = World()
    conduct = world.put()
    next(conduct)
    conduct.send(SimpleNamespace(source=framed.Source()))
    conduct.send(answer(framed.PullResponse(outcomes=bytes(BLOCKS))))
    with pytest.raises(Poisoned):
        conduct.throw(Poisoned("not quiet"))


@pytest.mark.parametrize("outcomes", [bytes(2), bytes(4)])
def test_an_answer_of_another_length_stores_nothing(outcomes: bytes) -> None:
    world = World()
    conduct = world.put()
    next(conduct)
    conduct.send(SimpleNamespace(source=framed.Source()))
    conduct.send(answer(framed.PullResponse(outcomes=outcomes)))
    told = ended(conduct, None)
    assert told.status == Status.UNAVAILABLE and not told.outcomes


def test_blocks_behind_a_full_node_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.client.moving.PIECES_MAX", 1)  # a pull a block
    world = World()
    conduct = world.put()
    for outcome in (PutOutcome.STORED, PutOutcome.FULL):
        next(conduct) if outcome == PutOutcome.STORED else None
        conduct.send(SimpleNamespace(source=framed.Source()))
        conduct.send(answer(framed.PullResponse(outcomes=bytes((outcome,)))))
        if outcome == PutOutcome.STORED:
            conduct.send(None)
    told = ended(conduct, None)
    assert told.outcomes == bytes((PutOutcome.STORED, PutOutcome.FULL, PutOutcome.FULL))


def test_a_reservation_given_up_is_aborted() -> None:
    world = World()
    conduct = world.reserve()
    asked = next(conduct)
    assert framed.ReserveRequest.FromString(asked.body).reservation == 1
    with pytest.raises(KeyboardInterrupt):
        conduct.throw(KeyboardInterrupt())
    late = world.reserve()
    next(late)
    assert ended(late, answer(status=Status.LATE)).status == Status.LATE
    assert world.session.aborted() == [1, 2]


def test_a_node_without_a_way_is_unavailable() -> None:
    world = World()
    world.ways.reached = None

    def wait(asked: Awaited) -> None:
        raise Unavailable("no path to the peer")

    told = drive(world.fetch(), lambda asked: answer(store.OfferResponse(offer=b"junk")), wait)
    assert told.status == Status.UNAVAILABLE and "offer" in told.reason


def test_a_reservation_of_nothing_asks_the_node_nothing() -> None:
    """Which knows of no such reservation."""
    world = World()  # whose session answers no call
    slots = AwaySlots(world.mover, world.space, 1, bytes((PutOutcome.HELD,)) * BLOCKS, lambda *_: None)  # type: ignore[arg-type, return-value]
    told = [slots.write(0, world.places, 1.0), slots.publish(0, 1.0), slots.seal(1.0)]
    slots.abort()
    assert [one.status for one in told] == [Status.OK] * 3 and world.session.told == []


def test_parts_are_read_and_their_bytes_told() -> None:
    world = World()
    conduct = world.conduct(Fetch(0, KEYS, world.places, WireHint(), (1, 2)))
    next(conduct)
    asked, given = conduct.send(lease(BLOCKS)), []
    world.ways.read = lambda *told, **_: given.extend(told)  # type: ignore[attr-defined]
    asked.work()
    assert given[4] == range(1, 2)
    told = ended(conduct, Read(BLOCKS))
    assert (told.blocks, told.bytes) == (BLOCKS, BLOCKS * SIZE // 2)
    assert [release.bytes for release in world.session.released()] == [BLOCKS * SIZE // 2]


# ---- hold -----------------------------------------------------------------------------------------------------------


def test_a_hold_asks_for_no_grant_and_ends_when_it_is_forgotten() -> None:
    world = World()
    conduct = world.hold()
    asked = framed.LeaseRequest.FromString(next(conduct).body)
    assert (asked.hold_only, asked.carrier, asked.lease) == (True, int(Carrier.TCP), 1)
    told = ended(conduct, answer(framed.LeaseResponse(lease_ms=60_000, tiers=b"\1\2", window_full=True)))
    assert (told.blocks, told.tiers, told.window_full) == (2, b"\1\2", True)
    assert 50 < told.expires_s - world.times.began < 61
    assert not world.session.released()
    del told, conduct
    gc.collect()  # the StopIteration that brought it
    assert [release.lease for release in world.session.released()] == [1]


def test_a_node_that_grants_what_is_only_to_be_held_is_understood() -> None:
    world = World()
    conduct = world.hold()
    next(conduct)
    assert ended(conduct, lease(3)).blocks == 3


@pytest.mark.parametrize(
    "told",
    [
        answer(framed.LeaseResponse()),
        answer(framed.LeaseResponse(lease_ms=1, tiers=bytes(BLOCKS + 1))),
        SimpleNamespace(status=Status.OK, field="", reason="", limit=0, body=b"\xff"),
        answer(status=Status.LATE),
        answer(status=Status.REJECTED),
    ],
)
def test_what_holds_nothing_is_given_up(told: SimpleNamespace) -> None:
    world = World()
    conduct = world.hold()
    next(conduct)
    assert ended(conduct, told).blocks == 0
    assert [release.lease for release in world.session.released()] == [1]


def test_a_hold_that_is_interrupted_is_given_up() -> None:
    world = World()
    conduct = world.hold()
    next(conduct)
    with pytest.raises(KeyboardInterrupt) as caught:
        conduct.throw(KeyboardInterrupt())
    assert [release.lease for release in world.session.released()] == [1], "though somebody keeps the exception"
    del caught


@pytest.mark.parametrize("begun", [True, False])
def test_a_follow_that_has_lapsed_is_abandoned_and_no_mistake_of_the_callers(begun: bool) -> None:
    world = World()
    world.ways.carriers = (Carrier.TCP,)  # type: ignore[attr-defined]
    followed = Followed(BLOCKS, 2, line=world.mover.line if begun else None, number=7)
    conduct = world.conduct(Follow(0, KEYS, world.places, WireHint(), followed))
    asked = next(conduct)
    assert isinstance(asked, Called) and asked.method == store.METHOD_FOLLOW
    refused = answer(status=Status.BAD_INPUT)
    refused.reason = "lease: 7 has ended"
    told = ended(conduct, refused)
    assert (told.status, followed.abandoned) == ((Status.OK, refused.reason) if begun else (Status.BAD_INPUT, ""))
