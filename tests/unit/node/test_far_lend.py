"""Whom a node asks for blocks that it has not, and what it asks again when that leads nowhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.config import LimitsConfig
from kvstore.directory.base import Member
from kvstore.directory.locating import Holders
from kvstore.errors import Rejected
from kvstore.node import far
from kvstore.node.far import FarLeases, Lender
from kvstore.node.streams import Prefix
from kvstore.tiers.base import TierKind
from kvstore.wire import framed, store

A, B = b"a" * 16, b"b" * 16
BLOCKS, SIZE = 4, 64
KEYS = np.random.default_rng(1).integers(0, 256, (BLOCKS, 32), np.uint8)
NO_HINT: Any = lambda at: SimpleNamespace(family=1)  # noqa: E731 - of a prefix


def say(**tiers: int) -> Holders:
    rows = [np.full(BLOCKS, tier, np.uint8) for tier in tiers.values()]
    nodes = tuple(name.encode() * 16 for name in tiers)
    return Holders(nodes, np.ones((len(rows), BLOCKS), np.uint64), np.stack(rows))


class World:
    """has: each node's blocks, and in which tier: what is in files comes to those who may wait. crowded: how often
    whoever is asked has too many readers. full: how often it has lent this node as much as it may. here: whether the
    asking node has them; comes: whether it has, after that.
    """

    def __init__(self, claims: Holders, remembered: Holders | None = None, **has: tuple[int, int]) -> None:
        self.claims, self.known, self.located = claims, remembered, 0
        self.has = has
        self.asked: list[tuple[str, int]] = []
        self.crowded = self.full = 0
        self.limit = "moving_bytes_max"
        self.here = self.comes = False
        cluster: Any = SimpleNamespace(
            locator=self,
            peers=self,
            me=Member("me:1", host="h"),
            clearing=SimpleNamespace(namespaces=SimpleNamespace(clears_word=lambda _: 0)),
            rtt_s=lambda _: 0.001,
            incarnations=lambda: {A: 1, B: 2},
            living=lambda node: Member(chr(node[0]), node, node[0] - 96, host="other"),
        )
        core: Any = SimpleNamespace(find=lambda *asked: np.full(len(asked[-1]), self.here))
        self.lender = Lender(cluster, core, LimitsConfig(), has_files=False)

    def remembered(self, ns: bytes, keys: object) -> Holders | None:
        return self.known

    async def locate(self, ns: bytes, keys: object) -> Holders:
        self.located += 1
        return self.claims

    def connected(self, address: str) -> bool:
        return False

    async def call(self, address: str, method: int, body: bytes, deadline_s: float) -> bytes:
        assert method == store.METHOD_PEER_LEASE
        asked = framed.LeaseRequest.FromString(body)
        self.asked.append((address, asked.wait_ms))
        if self.full:
            self.full -= 1
            raise Rejected(f"{self.limit}: no more", limit=self.limit)
        if self.crowded:
            self.crowded -= 1
            self.here = self.comes and not self.crowded
            return framed.LeaseResponse(busy=True).SerializeToString()
        blocks, tier = self.has.get(address, (0, 0))
        blocks = min(blocks, len(asked.chain.keys) // 32) if tier == TierKind.MEMORY or asked.wait_ms else 0
        told = framed.LeaseResponse(offsets=[0] * blocks, tiers=bytes([tier]) * blocks, tickets=[0] * blocks)
        told.checksums = bytes(8 * blocks)
        if blocks:
            told.sections.add(blocks=blocks)
        return told.SerializeToString()

    async def lend(self, wait_ms: int = 500, source: bytes | None = None) -> tuple[int, bool]:
        opened: Any = SimpleNamespace(handle=0, digest=b"n" * 32, shards=[SimpleNamespace(part_bytes=[SIZE])])
        request = framed.LeaseRequest(carriers=[3], deadline_ms=2000, wait_ms=wait_ms)
        lent, more = await self.lender.lend(opened, Prefix(KEYS, b"", NO_HINT), request, source)
        return sum(one.blocks for one in lent), more


async def test_what_has_left_memory_since_is_asked_for_in_files() -> None:
    world = World(say(a=1), a=(BLOCKS, 2))
    assert await world.lend() == (BLOCKS, False)
    assert world.asked == [("a", 0), ("a", 500)]


async def test_who_has_it_in_neither_is_asked_no_third_time() -> None:
    world = World(say(a=1, b=2), b=(BLOCKS, 2))
    assert await world.lend() == (BLOCKS, False)
    assert world.asked[0] == ("a", 0) and world.asked[-1] == ("b", 500) and len(world.asked) <= 3
    nobody = World(say(a=1))
    assert await nobody.lend() == (0, False)
    assert nobody.asked == [("a", 0), ("a", 500)]


async def test_what_was_said_a_moment_ago_spares_the_question() -> None:
    world = World(say(b=1), say(a=1), a=(BLOCKS, 1))
    assert await world.lend() == (BLOCKS, False)
    assert (world.located, world.asked) == (0, [("a", 0)])


async def test_homes_are_asked_where_that_leads_nowhere() -> None:
    world = World(say(b=1), say(a=1), b=(BLOCKS, 1))
    assert await world.lend() == (BLOCKS, False)
    assert (world.located, world.asked[-1]) == (1, ("b", 0))
    nobody = World(say(b=1), say(a=1))
    assert await nobody.lend() == (0, False) and nobody.located == 1


async def test_what_is_short_of_the_chain_by_an_old_answer_is_asked_about_again() -> None:
    old = Holders((A,), np.ones((1, BLOCKS), np.uint64), np.array([[1, 1, 0, 0]], np.uint8))
    assert await World(say(a=1), old, a=(BLOCKS, 1)).lend() == (2, True)
    assert await World(old, a=(BLOCKS, 1)).lend() == (2, False), "homes say so now"


@pytest.mark.parametrize(("wait_ms", "blocks"), [(500, BLOCKS), (0, 0)])
async def test_a_crowd_is_waited_for_as_long_as_the_client_lets_its_node_wait(
    monkeypatch: pytest.MonkeyPatch, wait_ms: int, blocks: int
) -> None:
    monkeypatch.setattr(far, "BUSY_S", 0.05)
    world = World(say(a=1), a=(BLOCKS, 1))
    world.crowded = 4  # pauses of 10, 20, 40 and 80 ms
    assert (await world.lend(wait_ms))[0] == blocks


@pytest.mark.parametrize(("full", "blocks"), [(4, BLOCKS), (1000, 0)])
async def test_room_for_a_lease_is_waited_for_like_a_crowd_and_is_no_reason_for_a_copy(
    monkeypatch: pytest.MonkeyPatch, full: int, blocks: int
) -> None:
    monkeypatch.setattr(far, "BUSY_S", 0.05)
    world = World(say(a=1), a=(BLOCKS, 1))
    world.lender.wanted.window_s = 60.0
    world.full = full
    assert (await world.lend())[0] == blocks
    assert not world.lender.wanted._crowded and not world.lender.counts.passed_over


async def test_a_limit_that_does_not_pass_is_not_waited_for() -> None:
    world = World(say(a=1), a=(BLOCKS, 1))
    world.full, world.limit = 1000, "keys_per_call_max"
    assert (await world.lend())[0] == 0
    assert len(world.asked) == 2, "in memory, and in files"


async def test_what_is_here_by_now_is_told_so_and_asked_of_nobody() -> None:
    world = World(say(a=1), a=(BLOCKS, 1))
    world.here = True
    assert await world.lend() == (0, True)
    assert not world.asked


async def test_who_waits_behind_a_crowd_sees_what_came_here_meanwhile() -> None:
    world = World(say(a=1), a=(BLOCKS, 1))
    world.crowded, world.comes = 2, True
    assert await world.lend() == (0, True)
    assert len(world.asked) == 2


async def test_who_has_just_asked_for_a_copy_is_not_passed_over() -> None:
    world = World(say(a=1), a=(BLOCKS, 2))
    world.lender._passed_over[1] = float("inf")
    assert await world.lend() == (0, False) and not world.asked
    assert await world.lend(source=A) == (BLOCKS, False)


async def test_a_number_that_is_taken_is_refused_whatever_is_asked_by_it() -> None:
    """Also what is to be held here: two that ended the same number failed the node."""
    leases = FarLeases(World(say(a=1)).lender)
    with leases.asking(7), pytest.raises(ValueError, match="lease: 7 is the number of another one"), leases.asking(7):
        pass
    with leases.asking(7):
        pass
