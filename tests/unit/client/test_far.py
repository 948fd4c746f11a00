"""A get of what other nodes have, step by step: what is asked, what is told back, and who is asked next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvstore.client.conducts import Awaited, Called
from kvstore.client.far_read import Came
from kvstore.client.landed import Read
from kvstore.client.steps import Fetch, Status, Told, WireHint
from kvstore.errors import Poisoned
from kvstore.wire import framed, store
from tests.unit.client.test_moving import BLOCKS, KEYS, SIZE, World, answer
from transfer.offers import Carrier


class Holders:
    def __init__(self) -> None:
        self.now: list[int] = []

    def avoided(self, first: bytes) -> list[int]:
        assert first in {key.tobytes() for key in KEYS}
        return self.now


class Far(World):
    """`reads`: what comes of the windows' reads, one after the other; an Event: when it is set, as told next."""

    def __init__(self, parts: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.holders = Holders()
        self.ways.holders = self.holders  # type: ignore[attr-defined]
        self.ways.carriers = (Carrier.LOCAL, Carrier.TCP)  # type: ignore[attr-defined]
        self.reads: list[list[Came] | BaseException] = []
        self.reading = 0
        self.hold_back: asyncio.Event | None = None
        self.loop = asyncio.new_event_loop()
        self.get = self.conduct(Fetch(0, KEYS, self.places, WireHint(), parts, True))
        self.asked = next(self.get)

    def lease(self) -> framed.LeaseRequest:
        assert isinstance(self.asked, Called) and self.asked.method == store.METHOD_LEASE
        return framed.LeaseRequest.FromString(self.asked.body)

    def leased(self, told: Any) -> Any:
        """What is asked next, or the step's answer."""
        try:
            self.asked = self.get.send(told)
        except StopIteration as stop:
            return stop.value
        return self.asked

    def awaited(self) -> Any:
        """Does what is asked for, and gives what is asked next, or the step's answer."""
        assert isinstance(self.asked, Awaited)
        try:
            told = self.loop.run_until_complete(self.asked.work())
        except BaseException as error:
            return self.thrown(error)
        return self.leased(told)

    def thrown(self, error: BaseException) -> Any:
        try:
            self.asked = self.get.throw(error)
        except StopIteration as stop:
            return stop.value
        return self.asked

    async def read_all(self, job: object, sections: list[object]) -> list[Came]:
        self.reading += 1
        try:
            if self.hold_back is not None:
                await self.hold_back.wait()
            told = self.reads.pop(0)
            if isinstance(told, BaseException):
                raise told
            assert len(told) == len(sections)
            return told
        finally:
            self.reading -= 1


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    yield from made(monkeypatch, None)


@pytest.fixture
def of_a_part(monkeypatch: pytest.MonkeyPatch) -> Iterator[Far]:
    yield from made(monkeypatch, (1, 2))


def made(monkeypatch: pytest.MonkeyPatch, parts: tuple[int, int] | None) -> Iterator[Far]:
    far = Far(parts)
    monkeypatch.setattr("kvstore.client.far.read_all", far.read_all)
    yield far
    far.get.close()
    far.loop.close()


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


def came(*reads: Read) -> list[Came]:
    return [Came(read, 3) for read in reads]


def test_sections_are_read_and_each_is_told_of(world: Far) -> None:
    request = world.lease()
    assert request.far and list(request.carriers) == [1, 3] and request.chain.keys == KEYS.tobytes()
    assert 0 < request.deadline_ms < 5000
    world.reads = [came(Read(1), Read(BLOCKS - 1))]
    world.leased(lent(1, BLOCKS - 1))
    told = world.awaited()
    assert (told.status, told.blocks, told.bytes, told.window_full) == (Status.OK, BLOCKS, BLOCKS * SIZE, False)
    assert told.tiers == bytes([9] * BLOCKS)
    (release,) = world.session.released()
    assert [(read.blocks, read.bytes, read.carrier) for read in release.reads] == [
        (1, SIZE, 3),
        (BLOCKS - 1, (BLOCKS - 1) * SIZE, 3),
    ]
    assert release.lease == request.lease and not release.corrupt


def test_what_the_node_has_itself_by_now_is_told_so(world: Far) -> None:
    told = world.leased(lent(full=True))
    assert (told.status, told.blocks, told.window_full) == (Status.OK, 0, True)


def test_later_parts_are_not_counted_as_blocks(of_a_part: Far) -> None:
    world = of_a_part
    world.reads = [came(Read(BLOCKS))]
    world.leased(lent(BLOCKS))
    assert world.awaited().bytes == BLOCKS * SIZE // 2
    (release,) = world.session.released()
    assert [(read.blocks, read.bytes) for read in release.reads] == [(0, BLOCKS * SIZE // 2)]


def test_what_does_not_verify_is_told_and_asked_for_again(world: Far) -> None:
    world.reads = [came(Read(1, corrupt=1))]
    world.leased(lent(BLOCKS))
    told = world.awaited()
    assert (told.blocks, told.blocks_corrupt, told.window_full) == (1, 0, True)
    (release,) = world.session.released()
    assert list(release.corrupt) == [1]


def test_what_is_behind_a_section_that_failed_does_not_count(world: Far) -> None:
    world.reads = [came(Read(0, failure="gone"), Read(BLOCKS - 1)), came(Read(BLOCKS))]
    world.leased(lent(1, BLOCKS - 1))
    world.holders.now = [1]  # as reading does
    assert isinstance(world.awaited(), Called), "its replicas"
    assert list(world.lease().avoid) == [1]
    world.leased(lent(BLOCKS))
    assert world.awaited().blocks == BLOCKS
    first, second = world.session.released()
    assert [read.blocks for read in first.reads] == [0, 0] and [read.blocks for read in second.reads] == [BLOCKS]


def test_nobody_has_it(world: Far) -> None:
    assert world.leased(answer(framed.LeaseResponse())) == Told()


def test_the_node_has_no_more_to_give(world: Far) -> None:
    assert world.leased(answer(status=Status.REJECTED)) == Told()


@pytest.mark.parametrize("spoil", ["tiers", "checksums", "tickets", "sections"])
def test_an_answer_that_does_not_fit_is_nothing(world: Far, spoil: str) -> None:
    lease = framed.LeaseResponse.FromString(lent(BLOCKS).body)
    lease.ClearField(spoil)
    assert world.leased(answer(lease)) == Told()


# ---- windows --------------------------------------------------------------------------------------------------------


def test_the_next_window_is_asked_for_while_this_one_is_read(world: Far) -> None:
    world.hold_back = asyncio.Event()
    world.reads = [came(Read(1)), came(Read(BLOCKS - 1))]
    first = world.lease()
    world.leased(lent(1, full=True))
    assert isinstance(world.awaited(), Called) and world.reads, "it is read, and not waited for"
    second = world.lease()
    assert second.chain.keys == KEYS[1:].tobytes() and second.chain.position == 1 and second.lease != first.lease
    assert (first.chain.parent, second.chain.parent) == (b"", KEYS[0].tobytes())
    world.loop.run_until_complete(asyncio.sleep(0))
    assert world.reading == 1
    world.hold_back.set()
    world.loop.run_until_complete(asyncio.sleep(0.001))
    assert [one.lease for one in world.session.released()] == [first.lease], "what is read is let go, whoever waits"
    world.leased(lent(BLOCKS - 1))
    world.awaited()
    told = world.awaited()
    assert (told.blocks, told.bytes, told.window_full) == (BLOCKS, BLOCKS * SIZE, False)
    assert told.tiers == bytes([9] * BLOCKS)
    assert [one.lease for one in world.session.released()] == [first.lease, second.lease]


def test_a_window_that_does_not_come_whole_gives_the_next_one_back(world: Far) -> None:
    world.reads = [came(Read(1, failure="gone"))]
    first = world.lease()
    world.leased(lent(2, full=True))
    world.awaited()
    second = world.lease()
    world.leased(lent(1))
    told = world.awaited()
    assert (told.blocks, told.window_full) == (1, True)
    assert [one.lease for one in world.session.released()] == [first.lease, second.lease]


def test_where_nobody_has_the_next_window_the_node_is_asked_itself(world: Far) -> None:
    world.reads = [came(Read(2))]
    world.leased(lent(2, full=True))
    world.awaited()
    world.leased(answer(framed.LeaseResponse()))
    told = world.awaited()
    assert (told.blocks, told.window_full, told.status) == (2, True, Status.OK)


def test_what_is_given_up_while_the_next_is_asked_for_is_quiet_first(world: Far) -> None:
    world.hold_back = asyncio.Event()
    first = world.lease()
    world.leased(lent(1, full=True))
    world.awaited()
    second = world.lease()
    world.loop.run_until_complete(asyncio.sleep(0))
    assert world.reading == 1
    asked = world.thrown(KeyboardInterrupt())
    assert isinstance(asked, Awaited) and asked.whole
    with pytest.raises(KeyboardInterrupt):
        world.awaited()
    assert world.reading == 0
    assert {one.lease for one in world.session.released()} == {first.lease, second.lease}


def test_memory_that_is_not_quiet_is_told_whatever_else_went_wrong(world: Far) -> None:
    world.reads = [Poisoned("a NIC still writes")]
    world.leased(lent(1, full=True))
    world.awaited()
    world.loop.run_until_complete(asyncio.sleep(0))
    world.thrown(KeyboardInterrupt())
    with pytest.raises(Poisoned):
        world.awaited()
