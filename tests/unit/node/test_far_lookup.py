"""What is here and what others claim, into one answer: boundary by needs, tiers, holders, time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.directory.base import Member
from kvstore.directory.locating import Holders
from kvstore.native import NeedKind
from kvstore.node import far_lookup
from kvstore.node.far_lookup import SLOWER, FarFound, FarLookup, stretches
from kvstore.node.speeds import Speeds
from kvstore.wire import store

COUNT = 6
KEYS = np.arange(COUNT * 32, dtype=np.uint8).reshape(COUNT, 32)
RATE = 1_000
PARTS = (100, 200)  # bytes of a block of each shard
A, B = b"a" * 16, b"b" * 16
MEMBERS = {A: Member("a:1", A, 1, "a", host="there"), B: Member("b:1", B, 1, "b", host="here")}
OPENED: Any = SimpleNamespace(handle=3, digest=b"d" * 32, shards=[SimpleNamespace(part_bytes=(n,)) for n in PARTS])


@dataclass
class World:
    """here: by tier and shard, which blocks. claims: by node, a bitmap and a tier a block."""

    here: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    claims: dict[bytes, dict[int, tuple[int, int]]] = field(default_factory=dict)
    packs: list[int] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)

    def find(self, tier: int, _handle: int, shard: int, keys: np.ndarray) -> np.ndarray:
        return np.isin(np.arange(len(keys)), self.here.get((tier, shard), []))

    async def locate(self, _ns: bytes, keys: np.ndarray) -> Holders:
        blocks = [int(key[0]) // 32 for key in keys]
        self.asked.append(blocks)
        told = [[self.claims[node].get(block, (0, 0)) for block in blocks] for node in self.claims]
        shape = (len(self.claims), len(blocks), 2)
        both = np.array(told, np.uint64).reshape(shape)
        return Holders(tuple(self.claims), both[..., 0], both[..., 1].astype(np.uint8))

    def look(self, *needs: tuple[int, int, int]) -> FarFound:
        cluster: Any = SimpleNamespace(
            locator=self,
            living=MEMBERS.get,
            rtt_s=lambda at: {"a:1": 0.5, "b:1": 2.0}[at],
            me=Member("me", host="here"),
        )
        packs = (lambda _handle, _shard, keys: np.isin(np.arange(len(keys)), self.packs)) if self.packs else None
        core: Any = self
        return asyncio.run(FarLookup(core, cluster, Speeds(RATE), True, packs).find(OPENED, KEYS, needs))


def run(holder: store.Holder) -> tuple[str, int, int, int]:
    return holder.node, holder.shard, holder.first, holder.count


def test_what_is_here_is_not_asked_for_and_comes_first() -> None:
    world = World({(1, 0): [0, 3], (2, 0): [1]}, {A: dict.fromkeys(range(5), (1, 1))}, packs=[4, 5])
    found = world.look()
    assert world.asked == [[2, 4, 5]]
    assert list(found.tiers) == [1, 2, 9, 1, 9, 3] and found.blocks == 6
    assert [run(one) for one in found.holders] == [("a", 0, 2, 1), ("a", 0, 4, 1)]
    assert found.fetch_s == pytest.approx(2 * 100 / RATE + 0.5)


def test_nobody_is_asked_where_all_is_here() -> None:
    world = World({(1, 0): list(range(COUNT))})
    assert world.look() == FarFound(6, bytes([1] * 6), 0.0, [])
    assert world.asked == []


def test_of_several_holders_the_one_of_this_machine_and_the_longest_run() -> None:
    world = World({}, {A: dict.fromkeys(range(4), (1, 2)), B: dict.fromkeys(range(4), (1, 1))})
    found = world.look()
    assert [run(one) for one in found.holders] == [("b", 0, 0, 4)] and found.blocks == 4
    assert list(found.tiers) == [9] * 4  # the nearest that somebody says
    world.claims[A] = dict.fromkeys(range(6), (1, 2))
    assert [run(one) for one in world.look().holders] == [("a", 0, 0, 6)]


def test_needs_of_several_shards_make_the_boundary_and_the_slowest_tier_counts() -> None:
    every, last, state = int(NeedKind.ALL), int(NeedKind.LAST), int(NeedKind.STATE)
    world = World({(1, 0): [0, 1, 2, 3]}, {A: {3: (0b10, 2), 2: (0b10, 1), 4: (0b11, 1)}})
    found = world.look((0, every, 0), (1, last, 2))
    assert found.blocks == 5 and list(found.tiers) == [1, 1, 1, 10, 9]
    assert [run(one) for one in found.holders] == [("a", 0, 4, 1), ("a", 1, 3, 2)]
    assert found.fetch_s == pytest.approx((100 + 2 * 200) / RATE + 0.5)
    packed = World({}, {A: dict.fromkeys(range(3), (0b10, 1))}, packs=[0, 1])
    assert list(packed.look((0, every, 0), (1, every, 0)).tiers) == [3, 3], "a pack is slower than another's memory"
    del world.claims[A][4]
    assert world.look((0, every, 0), (1, state, 0)).blocks == 4
    assert list(world.look((1, state, 0)).tiers) == [0, 0, 0, 10]
    assert world.look((1, every, 0)).blocks == 0


def test_a_far_object_tier_there_is_none_and_every_tier_has_its_place() -> None:
    names = dict(zip(store.Tier.values(), store.Tier.keys(), strict=True))
    assert [names[int(tier)] for tier in SLOWER] == [  # as docs/grpc.md and store.proto have it
        "TIER_MEMORY",
        "TIER_FILE",
        "TIER_FAR_MEMORY",
        "TIER_FAR_FILE",
        "TIER_OBJECT",
    ]


def test_stretches() -> None:
    assert stretches(np.array([1, 1, 0, 1, 0, 0, 1], np.bool_)) == [(0, 2), (3, 4), (6, 7)]
    assert stretches(np.zeros(0, np.bool_)) == []


def test_so_many_holders_are_named_and_all_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_lookup, "RUNS_MAX", 2)
    world = World({}, {A: dict.fromkeys((0, 2, 4), (1, 1)), B: dict.fromkeys((1, 3, 5), (1, 1))})
    found = world.look()
    assert found.blocks == 6 and [run(one) for one in found.holders] == [("a", 0, 0, 1), ("b", 0, 1, 1)]
    assert found.fetch_s == pytest.approx(6 * 100 / RATE + 2.0), "the estimate is of all of it"
