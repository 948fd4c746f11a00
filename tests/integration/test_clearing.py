"""Real nodes: what was cleared at one is cleared at all, those among them that were dead or stood still meanwhile."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client, Namespace
from kvstore.errors import KvStoreError
from kvstore.node.clearing import TELL_S
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, right, tokens
from tests.integration.patience import DEAD_S, SLOW_S, in_time
from tests.integration.test_cluster import Cluster, running, told_within
from tests.integration.test_locating import At, found_within

SETTLE_MS = 300
LEARNS_S = 3.0  # of what it has missed, by pings
BLOCKS = 6


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(Cluster(tmp_path_factory.mktemp("clear"), 3, "", f"cluster.settle_ms={SETTLE_MS}")) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


def put_at(ns: Namespace, seed: int) -> np.ndarray:
    chain = ns.chain(tokens(BLOCKS, seed))
    assert ns.put(chain, blocks_of(chain)).stored == BLOCKS
    return chain


def got(ns: Namespace, chain: np.ndarray) -> int:
    """Whatever the chain's generation: how many blocks come, every one of them right."""
    into = np.zeros((len(chain), SIZE), np.uint8)
    blocks = ns.get(chain, into, wait_s=0, deadline_s=5).blocks
    assert np.array_equal(into[:blocks], blocks_of(chain[:blocks]))
    return blocks


def clear(ns: Namespace, generation: int, nodes: int, known: int) -> float:
    """Seconds until it was answered: by so many nodes of those that are known. One that has it not on disk within
    TELL_S, as where its disk stands still for a moment, is told of it by the next pings.
    """
    began = time.monotonic()
    told = ns.clear()
    took = time.monotonic() - began
    assert (told.generation, told.nodes_known) == (generation, known) and told.nodes <= nodes
    if told.nodes < nodes:
        assert took > 0.9 * TELL_S, told
        time.sleep(LEARNS_S)
    return took


def test_a_clear_holds_everywhere_when_it_is_answered(three: Cluster) -> None:
    with At(three, 0, "all") as one, At(three, 1, "all") as two, At(three, 2, "all") as third:
        chains = [put_at(ns, seed) for seed, ns in enumerate((one, two, third))]
        found_within(two, chains[0], BLOCKS)
        clear(two, 1, 3, 3)
        for ns in (one, two, third):
            assert [got(ns, chain) for chain in chains] == [0, 0, 0]
            assert [right(ns, seed, BLOCKS) for seed in range(3)] == [0, 0, 0], "of the new generation"
            assert ns.generation == 1, "opened again by itself"
        chain = put_at(one, 0)
        found_within(third, chain, BLOCKS)
        in_time(lambda: got(third, chain), lambda blocks: blocks == BLOCKS)
        # Whoever has not heard yet that it was cleared means the blocks that are there now.
        with At(three, 0, "all") as late:
            clear(late, 2, 3, 3)
        clear(two, 3, 3, 3)
        assert [got(ns, chain) for ns in (one, two, third)] == [0, 0, 0]


def test_a_namespace_that_a_node_never_opened_is_opened_there_as_cleared(three: Cluster) -> None:
    with At(three, 0, "unknown") as here:
        here.clear()
    with At(three, 2, "unknown") as there:
        assert there.generation == 1


def test_a_node_that_was_dead_serves_nothing_of_before_the_clear(three: Cluster) -> None:
    """Not even to a client that knocks before it has joined. That its memory outlived it, another namespace shows."""
    with At(three, 2, "dead") as there, At(three, 2, "dead, kept") as kept:
        chain, other = put_at(there, 1), put_at(kept, 2)
        with At(three, 0, "dead") as here:
            found_within(here, chain, BLOCKS)
            three.nodes[2].kill()
            clear(here, 1, 2, 3)
            again = put_at(here, 1)
    with At(three, 1, "dead") as third:
        starting = three.nodes[2]
        starting.process = starting.spawn()
        with first_client(starting) as client:
            early = client.namespace(layout("dead"))
            assert early.generation == 1
            assert got(early, chain) == 0 and third.lookup(chain).blocks == 0
        starting.finish_start()
        three.meet()
        with At(three, 2, "dead") as there, At(three, 2, "dead, kept") as kept:
            until = time.monotonic() + 3 * SETTLE_MS / 1e3
            while time.monotonic() < until:
                assert got(there, chain) == got(third, chain) == third.lookup(chain).blocks == 0
            eventually(lambda: right(there, 1, BLOCKS) == BLOCKS)  # what was put since comes from elsewhere
            assert got(kept, other) == BLOCKS and len(again) == BLOCKS


@contextlib.contextmanager
def first_client(node: NodeProcess) -> Iterator[Client]:
    until = time.monotonic() + 30
    while True:
        with contextlib.suppress(KvStoreError):
            client = Client(node.address, deadline_s=10)
            try:
                client.namespace(layout("first of all"))
            except BaseException:
                client.close()
                raise
            break
        assert time.monotonic() < until
        time.sleep(0.005)
    try:
        yield client
    finally:
        client.close()


def test_a_node_that_stood_still_serves_nothing_of_before_the_clear(three: Cluster) -> None:
    with At(three, 2, "still") as there, At(three, 0, "still") as here, At(three, 1, "still") as third:
        chain = put_at(there, 3)
        found_within(here, chain, BLOCKS)
        three.nodes[2].signal(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            try:
                began = time.monotonic()
                assert clear(here, 1, 2, 3) < TELL_S + SLOW_S
                assert [got(ns, chain) for ns in (here, third)] == [0, 0]
                asked = pool.submit(got, there, chain)  # lies at its door when it wakes
                time.sleep(max(0.2, 1.5 - (time.monotonic() - began)))  # less is no pause
            finally:
                three.nodes[2].signal(signal.SIGCONT)
            assert asked.result(10) == 0
        began = time.monotonic()
        while time.monotonic() - began < 2:
            assert got(there, chain) == got(here, chain) == got(third, chain) == 0
        three.meet()
        assert right(there, 3, BLOCKS) == 0 and there.generation == 1
        put_at(there, 3)
        eventually(lambda: right(here, 3, BLOCKS) == BLOCKS)


def test_a_node_that_stood_still_waits_for_others_before_it_serves_its_own_clients(three: Cluster) -> None:
    with At(three, 2, "silent") as there, At(three, 0, "silent") as here:
        chain = put_at(there, 5)
        three.nodes[2].signal(signal.SIGSTOP)
        told_within(three.nodes[0], three.name(2), "dead", DEAD_S)  # else it would find word of the clear when it wakes
        here.clear()
        for node in three.nodes[:2]:
            node.signal(signal.SIGSTOP)
        back = threading.Timer(0.8, lambda: [node.signal(signal.SIGCONT) for node in three.nodes[:2]])
        back.start()
        try:
            three.nodes[2].signal(signal.SIGCONT)
            time.sleep(0.2)  # it has noticed, and nobody answers it
            assert got(there, chain) == 0
        finally:
            back.join()
            three.meet()


def test_a_pause_without_a_clear_costs_clients_a_moment(three: Cluster) -> None:
    with At(three, 1, "pause") as here:
        chain = put_at(here, 4)
        three.nodes[1].signal(signal.SIGSTOP)
        time.sleep(1.2)
        three.nodes[1].signal(signal.SIGCONT)
        for _ in range(30):
            assert got(here, chain) == BLOCKS
            time.sleep(0.02)
        assert here.generation == 0
    three.meet()


def test_clears_at_nodes_that_did_not_know_of_each_other_both_hold(tmp_path: Path) -> None:
    with running(Cluster(tmp_path, 2, "", f"cluster.settle_ms={SETTLE_MS}")) as two:
        with At(two, 0, "both") as here:
            before = put_at(here, 1)
            two.nodes[1].kill()
            clear(here, 1, 1, 2)
            between = put_at(here, 2)
        two.nodes[0].kill()
        two.nodes[1].start()
        with At(two, 1, "both") as there:
            clear(there, 1, 1, 2)
            after = put_at(there, 3)
        two.nodes[0].start()
        two.meet()
        with At(two, 0, "both") as here, At(two, 1, "both") as there:
            assert here.generation == there.generation == 2
            for chain in (before, between, after):
                assert got(here, chain) == got(there, chain) == 0
            new = put_at(here, 2)
            found_within(there, new, BLOCKS)
            clear(here, 3, 2, 2)
        for node in two.nodes:  # and that is what they know when both come back
            node.stop()
        for node in two.nodes:
            node.process = node.spawn()
        for node in two.nodes:
            node.finish_start()
        with At(two, 0, "both") as here:
            assert here.generation == 3 and got(here, new) == 0
