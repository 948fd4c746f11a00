"""What homes said a moment ago: of which chains it speaks again, and how long."""

from __future__ import annotations

import numpy as np

from kvstore.directory.locating import Holders
from kvstore.node.recent import ANSWERS_MAX, KEYS_MAX, RECENT_S, Recent

A, NS = b"a" * 16, b"n" * 32
KEYS = np.random.default_rng(1).integers(0, 256, (100, 32), np.uint8)


def holders(count: int, first: int = 1) -> Holders:
    return Holders((A,), np.arange(first, first + count, dtype=np.uint64)[None], np.ones((1, count), np.uint8))


def test_of_a_chain_each_stretch_is_remembered() -> None:
    recent = Recent()
    recent.add(NS, KEYS, holders(100), 5.0)
    for first, end in ((0, 100), (0, 1), (40, 60), (99, 100)):
        found = recent.find(NS, KEYS[first:end], 5.0)
        assert found is not None and found.nodes == (A,)
        assert found.shards[0].tolist() == list(range(first + 1, end + 1))
        assert found.tiers.shape == (1, end - first)


def test_what_was_not_asked_is_not_known() -> None:
    recent = Recent()
    recent.add(NS, KEYS[:50], holders(50), 5.0)
    assert recent.find(NS, KEYS[40:60], 5.0) is None, "its end was not asked for"
    assert recent.find(NS, KEYS[50:], 5.0) is None
    assert recent.find(NS, KEYS[[0, 2, 3]], 5.0) is None, "not one behind the other"
    assert recent.find(b"m" * 32, KEYS[:50], 5.0) is None, "of another namespace"


def test_the_last_answer_counts_for_a_second() -> None:
    recent = Recent()
    recent.add(NS, KEYS, holders(100), 5.0)
    recent.add(NS, KEYS, holders(100, 500), 5.0 + RECENT_S / 2)
    found = recent.find(NS, KEYS, 5.0 + RECENT_S)
    assert found is not None and found.shards[0, 0] == 500
    assert recent.find(NS, KEYS, 5.0 + 2 * RECENT_S) is None


def test_nobody_is_no_answer() -> None:
    recent = Recent()
    recent.add(NS, KEYS, Holders((), np.zeros((0, 100), np.uint64), np.zeros((0, 100), np.uint8)), 5.0)
    assert recent.find(NS, KEYS, 5.0) is None


def test_it_is_limited() -> None:
    recent = Recent()
    for i in range(ANSWERS_MAX + 1):
        recent.add(NS, KEYS[i : i + 2], holders(2), 5.0)
    assert recent.find(NS, KEYS[:2], 5.0) is None and recent.find(NS, KEYS[1:3], 5.0) is not None
    long = np.random.default_rng(2).integers(0, 256, (KEYS_MAX, 32), np.uint8)
    recent.add(NS, long, holders(KEYS_MAX), 5.0)
    assert recent.find(NS, long[-1:], 5.0) is not None
    assert recent.find(NS, KEYS[1:3], 5.0) is None
    recent.add(NS, np.concatenate([long, KEYS]), holders(KEYS_MAX + 100), 5.0)
    assert recent.find(NS, KEYS, 5.0) is None
