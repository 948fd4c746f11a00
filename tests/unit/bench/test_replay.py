"""The replay of traces: the bound is a bound, the order is the native one, hints arrive."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.hit_rate import measure, rows
from bench.replay import Trace, belady, infinite, load, replay, session_ends, synthetic


def trace(*requests: list[int]) -> Trace:
    return Trace([np.array(r, np.uint32) for r in requests], 1 + max(max(r) for r in requests))


def lru_by_hand(of: Trace, capacity: int) -> float:
    """Leaf-first LRU as one sort: by last request, deepest first; who is in the request stays."""
    last: dict[int, tuple[int, int]] = {}
    hits = 0
    for at, request in enumerate(of.requests):
        chain = request.tolist()
        leading = 0
        while leading < len(chain) and chain[leading] in last:
            leading += 1
        hits += leading
        for depth, block in enumerate(chain):
            last[block] = (at, -depth)
        while len(last) > capacity:
            del last[min(last, key=last.__getitem__)]
    return hits / of.references


def test_a_small_trace_by_hand() -> None:
    of = trace([0, 1, 2], [3, 4], [0, 1, 5], [3, 4], [0, 1, 2])
    assert replay(of, "leaf_lru", 5) == lru_by_hand(of, 5) == 6 / 13  # 2 made way for 5
    assert belady(of, 5) == pytest.approx(7 / 13)
    assert infinite(of) == pytest.approx(belady(of, 100)) == pytest.approx(7 / 13)
    assert replay(of, "leaf_lru", 1) == 0.0


@pytest.mark.parametrize("capacity", [40, 150, 600])
def test_leaf_lru_is_the_native_order(capacity: int) -> None:
    of = synthetic(3, 150)
    assert replay(of, "leaf_lru", capacity) == pytest.approx(lru_by_hand(of, capacity), abs=0.002)


def test_nobody_beats_the_optimum_and_hints_help() -> None:
    of = synthetic(1, 300)
    table = measure(of, ["leaf_lru", "s3_fifo"], [60, 200, 700], hints=True)
    best = table.pop("optimum (Belady)")
    for shares in table.values():
        assert all(share <= best[c] <= infinite(of) for c, share in shares.items())
    assert table["leaf_lru + ends"][200] > table["leaf_lru"][200] + 0.01
    assert table["leaf_lru + ends, returns"][200] > table["leaf_lru"][200] + 0.01
    assert table["s3_fifo + ends, returns"][200] != table["s3_fifo"][200]


def test_session_ends_are_turned_round_as_often_as_asked() -> None:
    of = synthetic(2, 200)
    right = session_ends(of)
    wrong = session_ends(of, 0.2, seed=5)
    assert 0.12 < np.mean(np.array(right) != np.array(wrong)) < 0.28
    assert session_ends(trace([0, 1], [0, 1, 2], [0, 3])) == [False, True, True]


def test_published_traces_load(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps({"timestamp": 0, "hash_ids": ids}) + "\n" for ids in ([7, 9], [7, 9, 46])))
    loaded = load(path)
    assert [r.tolist() for r in loaded.requests] == [[0, 1], [0, 1, 2]]
    path.write_text('{"hash_ids": ["x"]}\n')
    with pytest.raises(ValueError, match=r"trace.jsonl:1: hash_ids"):
        load(path)


def test_rows_have_the_optimum_for_a_limit() -> None:
    for row in rows(quick=True):
        assert row.limit is not None and row.ours <= row.limit
