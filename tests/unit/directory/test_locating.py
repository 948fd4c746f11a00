"""A lookup's messages, its hedges, and what its answers come to."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.directory.homes import Places
from kvstore.directory.locating import Holders, Locating, Run, longest_boundary
from kvstore.directory.messages import Locate, LocateAnswer, Status
from kvstore.directory.settings import DirectorySettings
from kvstore.testing.models.lookup import Need, NeedKind
from kvstore.testing.models.lookup import longest_boundary as by_trying

NS = hashlib.sha256(b"ns").digest()
IDS = [hashlib.sha256(f"node {n}".encode()).digest()[:16] for n in range(20)]
KEYS = np.frombuffer(b"".join(hashlib.sha256(f"{n}".encode()).digest() for n in range(300)), np.uint8).reshape(-1, 32)
NEEDS = st.lists(
    st.builds(Need, st.integers(0, 2), st.sampled_from(list(NeedKind)), st.integers(0, 40)), min_size=1, max_size=4
)


@given(NEEDS, st.lists(st.sampled_from([7, 7, 7, 7, 5, 3, 1, 0]), max_size=60))
def test_the_boundary_is_the_one_that_trying_all_finds(needs: list[Need], bitmaps: list[int]) -> None:
    tiers = [[bitmap >> shard & 1 for bitmap in bitmaps] for shard in range(3)]
    want = by_trying(tiers, needs)
    assert longest_boundary([(n.shard, int(n.kind), n.blocks) for n in needs], np.array(bitmaps, np.uint64)) == want


def locating(standing: dict[bytes, int], count: int = 20, width: int = 16) -> Locating:
    homes = Places(IDS[:count], width).of(NS)
    return Locating(NS, KEYS, homes, lambda node: standing.get(node, 2), spread=1, hedge_at=50, ends_at=500)


def answer(message: Locate, node: bytes) -> LocateAnswer:
    count = len(message.keys)
    ones = np.ones(count, np.uint8)
    return LocateAnswer(
        Status.TAKEN, (node,), ones, np.zeros(count, np.uint16), ones.astype(np.uint64), ones.astype(np.uint8)
    )


def test_one_message_a_home_and_every_key_once() -> None:
    lookup = locating({})
    asked = lookup.start()
    assert len(asked) == len({home for home, _ in asked}) == 16
    assert sum(len(message.keys) for _, message in asked) == len(KEYS)
    for _, message in asked:
        assert not lookup.done
        assert lookup.answered(message, answer(message, IDS[3])) == []
    assert lookup.done and lookup.holders().together().all() and lookup.hedges == 0


def test_a_home_that_sees_other_nodes_is_hedged_for_what_it_knows_nobody_of() -> None:
    lookup = locating({}, count=5)
    (_, first), *others = lookup.start()
    for _, message in others:
        lookup.answered(message, answer(message, IDS[0]))
    none = np.zeros(0, np.uint8)
    half = np.arange(len(first.keys)) % 2
    told = answer(Locate(NS, first.keys[half == 1]), IDS[1])
    told = replace(told, counts=half.astype(np.uint8), view=7)
    more = [message for _, message in lookup.answered(first, told)]
    assert lookup.hedges == len(more) > 0 and not lookup.done
    assert sum(len(message.keys) for message in more) == (half == 0).sum()
    for message in more:  # the second home is not asked of again, whatever it sees
        nobody = LocateAnswer(
            Status.TAKEN,
            (),
            np.zeros(len(message.keys), np.uint8),
            none.astype(np.uint16),
            none.astype(np.uint64),
            none,
            8,
        )
        assert lookup.answered(message, nobody) == []
    assert lookup.done and (lookup.holders().together() == 0).sum() == (half == 0).sum()


@pytest.mark.parametrize("standing", [0, 1])
def test_who_is_dead_or_new_is_left_out(standing: int) -> None:
    lookup = locating({IDS[2]: standing}, count=5)
    asked = lookup.start()
    assert IDS[2] not in {home for home, _ in asked}
    assert sum(len(message.keys) for _, message in asked) == len(KEYS)


def test_who_is_slow_or_fails_is_hedged_once() -> None:
    lookup = locating({}, count=5)
    asked = lookup.start()
    slow, failed, *others = asked
    for _, message in others:
        lookup.answered(message, answer(message, IDS[0]))
    more = lookup.answered(failed[1], None)
    assert sum(len(message.keys) for _, message in more) == len(failed[1].keys)
    assert lookup.timer(49) == []
    hedges = lookup.timer(50)
    assert slow[0] not in {home for home, _ in hedges} and lookup.timer(51) == []
    assert lookup.answered(slow[1], None) == []  # it fails after all
    for _, message in more + hedges:
        assert not lookup.done
        assert lookup.answered(message, None) == []
    assert lookup.done and lookup.timer(500) == []
    missing = len(slow[1].keys) + len(failed[1].keys)
    assert np.count_nonzero(lookup.holders().together()) == len(KEYS) - missing


def test_runs_are_as_long_as_they_can_be() -> None:
    a, b = IDS[:2]
    shards = np.array([[1, 1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 1, 0, 0]], np.uint64)
    holders = Holders((a, b), shards, shards.astype(np.uint8))
    assert holders.runs(0, 0, 7) == [Run(b, 0, 5), Run(a, 5, 1)]
    assert holders.runs(0, 4, 5, order=(b, a)) == [Run(b, 4, 1)]
    assert holders.runs(0, 4, 5, order=(a, b)) == [Run(a, 4, 1)]
    assert holders.runs(1, 0, 7) == []


def test_a_queue_holds_what_a_step_finds() -> None:
    with pytest.raises(ValueError, match="queue_max"):
        DirectorySettings(queue_max=10, scan_keys=6)


def one_by_one(has: list[list[bool]]) -> list[tuple[int, int, int]]:
    """runs(), block after block."""
    out, at, count = [], 0, len(has[0]) if has else 0
    while at < count:
        lengths = [next((k for k in range(at, count) if not row[k]), count) - at for row in has]
        longest = max(lengths)
        if not longest:
            break
        out.append((lengths.index(longest), at, longest))
        at += longest
    return out


@given(st.integers(0, 3), st.integers(0, 9), st.randoms(use_true_random=False))
def test_runs_are_those_that_a_walk_finds(nodes: int, count: int, rng: random.Random) -> None:
    has = [[rng.random() < 0.7 for _ in range(count)] for _ in range(nodes)]
    ids = tuple(bytes([i]) * 16 for i in range(nodes))
    shards = np.array(has, np.uint64).reshape(nodes, count) << np.uint64(2)
    holders = Holders(ids, shards, np.ones((nodes, count), np.uint8))
    order = list(reversed(ids))
    wanted = one_by_one(list(reversed(has)))
    assert holders.runs(2, 0, count, order) == [Run(order[i], at, n) for i, at, n in wanted]
