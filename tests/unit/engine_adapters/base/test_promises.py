"""Promises: a boundary that holds in every group, held before it is told, bounded, and given back once.

The store here is the twin that the models use: a dict that forgets, asked by `find` as it asks a namespace.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest

from engine_adapters.base.promises import Budget, Crowded, Finding, find, needed, needs_of
from engine_adapters.base.workers import Workers
from kvstore.errors import Rejected, Unavailable
from kvstore.layout import CacheGroup, GroupKind, KVLayout, Need, NeedKind

BLOCK = 16
SIZE = 8192


def layout(*, ranks: int = 1, window: int = 0) -> KVLayout:
    groups = [CacheGroup(name="full", kind=GroupKind.FULL, layer_bytes=(SIZE,), kv_heads=2, head_dim=8)]
    if window:
        groups.append(
            CacheGroup(
                name="near", kind=GroupKind.WINDOW, layer_bytes=(SIZE,), kv_heads=2, head_dim=8, window_tokens=window
            )
        )
    return KVLayout(
        engine="e",
        model="m",
        revision="r",
        dtype="float32",
        content_format="c",
        block_tokens=BLOCK,
        groups=tuple(groups),
        tensor_parallel=ranks,
    )


@dataclass
class Answer:
    blocks: int
    tiers: np.ndarray


@dataclass
class Hold:
    store: Store
    blocks: int
    tiers: np.ndarray
    expires_s: float = math.inf
    open: bool = True

    def close(self) -> None:
        if self.open:
            self.open = False
            self.store.held -= self.blocks


@dataclass
class Store:
    """shards: of each, the blocks that are there (by their place in the one chain there is), and the tier."""

    shards: list[dict[int, int]]
    lost: dict[int, set[int]] = field(default_factory=dict)  # gone between being found and being held
    held: int = 0
    lookups: int = 0
    prefetched: int = 0

    @property
    def shard_bytes(self) -> tuple[int, ...]:
        return (SIZE,) * len(self.shards)

    def lookup(self, chain: np.ndarray, needs: tuple[Need, ...], *, deadline_s: float) -> Answer:
        assert deadline_s > 0
        self.lookups += 1
        for end in range(len(chain), 0, -1):
            if all(b in self.shards[n.shard] for n in needs for b in range(needed(n, 0, end), end)):
                tiers = [max(s.get(b, 0) for s in self.shards) for b in range(end)]
                return Answer(end, np.array(tiers, np.uint8))
        return Answer(0, np.empty(0, np.uint8))

    def hold(self, chain: np.ndarray, *, shard: int, position: int, wait_s: float, deadline_s: float) -> Hold:
        assert 0 < wait_s <= deadline_s
        for block in self.lost.pop(shard, set()):
            self.shards[shard].pop(block, None)
        run = 0
        while run < len(chain) and position + run in self.shards[shard]:
            run += 1
        self.held += run
        return Hold(self, run, np.array([self.shards[shard][position + i] for i in range(run)], np.uint8))

    def prefetch(self, chain: np.ndarray, *, deadline_s: float) -> None:
        self.prefetched += len(chain)


def chain(blocks: int) -> np.ndarray:
    return np.arange(blocks * 32, dtype=np.uint8).reshape(blocks, 32)


def soon() -> float:
    return time.monotonic() + 5


def full(blocks: int, tier: int = 1) -> dict[int, int]:
    return dict.fromkeys(range(blocks), tier)


def test_what_is_there_is_held_and_given_back() -> None:
    store, budget = Store([full(6)]), Budget(1 << 30)
    promise = find(store, chain(8), 2, layout(), budget, soon())  # type: ignore[arg-type]
    assert (promise.first, promise.end, store.held) == (2, 6, 4)
    assert not budget.take((1 << 30) - 4 * SIZE + 1)
    promise.close()
    promise.close()
    assert store.held == 0
    assert budget.take(1 << 30)


def test_what_the_store_has_of_less_than_was_asked_for_is_told_and_not_held() -> None:
    """An engine that has more itself puts the rest: what it has is not what the store has."""
    store = Store([full(3)])
    promise = find(store, chain(8), 5, layout(), Budget(1 << 30), soon())  # type: ignore[arg-type]
    assert (promise.first, promise.end, promise.stored, store.held) == (5, 5, 3, 0)
    assert find(Store([full(6)]), chain(8), 5, layout(), Budget(1 << 30), soon()).stored == 6  # type: ignore[arg-type]
    assert find(Store([{}]), chain(8), 5, layout(), Budget(1 << 30), soon()).stored == 0  # type: ignore[arg-type]


def test_of_a_window_only_the_last_blocks_are_held() -> None:
    store = Store([full(6, 1), {4: 2, 5: 1}])
    promise = find(store, chain(6), 0, layout(window=2 * BLOCK + 1), Budget(1 << 30), soon())  # type: ignore[arg-type]
    assert (promise.end, store.held) == (6, 6 + 2)
    assert promise.tiers.tolist() == [1, 1, 1, 1, 2, 1], "the slowest shard's tier"


def test_every_ranks_shard_is_held() -> None:
    store = Store([full(3), full(3)])
    promise = find(store, chain(3), 0, layout(ranks=2), Budget(1 << 30), soon())  # type: ignore[arg-type]
    assert (promise.end, store.held) == (3, 6)


def test_a_block_lost_before_it_was_held_shortens_the_promise() -> None:
    store = Store([full(6), full(6)], lost={1: {4}})
    promise = find(store, chain(6), 0, layout(ranks=2), Budget(1 << 30), soon())  # type: ignore[arg-type]
    assert (promise.end, store.held, store.lookups) == (4, 8, 2)


def test_a_window_lost_before_it_was_held_moves_the_boundary() -> None:
    """The window before 6 has gone; before 3 there is another."""
    store = Store([full(6), {1: 1, 2: 1, 4: 1, 5: 1}], lost={1: {5}})
    promise = find(store, chain(6), 0, layout(window=2 * BLOCK + 1), Budget(1 << 30), soon())  # type: ignore[arg-type]
    assert (promise.end, store.held) == (3, 3 + 2)


def test_a_promise_that_can_never_fit_is_shorter_and_one_that_must_wait_says_so() -> None:
    store, budget = Store([full(6)]), Budget(4 * SIZE)
    promise = find(store, chain(6), 0, layout(), budget, soon())  # type: ignore[arg-type]
    assert promise.end == 4
    with pytest.raises(Crowded):
        find(store, chain(2), 0, layout(), budget, soon())  # type: ignore[arg-type]
    assert store.held == 4, "nothing is held by one that waits"
    promise.close()
    assert find(store, chain(2), 0, layout(), budget, soon()).end == 2  # type: ignore[arg-type]


def test_an_error_in_the_middle_gives_everything_back() -> None:
    store, budget = Store([full(3), full(3)]), Budget(1 << 30)
    holds = store.hold

    def fails(*given: object, shard: int, **named: object) -> Hold:
        if shard == 1:
            raise Rejected("no")
        return holds(*given, shard=shard, **named)  # type: ignore[arg-type]

    store.hold = fails  # type: ignore[method-assign, assignment]
    with pytest.raises(Rejected):
        find(store, chain(3), 0, layout(ranks=2), budget, soon())  # type: ignore[arg-type]
    assert store.held == 0
    assert budget.take(1 << 30)


def test_needs_are_each_shards_once() -> None:
    assert [need.shard for need in needs_of(layout(ranks=2, window=33))] == [0, 1, 2, 3]
    assert needed(Need(0, NeedKind.LAST, 2), 5, 6) == 5
    assert needed(Need(0, NeedKind.LAST, 2), 1, 6) == 4
    assert needed(Need(0), 1, 6) == 1


@dataclass
class LinkTwin:
    store: Store | None
    layout: KVLayout = field(default_factory=layout)
    errors: list[Exception] = field(default_factory=list)

    def namespace(self) -> Store | None:
        return self.store

    def failed(self, error: Exception) -> None:
        self.errors.append(error)

    def worked(self) -> None: ...


@pytest.fixture
def workers() -> Workers:
    return Workers("test", 2, 8)


def wait(finding: Finding) -> None:
    until = soon()
    while not finding.done and time.monotonic() < until:
        time.sleep(0.001)
    assert finding.done


def finding(link: LinkTwin, *, budget: Budget | None = None, eager: bool = False) -> Finding:
    return Finding(link, budget or Budget(1 << 30), lambda _: chain(4), 0, soon(), eager=eager)  # type: ignore[arg-type]


def run(workers: Workers, link: LinkTwin, *, budget: Budget | None = None, eager: bool = False) -> Finding:
    found = finding(link, budget=budget, eager=eager)
    assert workers.submit(found.run)
    wait(found)
    return found


def test_a_finding_that_nobody_waits_for_gives_back_what_it_comes_to_hold(workers: Workers) -> None:
    store = Store([full(4)])
    gate, holds = threading.Event(), store.hold

    def slowly(*given: object, **named: object) -> Hold:
        gate.wait(5)
        return holds(*given, **named)  # type: ignore[arg-type]

    store.hold = slowly  # type: ignore[method-assign, assignment]
    left = finding(LinkTwin(store))
    assert workers.submit(left.run)
    assert left.holds
    left.leave()
    gate.set()
    wait(left)
    assert workers.close(5)
    assert store.held == 0


def test_keys_are_made_where_waiting_is_allowed(workers: Workers) -> None:
    store, made_in = Store([full(4)]), []

    def keys(namespace: object) -> np.ndarray:
        assert namespace is store
        made_in.append(threading.get_ident())
        return chain(3)

    found = Finding(LinkTwin(store), Budget(1 << 30), keys, 0, soon())  # type: ignore[arg-type]
    assert workers.submit(found.run)
    wait(found)
    assert found.promise.end == 3
    assert made_in
    assert made_in[0] != threading.get_ident()


def test_an_eager_finding_has_lower_tiers_brought_up_and_holds_nothing(workers: Workers) -> None:
    store = Store([full(4, tier=2)])
    below = run(workers, LinkTwin(store), eager=True)
    assert (below.again, store.prefetched, store.held, below.promise.blocks) == (True, 4, 0, 0)
    assert not below.holds
    store.shards = [full(4)]
    there = run(workers, LinkTwin(store), eager=True)
    assert (there.again, store.held, store.lookups, there.holds) == (False, 4, 2, True)


def test_a_store_that_is_away_is_a_promise_of_nothing(workers: Workers) -> None:
    assert run(workers, LinkTwin(None)).promise.blocks == 0

    store, link = Store([full(4)]), LinkTwin(None)
    link.store = store

    def gone(*given: object, **named: object) -> Answer:
        raise Unavailable("gone")

    store.lookup = gone  # type: ignore[method-assign, assignment]
    assert run(workers, link).promise.blocks == 0
    assert isinstance(link.errors[0], Unavailable)


def test_a_crowded_finding_says_so(workers: Workers) -> None:
    budget = Budget(4 * SIZE)
    assert budget.take(2 * SIZE)
    assert run(workers, LinkTwin(Store([full(4)])), budget=budget).crowded


def test_one_ranks_needs_alone_are_held_where_they_are_all_that_is_asked() -> None:
    two = layout(ranks=2)
    store = Store([full(6), full(2)])
    promise = find(store, chain(6), 0, two, Budget(1 << 30), soon(), needs=two.needs(0))  # type: ignore[arg-type]
    assert (promise.end, store.held) == (6, 6)
    both = find(store, chain(6), 0, two, Budget(1 << 30), soon())  # type: ignore[arg-type]
    assert (both.end, store.held) == (2, 6 + 4)


def test_a_chain_from_the_middle_is_held_at_its_place() -> None:
    asked: list[int] = []

    class Middle(Store):
        def hold(self, chain: np.ndarray, *, shard: int, position: int, wait_s: float, deadline_s: float) -> Hold:
            asked.append(position)
            return super().hold(chain, shard=shard, position=position - 40, wait_s=wait_s, deadline_s=deadline_s)

    store = Middle([full(6), full(6)])
    promise = find(store, chain(6), 0, layout(window=17), Budget(1 << 30), soon(), position=40)  # type: ignore[arg-type]
    assert (promise.end, asked) == (6, [40, 45])  # of the window its last block alone
