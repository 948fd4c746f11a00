"""Every eviction policy sits the exam of its seam."""

import numpy as np
import pytest

from kvstore.eviction import POLICIES, EvictionPolicy, LeafLru, S3Fifo
from kvstore.eviction.base import NO_PARENT
from kvstore.native import Policy
from kvstore.testing.exam_policy import LeafFirstExam, PolicyExam, add_chain, ids


class TestLeafLru(LeafFirstExam):
    def make(self, ids_max: int) -> EvictionPolicy:
        return LeafLru(ids_max)

    def test_the_order_outlasts_the_window(self) -> None:
        """The ring of an order for 64 ids spans 768 touches; older ones keep their order in a list."""
        policy = self.make(64)
        for i in range(10):
            add_chain(policy, [i])
        add_chain(policy, [20, 21])
        for _ in range(3000):
            policy.touched(ids(30))
        policy.touched(ids(4))
        policy.removed(ids(21))
        policy.check_integrity()
        assert policy.victims(11).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 20, 4]


class TestS3Fifo(PolicyExam):
    def make(self, ids_max: int) -> EvictionPolicy:
        return S3Fifo(ids_max)

    def test_one_evicted_lately_comes_back_into_main(self) -> None:
        policy = self.make(256)
        for i in range(100):
            add_chain(policy, [i])
        policy.removed(ids(0))  # from small: a ghost now
        add_chain(policy, [0])
        add_chain(policy, [200])
        order = policy.victims(101).tolist()
        assert order.index(0) > order.index(200)

    def test_ghosts_are_forgotten(self) -> None:
        policy = self.make(1024)
        for i in range(20):
            add_chain(policy, [i])
        for i in range(20, 400):
            add_chain(policy, [i])
            policy.removed(policy.victims(1))
        add_chain(policy, [0])
        add_chain(policy, [900])
        order = policy.victims(30).tolist()
        assert order.index(0) < order.index(900)


def test_names_are_those_of_the_config() -> None:
    for name, policy in POLICIES.items():
        assert Policy(name, 8).name == policy.name == name
        assert policy(8).parameters
    with pytest.raises(ValueError, match="leaf_lru, s3_fifo"):
        Policy("lru", 8)
    with pytest.raises(ValueError, match="ids_max"):
        Policy("leaf_lru", 0)


def test_bad_ids_are_refused_by_name() -> None:
    policy = LeafLru(8)
    with pytest.raises(ValueError, match="ids"):
        policy.touched(ids(8))
    with pytest.raises(ValueError, match="parents"):
        policy.added(ids(1), ids(8), np.array([1], np.uint64))
    with pytest.raises(ValueError, match="as many"):
        policy.added(ids(1, 2), ids(1), np.array([1], np.uint64))
    assert NO_PARENT == 2**32 - 1
