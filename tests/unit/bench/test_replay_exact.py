"""The replay held against the slowest way to say the same: every choice tried, every leaf looked at. The published
trace is tests/traces.
"""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from bench.replay import Trace, belady, replay


def small(seed: int, requests: int, fan: int = 2, depth: int = 4) -> Trace:
    """Chains through a tree: each asked for down to some depth."""
    rng = random.Random(seed)
    numbers: dict[tuple[int, ...], int] = {}
    chains = []
    for _ in range(requests):
        path: tuple[int, ...] = ()
        chain = []
        for _ in range(rng.randrange(1, depth + 1)):
            path = (*path, rng.randrange(fan))
            chain.append(numbers.setdefault(path, len(numbers)))
        chains.append(np.array(chain, np.uint32))
    return Trace(chains, len(numbers))


def leading(chain: list[int], here: set[int] | frozenset[int]) -> int:
    return next((i for i, block in enumerate(chain) if block not in here), len(chain))


def best_by_trying_everything(of: Trace, capacity: int) -> float:
    """After each request any of what is here or was asked for may be kept."""
    reached = {frozenset[int](): 0}
    for request in of.requests:
        chain = request.tolist()
        then: dict[frozenset[int], int] = {}
        for here, hits in reached.items():
            now = hits + leading(chain, here)
            could = sorted(here | set(chain))
            for kept in combinations(could, min(capacity, len(could))):
                then[frozenset(kept)] = max(then.get(frozenset(kept), 0), now)
        reached = then
    return max(reached.values()) / of.references


def leaf_lru_by_looking_at_every_leaf(of: Trace, capacity: int) -> float:
    parent = {block: above for chain in of.requests for above, block in zip([-1, *chain], chain, strict=False)}
    touched: dict[int, int] = {}
    hits = 0
    for at, request in enumerate(of.requests):
        chain = request.tolist()
        hits += leading(chain, set(touched))
        touched |= {block: at for block in chain if block in touched}
        for block in chain:
            if block in touched:
                continue
            if len(touched) == capacity:
                parents = {parent[each] for each in touched}
                leaves = [each for each in touched if each not in parents and each not in chain]
                if not leaves:
                    break
                del touched[min(leaves, key=lambda each: touched[each])]
            touched[block] = at
    return hits / of.references


@pytest.mark.parametrize("seed", range(30))
def test_the_optimum_is_what_trying_everything_finds(seed: int) -> None:
    of = small(seed, requests=9, depth=3)
    for capacity in (1, 2, 3, 5):
        assert belady(of, capacity) == best_by_trying_everything(of, capacity)


@pytest.mark.parametrize("seed", range(30))
def test_leaf_lru_is_exactly_the_order_that_looking_at_every_leaf_gives(seed: int) -> None:
    of = small(seed, requests=300, fan=3, depth=5)
    for capacity in (5, 17, 60, 200):
        assert replay(of, "leaf_lru", capacity) == leaf_lru_by_looking_at_every_leaf(of, capacity)
