"""The replay held against the slowest way to say the same: every choice tried, every leaf looked at. And the published
trace against published figures, where it is at hand (KVSTORE_TRACES, or --traces FOLDER).
"""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from bench.replay import Trace, belady, infinite, load, replay

CONVERSATION = "mooncake_conversation.jsonl"
CAPACITIES = (1_000, 3_000, 10_000, 30_000, 100_000)
# Percent of references that hit, partial last blocks counted, by another simulator of the same rules.
PUBLISHED = {"optimum": (19.07, 29.45, 36.64, 36.64, 36.64), "leaf_lru": (4.45, 6.53, 21.16, 32.57, 36.37)}


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


@pytest.fixture
def conversation(request: pytest.FixtureRequest) -> Trace:
    folder = request.config.getoption("--traces")
    if folder is None:
        pytest.skip(f"no traces: KVSTORE_TRACES or --traces names a folder with {CONVERSATION}")
    path = Path(folder) / CONVERSATION
    if not path.exists():
        pytest.skip(f"no trace: {path} is not there")
    return load(path)


def test_the_published_trace_gives_the_published_figures(conversation: Trace) -> None:
    assert (len(conversation.requests), conversation.references, conversation.unique) == (12_031, 288_500, 182_790)
    assert 100 * infinite(conversation) == pytest.approx(36.64, abs=0.005)
    for i, capacity in enumerate(CAPACITIES):
        assert 100 * belady(conversation, capacity) == pytest.approx(PUBLISHED["optimum"][i], abs=0.5)
        assert 100 * replay(conversation, "leaf_lru", capacity) == pytest.approx(PUBLISHED["leaf_lru"][i], abs=0.5)
