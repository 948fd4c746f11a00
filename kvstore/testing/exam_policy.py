"""The exam of the EvictionPolicy seam: subclass PolicyExam, say how to make one, and pytest asks the questions."""

from __future__ import annotations

import random

import numpy as np

from kvstore.eviction.base import NO_PARENT, EvictionPolicy, Hint, Ids

__all__ = ["LeafFirstExam", "PolicyExam", "add_chain", "ids"]


def ids(*numbers: int) -> Ids:
    return np.array(numbers, np.uint32)


def add_chain(policy: EvictionPolicy, chain: list[int], hint: Hint | None = None) -> None:
    """A put of a prompt of which nothing is held yet."""
    hint = hint or Hint()
    policy.touched(ids(), hint)
    parents = [NO_PARENT, *chain[:-1]]
    policy.added(ids(*chain), ids(*parents), np.array([c * 0x9E3779B97F4A7C15 % 2**64 for c in chain], np.uint64), hint)


class PolicyExam:
    """What every order must do, whatever order it is."""

    def make(self, ids_max: int) -> EvictionPolicy:
        raise NotImplementedError

    def test_names_everybody_once_when_all_must_go(self) -> None:
        policy = self.make(64)
        add_chain(policy, list(range(20)))
        add_chain(policy, list(range(30, 40)))
        victims = policy.victims(64)
        assert sorted(victims.tolist()) == [*range(20), *range(30, 40)]
        policy.check_integrity()

    def test_naming_removes_nobody(self) -> None:
        policy = self.make(16)
        add_chain(policy, [1, 2, 3])
        assert policy.victims(2).tolist() == policy.victims(2).tolist()
        assert len(policy) == 3

    def test_one_after_the_other_is_the_same_as_all_at_once(self) -> None:
        policy = self.make(128)
        for start in range(0, 100, 10):
            add_chain(policy, list(range(start, start + 10)))
        policy.touched(ids(20, 21, 22))
        foreseen = policy.victims(100).tolist()
        one_by_one = []
        while len(policy):
            (victim,) = policy.victims(1).tolist()
            one_by_one.append(victim)
            policy.removed(ids(victim))
            policy.check_integrity()
        assert sorted(foreseen) == sorted(one_by_one)
        assert foreseen[:20] == one_by_one[:20]

    def test_refused_keep_their_place(self) -> None:
        policy = self.make(64)
        for start in (0, 10, 20):
            add_chain(policy, [start, start + 1])
        (first,) = policy.victims(1).tolist()
        (second,) = policy.victims(1, ids(first)).tolist()
        assert second != first
        policy.check_integrity()
        policy.released(ids(first))
        assert policy.victims(1).tolist() == [first]

    def test_all_refused_is_nobody(self) -> None:
        policy = self.make(8)
        add_chain(policy, [1, 2])
        assert policy.victims(2, ids(1, 2)).tolist() == []
        assert len(policy) == 2
        policy.released(ids(2, 1))
        assert sorted(policy.victims(2).tolist()) == [1, 2]

    def test_gone_is_gone(self) -> None:
        policy = self.make(8)
        add_chain(policy, [1, 2, 3])
        policy.removed(ids(2))
        policy.removed(ids(2))
        assert len(policy) == 2
        assert sorted(policy.victims(8).tolist()) == [1, 3]

    def test_touching_what_is_not_there_does_nothing(self) -> None:
        policy = self.make(8)
        policy.touched(ids(1, 2))
        assert len(policy) == 0
        assert policy.victims(1).tolist() == []

    def test_what_is_used_outlives_a_scan(self) -> None:
        policy = self.make(4096)
        add_chain(policy, [0, 1, 2, 3])
        for round_ in range(3):
            policy.touched(ids(0, 1, 2, 3))
            add_chain(policy, [100 + round_])
        for scan in range(200, 1000):
            add_chain(policy, [scan])
            if scan % 20 == 0:
                policy.touched(ids(0, 1, 2, 3))
            if len(policy) > 100:
                policy.removed(policy.victims(len(policy) - 100, ids(scan)))
                policy.released(ids(scan))
        assert not set(policy.victims(50).tolist()) & {0, 1, 2, 3}

    def test_any_history_adds_up(self) -> None:
        for seed in range(20):
            self._wander(random.Random(seed))

    def _wander(self, rng: random.Random) -> None:
        size = 200
        policy = self.make(size)
        here: set[int] = set()
        refused: set[int] = set()
        for _ in range(300):
            start, length = rng.randrange(size), rng.randrange(1, 12)
            chain = list(range(start, min(start + length, size)))
            hint = Hint(rng.randrange(-5, 6), rng.random() < 0.2, rng.choice([0, 0, 3, 1000]))
            match rng.randrange(6):
                case 0 | 1:
                    policy.touched(ids(*[c for c in chain if c in here]), hint)
                    new = [c for c in chain if c not in here]
                    parents = [c - 1 if c - 1 in here or c - 1 in new else NO_PARENT for c in new]
                    policy.added(ids(*new), ids(*parents), np.array(new, np.uint64) << np.uint64(20), hint)
                    here.update(new)
                case 2:
                    policy.touched(ids(*[c for c in chain if c in here]), hint)
                case 3:
                    gone = [c for c in chain if c in here and rng.random() < 0.5]
                    policy.removed(ids(*gone))
                    here.difference_update(gone)
                    refused.difference_update(gone)
                case 4:
                    no = set(rng.sample(sorted(here), len(here) // 3)) | refused
                    named = policy.victims(rng.randrange(1, 40), ids(*sorted(no))).tolist()
                    assert len(named) == len(set(named))
                    assert set(named) <= here - no
                    refused |= no
                    policy.removed(ids(*named))
                    here.difference_update(named)
                case 5:
                    policy.released(ids(*sorted(refused)))
                    refused.clear()
            assert len(policy) == len(here)
            policy.check_integrity()
        policy.released(ids(*sorted(refused)))
        assert set(policy.victims(size).tolist()) == here


class LeafFirstExam(PolicyExam):
    """What an order must do besides that keeps chains whole."""

    def test_a_chain_leaves_leaf_by_leaf(self) -> None:
        policy = self.make(64)
        add_chain(policy, [5, 3, 9, 1])
        assert policy.victims(4).tolist() == [1, 9, 3, 5]

    def test_one_chain_leaves_whole_before_a_later_one(self) -> None:
        policy = self.make(64)
        add_chain(policy, [1, 2, 3])
        add_chain(policy, [11, 12, 13])
        assert policy.victims(6).tolist() == [3, 2, 1, 13, 12, 11]
        policy.touched(ids(1, 2, 3))
        assert policy.victims(6).tolist() == [13, 12, 11, 3, 2, 1]

    def test_a_shared_parent_waits_for_its_last_child(self) -> None:
        policy = self.make(64)
        add_chain(policy, [1, 2])
        policy.touched(ids(1))
        policy.added(ids(3), ids(1), np.array([3], np.uint64))
        assert policy.victims(3).tolist() == [2, 3, 1]
        policy.removed(ids(2))
        assert policy.victims(1).tolist() == [3]
        policy.removed(ids(3))
        assert policy.victims(1).tolist() == [1]

    def test_children_of_one_that_left_do_not_count_for_its_successor(self) -> None:
        policy = self.make(64)
        add_chain(policy, [1, 2])
        policy.removed(ids(1))  # retired with a child: 2 is an orphan
        add_chain(policy, [1])
        policy.check_integrity()
        assert policy.victims(2).tolist() == [2, 1]
        policy.removed(ids(2))
        policy.check_integrity()
        assert policy.victims(2).tolist() == [1]

    def test_a_filled_hole_joins_the_chain(self) -> None:
        policy = self.make(64)
        add_chain(policy, [1, 2, 3])
        policy.removed(ids(2))
        policy.touched(ids(1, 3))
        policy.added(ids(2), ids(1), np.array([2], np.uint64))
        policy.added(ids(3), ids(2), np.array([3], np.uint64))
        policy.check_integrity()
        assert policy.victims(3).tolist() == [3, 2, 1]

    def test_chains_never_become_circles(self) -> None:
        policy = self.make(64)
        add_chain(policy, [1, 2, 3])
        policy.added(ids(1), ids(3), np.array([1], np.uint64))  # keys that name each other
        policy.check_integrity()
        assert policy.victims(3).tolist() == [3, 2, 1]

    def _spread(self) -> EvictionPolicy:
        policy = self.make(256)
        for i in range(100):
            add_chain(policy, [i])
        return policy

    def test_an_end_is_half_a_span_colder_and_not_first(self) -> None:
        policy = self._spread()
        policy.touched(ids(99), Hint(end=True))
        place = policy.victims(100).tolist().index(99)
        assert 40 <= place <= 60

    def test_an_end_leaves_shared_blocks_warm(self) -> None:
        policy = self._spread()
        add_chain(policy, [100, 101, 102])
        policy.added(ids(110), ids(101), np.array([110], np.uint64))  # another's chain through 100, 101
        policy.touched(ids(100, 101, 102), Hint(end=True))
        policy.removed(ids(110))
        policy.removed(ids(102))
        assert policy.victims(102).tolist()[-2:] == [101, 100]

    def test_priorities_shift(self) -> None:
        policy = self._spread()
        policy.touched(ids(98), Hint(priority=-2))
        policy.touched(ids(97), Hint(priority=1))
        policy.touched(ids(96))
        order = policy.victims(100).tolist()
        assert order.index(98) < 90 < order.index(96) < order.index(97)
        assert order.index(98) > 50

    def test_an_expected_return_keeps_until_about_then(self) -> None:
        policy = self._spread()
        policy.touched(ids(50), Hint(return_touches=20))
        for i in range(100, 160):
            add_chain(policy, [i])
        order = policy.victims(200).tolist()
        assert 15 <= order.index(50) - order.index(99) <= 25
