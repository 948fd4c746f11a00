"""A get of what other nodes have, step by step: what is asked, what is told back, and who is asked next."""

from __future__ import annotations

from typing import Any

import numpy as np

from kvstore.client.conducts import Awaited, Called
from kvstore.client.far import _Came
from kvstore.client.landed import Read
from kvstore.client.steps import Fetch, Status, Told, WireHint
from kvstore.wire import framed, store
from tests.unit.client.test_moving import BLOCKS, KEYS, SIZE, World, answer, ended
from transfer.offers import Carrier


class Holders:
    def __init__(self) -> None:
        self.now: list[int] = []

    def avoided(self, first: bytes) -> list[int]:
        assert first == KEYS[0].tobytes()
        return self.now


class Far(World):
    def __init__(self, parts: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.holders = Holders()
        self.ways.holders = self.holders  # type: ignore[attr-defined]
        self.ways.carriers = lambda: None  # type: ignore[attr-defined]
        self.get = self.conduct(Fetch(0, KEYS, self.places, WireHint(), parts, True))
        self.asked = next(self.get)

    def lease(self) -> framed.LeaseRequest:
        """Answers what comes before it."""
        assert isinstance(self.asked, Awaited)
        called = self.get.send((Carrier.LOCAL, Carrier.TCP))
        assert isinstance(called, Called) and called.method == store.METHOD_LEASE
        return framed.LeaseRequest.FromString(called.body)


def lent(*counts: int, full: bool = False) -> Any:
    blocks = sum(counts)
    return answer(
        framed.LeaseResponse(
            lease_ms=1000,
            offsets=range(0, blocks * SIZE, SIZE),
            tiers=bytes([9] * blocks),
            checksums=np.arange(2 * blocks, dtype="<u8").tobytes(),
            tickets=range(blocks),
            window_full=full,
            sections=[
                framed.LeaseSection(
                    blocks=count, incarnation=i + 1, offer=b"o", grants=[framed.LeaseGrant(carrier=3, descriptor=b"d")]
                )
                for i, count in enumerate(counts)
            ],
        )
    )


def came(*reads: Read) -> list[_Came]:
    return [_Came(read, 3) for read in reads]


def test_sections_are_read_and_each_is_told_of() -> None:
    world = Far()
    request = world.lease()
    assert request.far and list(request.carriers) == [1, 3] and request.chain.keys == KEYS.tobytes()
    assert 0 < request.deadline_ms < 5000
    assert isinstance(world.get.send(lent(1, BLOCKS - 1)), Awaited)
    told = ended(world.get, came(Read(1), Read(BLOCKS - 1)))
    assert (told.status, told.blocks, told.bytes, told.window_full) == (Status.OK, BLOCKS, BLOCKS * SIZE, False)
    assert told.tiers == bytes([9] * BLOCKS)
    (release,) = world.session.released()
    assert [(read.blocks, read.bytes, read.carrier) for read in release.reads] == [
        (1, SIZE, 3),
        (BLOCKS - 1, (BLOCKS - 1) * SIZE, 3),
    ]
    assert release.lease == request.lease and not release.corrupt


def test_later_parts_are_not_counted_as_blocks() -> None:
    world = Far((1, 2))
    world.lease()
    world.get.send(lent(BLOCKS))
    assert ended(world.get, came(Read(BLOCKS))).bytes == BLOCKS * SIZE // 2
    (release,) = world.session.released()
    assert [(read.blocks, read.bytes) for read in release.reads] == [(0, BLOCKS * SIZE // 2)]


def test_what_does_not_verify_is_told_and_asked_for_again() -> None:
    world = Far()
    world.lease()
    world.get.send(lent(BLOCKS))
    told = ended(world.get, came(Read(1, corrupt=1)))
    assert (told.blocks, told.blocks_corrupt, told.window_full) == (1, 0, True)
    (release,) = world.session.released()
    assert list(release.corrupt) == [1]


def test_what_is_behind_a_section_that_failed_does_not_count() -> None:
    world = Far()
    world.lease()
    world.get.send(lent(1, BLOCKS - 1))
    world.holders.now = [1]  # as reading does
    again = world.get.send(came(Read(0, failure="gone"), Read(BLOCKS - 1)))
    assert isinstance(again, Awaited), "its replicas"
    world.asked = again
    assert list(world.lease().avoid) == [1]
    world.get.send(lent(BLOCKS))
    assert ended(world.get, came(Read(BLOCKS))).blocks == BLOCKS
    first, second = world.session.released()
    assert [read.blocks for read in first.reads] == [0, 0] and [read.blocks for read in second.reads] == [BLOCKS]


def test_nobody_has_it() -> None:
    world = Far()
    world.lease()
    assert ended(world.get, answer(framed.LeaseResponse())) == Told()
    world = Far()
    world.lease()
    assert ended(world.get, answer(status=Status.REJECTED)) == Told()


def test_an_answer_that_does_not_fit_is_nothing() -> None:
    for spoil in ("tiers", "checksums", "tickets", "sections"):
        world = Far()
        world.lease()
        lease = framed.LeaseResponse.FromString(lent(BLOCKS).body)
        lease.ClearField(spoil)
        assert ended(world.get, answer(lease)) == Told(), spoil
