"""Real nodes and one hot chain: who is asked by too many names others, and who keeps asking gets a copy of his own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from kvstore import Client, Namespace
from kvstore.client.journeys import Ended
from kvstore.node.far import PASS_OVER_S
from tests.integration.nodes import SIZE, blocks_of, eventually, layout, tokens
from tests.integration.test_cluster import Cluster, metric, running
from tests.integration.test_far import got, quiet, whole
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


def comes_here(cluster: Cluster, i: int, ns: Namespace, chain: np.ndarray, given_up: float) -> None:
    """A copy that was begun. One that did not come, of a holder that was late, is counted; the next get begins it.
    given_up: how many had been before.
    """

    def is_here() -> bool:
        nonlocal given_up
        here = ns.lookup(chain).tiers.tolist() == [1] * len(chain)
        if not here and (count := unwanted(cluster, i)) > given_up:
            given_up = count
            got(ns, chain)
        return here

    eventually(is_here)


def unwanted(cluster: Cluster, i: int) -> float:
    return metric(cluster.nodes[i], "kvstore_far_unwanted_total")


def passed_over(cluster: Cluster, i: int) -> float:
    return metric(cluster.nodes[i], "kvstore_far_passed_over_total")


def test_the_second_get_of_a_family_brings_a_copy(four: Cluster) -> None:
    with At(four, 0, "second") as here, At(four, 1, "second") as there:
        chain = here.chain(tokens(BLOCKS, 1))
        here.put(chain, blocks_of(chain))
        found_within(there, chain, BLOCKS)
        before, given_up = wanted(four, 1), unwanted(four, 1)
        assert set(whole(there, chain).tiers.tolist()) == {FAR_MEMORY}
        time.sleep(0.3)
        assert found_within(there, chain, BLOCKS).tiers.tolist() == [FAR_MEMORY] * BLOCKS and wanted(four, 1) == before
        # Another prompt of the family counts, and brings what it asked for.
        branch = np.concatenate((chain[:8], here.chain(tokens(4, 2), parent=chain[7])))
        here.put(branch, blocks_of(branch))
        found_within(there, branch, BLOCKS)
        whole(there, branch)
        comes_here(four, 1, there, branch, given_up)
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
                found_within(there, chain, BLOCKS)
    expected, start = blocks_of(chain), threading.Barrier(3 * CLIENTS)

    def fetch(i: int) -> int:
        with Client(four.nodes[i].address) as client:
            ns = client.namespace(layout("crowd"))
            into = np.zeros((BLOCKS, SIZE), np.uint8)
            start.wait(20)
            least = BLOCKS
            rounds, late = 0, before_late[i]
            while rounds < ROUNDS:
                into[:] = 0
                told = ns.get(chain, into, deadline_s=10)
                assert np.array_equal(into[: told.blocks], expected[: told.blocks])
                assert told.blocks == BLOCKS or told.ended is Ended.MISS
                if told.blocks < BLOCKS and passed_over(four, i) > late and rounds < ROUNDS - 1:
                    # Not busy but late, on a machine that is: this node does not ask that holder for a while.
                    time.sleep(PASS_OVER_S)
                else:
                    least = min(least, told.blocks)
                rounds += 1
            return least

    before_late, given_up = [passed_over(four, i) for i in range(4)], [unwanted(four, i) for i in range(4)]
    before = [metric(node, "kvstore_far_busy_total") for node in four.nodes]
    with ThreadPoolExecutor(3 * CLIENTS) as pool:
        assert list(pool.map(fetch, [1, 2, 3] * CLIENTS)) == [BLOCKS] * 3 * CLIENTS
    assert sum(metric(node, "kvstore_far_busy_total") for node in four.nodes) > sum(before)
    for i in range(1, 4):
        with At(four, i, "crowd") as there:
            comes_here(four, i, there, chain, given_up[i])
    quiet(four.nodes[0])


def test_no_window_no_copies(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("never")
    never = Cluster(folder, 2, "", *sets("cluster.replica_window_s=0"))
    with running(never), At(never, 0, "never") as here, At(never, 1, "never") as there:
        chain = here.chain(tokens(4, 1))
        here.put(chain, blocks_of(chain))
        found_within(there, chain, 4)
        for _ in range(4):
            assert set(whole(there, chain).tiers.tolist()) == {FAR_MEMORY}
        time.sleep(0.3)
        assert found_within(there, chain, 4).tiers.tolist() == [FAR_MEMORY] * 4
