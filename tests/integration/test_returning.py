"""Real nodes that end and come back, one after the other: what each held is found again, from everywhere."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from kvstore import Client
from tests.integration.nodes import SIZE, blocks_of, eventually, layout, tokens
from tests.integration.patience import WAITS_S
from tests.integration.test_cluster import Cluster, running

SETTLE_MS = 300
BLOCKS = 10
NODES = 3


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    sets = (f"cluster.settle_ms={SETTLE_MS}", "cluster.grace_ms=1000")
    with running(Cluster(tmp_path_factory.mktemp("turn"), NODES, "", *sets)) as cluster:
        yield cluster


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_restarting_every_node_in_turn_loses_no_block(cluster: Cluster, how: str) -> None:
    """Each holds blocks that no other has."""
    chains = []
    for i in range(NODES):
        with Client(cluster.nodes[i].address) as client:
            ns = client.namespace(layout(f"in turn, {how}"))
            chains.append(ns.chain(tokens(BLOCKS, i)))
            assert ns.put(chains[i], blocks_of(chains[i])).stored == BLOCKS
    for node in cluster.nodes:
        getattr(node, how)()
        node.start()
        cluster.meet()
        check(cluster, how, chains)


def check(cluster: Cluster, how: str, chains: list[np.ndarray]) -> None:
    """Every chain at every node, byte for byte. A lookup first: a get that comes too early is a miss."""
    for node in cluster.nodes:
        with Client(node.address) as client:
            ns = client.namespace(layout(f"in turn, {how}"))
            for chain in chains:
                eventually(lambda chain=chain, ns=ns: ns.lookup(chain).blocks == BLOCKS)
                into = np.zeros((BLOCKS, SIZE), np.uint8)
                until = time.monotonic() + WAITS_S
                while ns.get(chain, into).blocks < BLOCKS:  # of its holder's former life they may still be told
                    assert time.monotonic() < until
                assert np.array_equal(into, blocks_of(chain))
