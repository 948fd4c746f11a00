"""What callers say and do reaches the policy that a node was started with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kvstore import Client, Hints, Namespace
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, layout, tokens

MEMORY = "8MiB"
CELLS = (8 << 20) // SIZE
EACH = CELLS // 16


def put(ns: Namespace, seed: int, blocks: int, hints: Hints | None = None) -> np.ndarray:
    chain = ns.chain(tokens(blocks, seed))
    assert ns.put(chain, blocks_of(chain), hints=hints).stored == blocks
    return chain


@pytest.mark.parametrize("ended", [False, True], ids=["nothing said", "the session has ended"])
def test_a_session_that_has_ended_goes_before_older_ones(tmp_path: Path, ended: bool) -> None:
    """The hint moves it about half way down the order: of twelve sessions nine have to go, and it is one of them."""
    with NodeProcess(tmp_path, memory=MEMORY) as node, Client(node.address) as client:
        ns = client.namespace(layout())
        sessions = [put(ns, seed, EACH) for seed in range(11)]
        sessions.append(put(ns, 11, EACH, Hints(session=11, end=ended)))
        put(ns, 12, 13 * EACH)
        whole = [ns.lookup(chain).blocks == EACH for chain in sessions]
        assert whole[:8] == [False] * 8 and whole[9:11] == [True, True]
        assert (whole[8], whole[11]) == (ended, not ended)


@pytest.mark.parametrize(("policy", "stays"), [("leaf_lru", False), ("s3_fifo", True)])
def test_what_is_read_again_outlives_a_scan_under_s3_fifo(tmp_path: Path, policy: str, stays: bool) -> None:
    with NodeProcess(tmp_path, f"memory.policy={policy}", memory=MEMORY) as node, Client(node.address) as client:
        ns = client.namespace(layout())
        again = put(ns, 1, 8)
        into = np.empty((8, SIZE), np.uint8)
        for _ in range(3):
            assert ns.get(again, into).blocks == 8
        for seed in range(2, CELLS // 2):  # each is put and never asked for
            put(ns, seed, 8)
        assert (ns.lookup(again).blocks == 8) is stays
        if stays:
            assert ns.get(again, into).blocks == 8
            assert np.array_equal(into, blocks_of(again))
