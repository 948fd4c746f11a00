"""Real nodes and one hot chain: who is asked by too many names others, and who keeps asking gets a copy of his own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvstore import Client
from kvstore.client.journeys import Ended
from tests.integration.nodes import SIZE, blocks_of, eventually, layout, tokens
from tests.integration.test_cluster import Cluster, metric, running
from tests.integration.test_far import got, quiet
from tests.integration.test_locating import FAR_MEMORY, At, found_within
from tests.integration.test_replicas import SETTLE_MS, sets

BLOCKS = 12
CLIENTS = 3  # of each node
ROUNDS = 4


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(Cluster(tmp_path_factory.mktemp("four"), 4, "", *sets("cluster.leases_per_block_max=1"))) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


def wanted(cluster: Cluster, i: int) -> float:
    return metric(cluster.nodes[i], "kvstore_far_wanted_total")


def test_the_second_get_of_a_family_brings_a_copy(four: Cluster) -> None:
    with At(four, 0, "second") as here, At(four, 1, "second") as there:
        chain = here.chain(tokens(BLOCKS, 1))
        here.put(chain, blocks_of(chain))
        found_within(there, chain, BLOCKS, 3)
        before = wanted(four, 1)
        assert set(got(there, chain).tiers.tolist()) == {FAR_MEMORY}
        time.sleep(0.3)
        assert there.lookup(chain).tiers.tolist() == [FAR_MEMORY] * BLOCKS and wanted(four, 1) == before
        # Another prompt of the family counts, and brings what it asked for.
        branch = np.concatenate((chain[:8], here.chain(tokens(4, 2), parent=chain[7])))
        here.put(branch, blocks_of(branch))
        found_within(there, branch, BLOCKS, 3)
        assert got(there, branch).blocks == BLOCKS
        eventually(lambda: there.lookup(branch).tiers.tolist() == [1] * BLOCKS)
        assert wanted(four, 1) == before + 1
        assert got(there, branch).tiers.tolist() == [1] * BLOCKS
        quiet(four.nodes[0])


def test_a_crowd_is_sent_to_those_that_have_it_too(four: Cluster) -> None:
    """Nobody gets a wrong byte or less than all, and in the end each node has its own."""
    with At(four, 0, "crowd") as here:
        chain = here.chain(tokens(BLOCKS, 3))
        here.put(chain, blocks_of(chain))
        for i in range(1, 4):
            with At(four, i, "crowd") as there:
                found_within(there, chain, BLOCKS, 3)
    expected, start = blocks_of(chain), threading.Barrier(3 * CLIENTS)

    def fetch(i: int) -> int:
        with Client(four.nodes[i].address) as client:
            ns = client.namespace(layout("crowd"))
            into = np.zeros((BLOCKS, SIZE), np.uint8)
            start.wait(20)
            least = BLOCKS
            for _ in range(ROUNDS):
                into[:] = 0
                told = ns.get(chain, into, deadline_s=10)
                assert np.array_equal(into[: told.blocks], expected[: told.blocks])
                assert told.blocks == BLOCKS or told.ended is Ended.MISS
                least = min(least, told.blocks)
            return least

    before = [metric(node, "kvstore_far_busy_total") for node in four.nodes]
    with ThreadPoolExecutor(3 * CLIENTS) as pool:
        assert list(pool.map(fetch, [1, 2, 3] * CLIENTS)) == [BLOCKS] * 3 * CLIENTS
    assert sum(metric(node, "kvstore_far_busy_total") for node in four.nodes) > sum(before)
    for i in range(1, 4):
        with At(four, i, "crowd") as there:
            eventually(lambda there=there: there.lookup(chain).tiers.tolist() == [1] * BLOCKS)
    quiet(four.nodes[0])


def test_no_window_no_copies(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("never")
    never = Cluster(folder, 2, "", *sets("cluster.replica_window_s=0"))
    with running(never), At(never, 0, "never") as here, At(never, 1, "never") as there:
        chain = here.chain(tokens(4, 1))
        here.put(chain, blocks_of(chain))
        found_within(there, chain, 4, 3)
        for _ in range(4):
            assert set(got(there, chain).tiers.tolist()) == {FAR_MEMORY}
        time.sleep(0.3)
        assert there.lookup(chain).tiers.tolist() == [FAR_MEMORY] * 4
