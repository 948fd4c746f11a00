"""Too many readers of one block."""

from __future__ import annotations

import numpy as np

from kvstore.directory.locating import Holders
from kvstore.node.crowding import KEPT_MAX, OTHERS_MAX, Crowd, Crowds, also, names_of, one_holder

KEYS = np.arange(4 * 32, dtype=np.uint8).reshape(4, 32)
NAMES = names_of(1, 0, KEYS)


def test_names_are_of_the_first_half_of_the_keys() -> None:
    assert names_of(1, 0, KEYS) == [(1, 0, key[:16].tobytes()) for key in KEYS]


def test_as_many_readers_as_there_may_be_and_a_run_ends_at_the_first_full_block() -> None:
    crowd = Crowd(2)
    first = crowd.enter(NAMES[1:3])
    second = crowd.enter(NAMES)
    assert (len(first), len(second), crowd.blocks) == (2, 4, 4)
    assert crowd.enter(NAMES) == NAMES[:1]  # the second is full
    assert crowd.enter(NAMES[1:]) == [] and crowd.turned_away == 1
    crowd.leave(first)
    crowd.leave(second)
    assert crowd.enter(NAMES[1:]) == NAMES[1:]
    crowd.leave(NAMES[1:])
    crowd.leave(NAMES[:1])
    assert crowd.blocks == 0


def test_who_has_copied_is_remembered_the_latest_last_within_limits() -> None:
    crowd = Crowd(1)
    for node in (b"a", b"b", b"a"):
        crowd.copied(NAMES[:2], node)
    assert crowd.copies(NAMES[0]) == (b"b", b"a") and crowd.copies(NAMES[2]) == ()
    for node in range(20):
        crowd.copied(NAMES[:1], bytes([node]))
    assert crowd.copies(NAMES[0]) == tuple(bytes([node]) for node in range(20 - OTHERS_MAX, 20))
    for other in range(KEPT_MAX):
        crowd.copied([(2, 0, other.to_bytes(16, "big"))], b"a")
    assert crowd.copies(NAMES[0]) == () and len(crowd._kept) == KEPT_MAX


def test_the_busy_are_asked_again_later_and_later_and_not_for_ever() -> None:
    crowds = Crowds(until=101.0)
    assert crowds.pause_s(100.0) is None  # nobody is busy
    now, pauses = 100.0, []
    while True:
        crowds.busy.add(b"a")
        pause_s = crowds.pause_s(now)
        if pause_s is None:
            break
        assert not crowds.busy
        pauses.append(pause_s)
        now += pause_s
    assert pauses == sorted(pauses) and 100.8 < now < 101.0
    late = Crowds(until=100.005)
    late.busy.add(b"a")
    assert late.pause_s(100.0) is None


def test_others_may_have_what_was_asked_of_the_busy_one() -> None:
    holders = one_holder(b"a", 2, 4)
    assert holders.shards.tolist() == [[4] * 4] and holders.tiers.tolist() == [[2] * 4]
    more = also(holders, [b"b", b"a", b"b", b"c"], 2, 1, 3)
    assert isinstance(more, Holders) and more.nodes == (b"a", b"b", b"c")
    assert more.shards.tolist() == [[4] * 4, [0, 4, 4, 0], [0, 4, 4, 0]]
    assert more.tiers.tolist() == [[2] * 4, [0, 1, 1, 0], [0, 1, 1, 0]]
    assert also(holders, [b"a"], 2, 0, 4) is holders
