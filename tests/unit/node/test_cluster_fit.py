"""What the directory is told of who lives, and of a pause, and that it is told before anybody is answered."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kvstore.node.cluster
from kvstore.config import ClusterConfig
from kvstore.directory.base import Member
from kvstore.directory.generations import Generations, Page
from kvstore.directory.liveness import Liveness
from kvstore.directory.messages import Announce, Status
from kvstore.errors import Unavailable
from kvstore.node.cluster import Cluster
from kvstore.node.peers import Peers
from kvstore.security import SecurityConfig
from kvstore.testing.clock import VirtualClock
from kvstore.wire import claims, generations, store

MS = 1_000_000
ME = Member("127.0.0.1:1", b"m" * 16, 5, "me")
A = Member("127.0.0.1:2", b"a" * 16, 6, "a")
B = Member("127.0.0.1:3", b"b" * 16, 7, "b")


class World:
    def __init__(self, **settings: int) -> None:
        self.clock = VirtualClock(1_000 * MS)
        members = ",".join(member.address for member in (ME, A, B))
        certificates: Any = SimpleNamespace(framed=lambda: None)
        config = ClusterConfig(members=members, **settings)  # type: ignore[arg-type]
        self.cluster = Cluster(config, SecurityConfig(), certificates, self.clock, b"s" * 32, None)
        core: Any = SimpleNamespace(incarnation=ME.incarnation, event_sequence=0, begun_sequence=0, namespaces_end=0)
        self.namespaces: Any = SimpleNamespace(generations=Generations(), settle=lambda: None)
        self.cluster.introduce(ME, core, self.namespaces)
        self.liveness = self.cluster.liveness
        self.liveness.begin(self.clock.now_ns())
        self.liveness.expect([A.address, B.address], self.clock.now_ns())
        self.cluster._tasks = [SimpleNamespace()]  # type: ignore[list-item] # it has joined
        assert self.cluster.locator is not None
        self.directory = self.cluster.locator.directory

    def answered(self, *members: Member) -> None:
        for member in members:
            now = self.clock.now_ns()
            change = self.cluster._answered(member.address, member, now)
            if change is not None:
                self.cluster._tell(change)
        self.look()

    def look(self, ms: int = 50) -> None:
        self.clock.advance_ns(ms * MS)
        self.cluster._look(self.clock.now_ns())
        self.cluster._see()

    def told(self, by: Member, sequence: int) -> Status:
        message = Announce(by.id, by.incarnation, sequence, begin=(1 << 64) - 1, end=(1 << 64) - 1)
        body = claims.message_bytes(message)
        answer = claims.answer_of(message, self.cluster._told(by, store.METHOD_PEER_ANNOUNCE, body))
        return answer.status


def test_the_directory_sees_nobody_before_it_is_known_of_all_who_lives() -> None:
    world = World()
    world.answered(A)
    assert world.directory.view.live == {}
    for _ in range(3):
        change = world.liveness.refused(B.address, world.clock.now_ns())
        if change is not None:
            world.cluster._tell(change)
    world.look()
    assert world.directory.view.live == {ME.id: 5, A.id: 6}
    assert world.directory.view.trusts(A.id, world.clock.now_ns()), "it was there before: asked at once"
    assert world.told(B, 1) == Status.STRANGER
    world.answered(B)
    assert world.directory.view.live == {ME.id: 5, A.id: 6, B.id: 7}
    assert not world.directory.view.trusts(B.id, world.clock.now_ns())
    world.answered(Member(A.address, A.id, 99, "a"))
    assert world.directory.view.live[A.id] == 99, "it was restarted"


def test_an_id_that_two_nodes_have_is_not_two_nodes() -> None:
    world = World()
    world.answered(Member(B.address, A.id, 6, "a"), Member(A.address, A.id, 77, "twin"))
    assert world.directory.view.live == {ME.id: 5, A.id: 6}
    living = world.cluster.living(A.id)
    assert living is not None and living.address == B.address


async def test_what_the_disk_did_not_take_of_clears_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Liveness, "due", lambda *_: [])
    world, tried = World(), asyncio.Event()
    world.namespaces.settle = tried.set
    ticking = asyncio.ensure_future(world.cluster._tick())
    async with asyncio.timeout(20):
        await tried.wait()
    ticking.cancel()
    await asyncio.gather(ticking, return_exceptions=True)


async def test_who_is_known_by_two_addresses_counts_once_among_those_that_know_of_a_clear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a name of the list, and by the address that it says of itself."""
    world, origin = World(), b"o" * 32
    world.answered(A, B)
    world.cluster.desk._peers[1] = Member("10.0.0.2:7400", A.id, A.incarnation, "a")
    world.namespaces.generations.clear(origin, ME.id)
    world.namespaces.merge = lambda _rows: False

    async def call(_peers: Peers, address: str, _method: int, _body: bytes, _deadline_s: float) -> bytes:
        if address == B.address:
            raise Unavailable("it does not answer")
        return generations.answer_bytes(Page(origin, origin))

    monkeypatch.setattr(Peers, "call", call)
    assert await world.cluster.cleared(origin) == (2, 3)


@pytest.mark.parametrize("looked", [False, True])
def test_whoever_stood_still_takes_no_word_before_a_majority_has_answered(looked: bool) -> None:
    world = World()
    world.answered(A, B)
    assert world.told(A, 1) == Status.TAKEN
    world.clock.advance_ns(5_000 * MS)
    if looked:  # else a message is the first thing that it hears of
        world.look(0)
    assert world.told(A, 2) == Status.AWAY
    world.look()
    assert world.told(A, 2) == Status.AWAY
    world.answered(A)
    assert world.told(A, 2) == Status.TAKEN
    assert not world.directory.view.trusts(ME.id, world.clock.now_ns()), "its own claims are of another time"
    keys = np.zeros((1, 32), np.uint8)
    assert world.directory.locate(b"s" * 32, keys, world.clock.now_ns()).start()


def test_the_door_answers_for_the_directory_until_a_pause_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    world, until = World(), [-1]
    monkeypatch.setattr(world.directory, "answer_until", lambda at, now: until.append(at))
    world.answered(A, B)
    assert until[-1] == 0, "by the view before, or by none"
    world.look()
    assert until[-1] == world.liveness.overdue_at > world.clock.now_ns()
    assert not world.liveness.overdue(until[-1]) and world.liveness.overdue(until[-1] + 1)
    world.look(world.cluster._config.dead_after_ms)  # it stood still
    assert not world.cluster.fit and until[-1] == 0
    world.answered(A, B)
    world.look()
    assert world.cluster.fit and until[-1] == world.liveness.overdue_at


async def test_a_home_that_could_not_be_told_for_whatever_reason_is_told_again() -> None:
    world, told = World(), []
    locator = world.cluster.locator
    assert locator is not None
    message = Announce(ME.id, ME.incarnation, 1)

    async def call(*_: object) -> bytes:
        raise RuntimeError("can't start new thread")

    world.answered(A, B)
    locator._peers = SimpleNamespace(call=call)  # type: ignore[assignment]
    locator.directory.answered = lambda to, said, answer, now: told.append((to, said, answer))  # type: ignore[method-assign]
    await locator._tell(A.id, message)
    assert told == [(A.id, message, None)]


async def test_no_tick_is_taken_for_a_pause_whatever_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(dead_after_ms=100, ping_ms=50)
    members = {A.address: A, B.address: B}
    sleep, fit = asyncio.sleep, []

    async def ping(address: str, _: float) -> tuple[Member, int]:
        return members[address], 0

    async def a_little_longer(seconds: float) -> None:
        fit.append(world.cluster.fit)
        world.clock.advance_ns(int(seconds * 1e9) + MS)
        await sleep(0)
        if len(fit) == 20:
            raise asyncio.CancelledError

    world.cluster.peers = SimpleNamespace(ping=ping, connected=lambda _: True)  # type: ignore[assignment]
    monkeypatch.setattr(kvstore.node.cluster.asyncio, "sleep", a_little_longer)
    with pytest.raises(asyncio.CancelledError):
        await world.cluster._tick()
    assert all(fit) and set(world.directory.view.live) == {ME.id, A.id, B.id}


async def test_a_clear_is_told_once_to_a_node_that_the_list_calls_otherwise_than_itself() -> None:
    world, told = World(), []
    cluster = world.cluster

    async def tell(origin: bytes, addresses: set[str]) -> set[str]:
        told.extend(sorted(addresses))
        return addresses

    cluster.clearing = SimpleNamespace(tell=tell, hash=0)  # type: ignore[assignment]
    world.answered(A, B)
    new = replace(B, incarnation=B.incarnation + 1, address="127.0.0.1:4")  # started again, and not met yet
    cluster.desk._peers = {1: replace(A, address="a.example:2"), 2: new}
    assert await cluster.cleared(bytes(32)) == (3, 3)
    assert told == [A.address, B.address, new.address]
