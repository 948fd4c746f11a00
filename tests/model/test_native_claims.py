"""The native claim table and homes against their models, through every call that a home or an announcer makes."""

from __future__ import annotations

import hashlib
from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvstore import native
from kvstore.testing.models.claims import (
    ClaimTableModel,
    bucket_of,
    claim_hash,
    highest,
    homes_of,
    key_hash,
)

KEYS = [hashlib.sha256(f"block {number}".encode()).digest() for number in range(60)]
ROWS = st.lists(
    st.tuples(st.sampled_from(KEYS), st.sampled_from([0, 1, 2, 3, 1 << 63]), st.integers(1, 3)), max_size=12
)
NS = st.integers(0, 1)
MASKS = st.one_of(st.just((1 << 64) - 1), st.integers(0, (1 << 64) - 1))
NODE = st.integers(0, 5)


def array(keys: list[bytes], width: int = 16) -> np.ndarray:
    return np.frombuffer(b"".join(key[:width] for key in keys), np.uint8).reshape(-1, width)


class Claims(RuleBasedStateMachine):
    """Small enough to be full now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.table = native.ClaimTable(40, 7)
        self.model = ClaimTableModel(40)
        for _ in range(3):
            assert self.table.add_node() == self.model.add_node()

    def _node(self, pick: int) -> int | None:
        numbers = sorted(self.model.nodes)
        return numbers[pick % len(numbers)] if numbers else None

    @rule()
    def add(self) -> None:
        if len(self.model.nodes) < 6:
            assert self.table.add_node() == self.model.add_node()

    @rule(pick=NODE)
    def drop(self, pick: int) -> None:
        if (node := self._node(pick)) is not None:
            assert self.table.drop_node(node) == self.model.drop_node(node)

    @rule(pick=NODE, ns=NS, rows=ROWS, width=st.sampled_from([16, 32]))
    def apply(self, pick: int, ns: int, rows: list[tuple[bytes, int, int]], width: int) -> None:
        if (node := self._node(pick)) is None:
            return
        keys = array([key for key, _, _ in rows], width)
        shards = np.array([shards for _, shards, _ in rows], np.uint64)
        tiers = np.array([tier for _, _, tier in rows], np.uint8)
        done = self.table.apply(node, ns, keys, shards, tiers)
        assert done == self.model.apply(node, ns, [(key[:16], *row) for key, *row in rows])

    @rule(pick=NODE, ns=NS)
    def clear(self, pick: int, ns: int) -> None:
        if (node := self._node(pick)) is not None:
            assert self.table.drop_namespace(node, ns) == self.model.drop_namespace(node, ns)

    @rule(pick=NODE, mask=MASKS)
    def begin(self, pick: int, mask: int) -> None:
        if (node := self._node(pick)) is not None:
            self.table.begin(node, mask)
            self.model.begin(node, mask)

    @rule(pick=NODE, mask=MASKS)
    def end(self, pick: int, mask: int) -> None:
        if (node := self._node(pick)) is not None:
            assert self.table.end(node, mask) == self.model.end(node, mask)

    @rule(pick=NODE, named=st.booleans())
    def name(self, pick: int, named: bool) -> None:
        if (node := self._node(pick)) is not None:
            self.table.set_named(node, named)
            self.model.set_named(node, named)

    @rule(ns=NS, keys=st.lists(st.sampled_from(KEYS), max_size=8), most=st.integers(1, 4), spread=st.integers(0, 99))
    def locate(self, ns: int, keys: list[bytes], most: int, spread: int) -> None:
        counts, nodes, shards, tiers = self.table.locate(ns, array(keys), most, spread)
        assert len(counts) == len(keys) and counts.sum() == len(nodes) == len(shards) == len(tiers)
        at = 0
        for key, count in zip(keys, counts, strict=True):
            holders = self.model.holders(ns, key[:16])
            named = list(zip(nodes[at : at + count], shards[at : at + count], tiers[at : at + count], strict=True))
            at += int(count)
            assert count == min(most, len(holders)) == len({node for node, _, _ in named})
            assert all(holders[int(node)] == (int(row), int(tier)) for node, row, tier in named)
            if len(holders) > count > 0:
                # The nearest is among them, and none is a repetition while a shard is left out.
                assert min(tier for _, _, tier in named) == min(tier for _, tier in holders.values())
                covered = reduce(lambda a, b: a | b, (int(row) for _, row, _ in named))
                left = [row & ~covered for node, (row, _) in holders.items() if node not in {n for n, _, _ in named}]
                gains, seen = [], 0
                for _, row, _ in named:
                    gains.append(int(row) & ~seen)
                    seen |= int(row)
                assert not any(left) or all(gains)

    @invariant()
    def agree(self) -> None:
        self.table.check_integrity()
        assert len(self.table) == len(self.model)
        for number, node in self.model.nodes.items():
            assert self.table.claims_of(number) == len(node.claims)
            assert self.table.evicted_of(number) == node.evicted
            assert self.table.digests(number).tolist() == self.model.digests(number)


TestClaims = Claims.TestCase


@given(st.lists(st.sampled_from(KEYS), max_size=20), st.integers(0, 20), st.integers(1, 18))
def test_homes_are_the_models(keys: list[bytes], count: int, width: int) -> None:
    ids = [hashlib.sha256(f"node {number}".encode()).digest()[:16] for number in range(count)]
    words = [native.node_word(node) for node in ids]
    assert words == [key_hash(node) for node in ids]
    chosen = native.rendezvous(KEYS[0], np.array(words, np.uint64), width)
    assert chosen.tolist() == highest(KEYS[0], words, width)
    first, second = native.homes_of(array(keys, 32), np.array(words, np.uint64))
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [homes_of(key, words) for key in keys]


@given(ROWS)
def test_digests_are_the_models(rows: list[tuple[bytes, int, int]]) -> None:
    keys = array([key for key, _, _ in rows])
    shards = np.array([shards for _, shards, _ in rows], np.uint64)
    tiers = np.array([tier for _, _, tier in rows], np.uint8)
    want = [0] * 64
    for key, held, tier in rows:
        if held:
            want[bucket_of(key)] ^= claim_hash(9, key[:16], held, tier)
    assert native.claim_digests(9, keys, shards, tiers).tolist() == want
    assert native.claim_buckets(keys).tolist() == [bucket_of(key) for key, _, _ in rows]


def test_what_a_caller_gets_wrong() -> None:
    table = native.ClaimTable(10, 1)
    one, word, tier = array([KEYS[0]]), np.ones(1, np.uint64), np.ones(1, np.uint8)
    for call in (
        lambda: table.apply(0, 0, one, word, tier),
        lambda: table.drop_node(3),
        lambda: table.digests(1 << 20),
        lambda: native.homes_of(np.zeros((2, 17), np.uint8), word),
        lambda: native.node_word(b"short"),
        lambda: native.ClaimTable(0, 1),
    ):
        with pytest.raises(ValueError):
            call()
    node = table.add_node()
    with pytest.raises(ValueError, match="tiers"):
        table.apply(node, 0, one, word, np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="one a key"):
        table.apply(node, 0, one, np.ones(2, np.uint64), tier)
