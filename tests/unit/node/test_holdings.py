"""The smallest keys of a node, however it is cut into steps: none missing below the limit, each once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvstore.node import holdings


class Core:
    """Slots in an order of their own, a few a step; some blocks are met twice, since they moved meanwhile."""

    def __init__(self, keys: np.ndarray, handles: np.ndarray, step: int) -> None:
        self._keys, self._handles, self._step = keys, handles, step

    def scan_held(self, after: int, most: int, ns: int = -1) -> tuple[Any, ...]:
        until = min(after + self._step, len(self._keys))
        chosen = np.arange(after, until)
        chosen = chosen[(self._handles[chosen] == ns) | (ns == -1)]
        shards = np.ones(len(chosen), np.uint64)
        tiers = np.ones(len(chosen), np.uint8)
        nothing_more = until == len(self._keys)
        return 0 if nothing_more else until, self._keys[chosen], self._handles[chosen], shards, tiers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [1, 10, 99, 100, 1000])
async def test_none_is_missing_below_the_limit(seed: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.integers(256, size=(100, 32), dtype=np.uint8)
    keys[:50, :8] = keys[50:, :8]  # heads alike, keys not
    order = np.concatenate([rng.permutation(100), rng.integers(100, size=7)])
    handles = (keys[:, 31] % 3).astype(np.uint32)
    core = Core(keys[order], handles[order], 9)
    held = await holdings.least_keys(core, most)  # type: ignore[arg-type]
    told = [bytes(key) for key in held.keys]
    assert len(told) <= most and told == sorted(set(told))
    expected = {bytes(key[:16]): int(ns) for key, ns in zip(keys, handles, strict=True)}
    whole = [key for key in sorted(expected) if not held.below or int.from_bytes(key[:8], "big") < held.below]
    assert told == whole and (held.below == 0) == (most >= 100)
    assert [list(held.blocks)[place] for place in held.places] == [expected[key] for key in told]
    assert held.shards.tolist() == [1] * len(told)
    assert len(told) >= most - 1 or most > 100  # heads that are alike go together
    only = await holdings.least_keys(core, 1000, 2)  # type: ignore[arg-type]
    assert {bytes(key) for key in only.keys} == {key for key, ns in expected.items() if ns == 2}
    assert set(only.blocks) == {2}


async def test_what_cannot_be_among_the_smallest_is_not_kept_for_a_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many blocks that is nearly all: to sort them in turns took longer than an operator waits for a node."""
    keys = np.random.default_rng(0).integers(256, size=(20_000, 32), dtype=np.uint8)
    core, sorts, smallest = Core(keys, np.zeros(20_000, np.uint32), 100), [], holdings.smallest

    def counted(keys: Any, most: int, below: int) -> Any:
        sorts.append(len(keys))
        return smallest(keys, most, below)

    monkeypatch.setattr(holdings, "smallest", counted)
    assert len((await holdings.least_keys(core, 100)).keys) == 100  # type: ignore[arg-type]
    assert len(sorts) < 20, "and not 200 times"


async def test_a_node_that_holds_nothing() -> None:
    core = Core(np.zeros((0, 32), np.uint8), np.zeros(0, np.uint32), 9)
    held = await holdings.least_keys(core, 10)  # type: ignore[arg-type]
    assert (len(held.keys), len(held.blocks), held.below) == (0, 0, 0)
