"""Clients without a node of their own: several addresses, one home a prompt, and the next one while it is away."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import numpy as np
import pytest

from kvstore import AsyncClient, Client, Namespace
from kvstore.errors import Unavailable
from tests.integration.nodes import SIZE, blocks_of, layout, tokens
from tests.integration.patience import SLOW_S
from tests.integration.test_cluster import Cluster, running
from tests.integration.test_locating import At

BLOCKS = 6


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(Cluster(tmp_path_factory.mktemp("spread"), 3, "", "cluster.settle_ms=300")) as cluster:
        yield cluster


def all_of(cluster: Cluster, *, backwards: bool = False) -> str:
    return ",".join([cluster.at(i) for i in range(3)][:: -1 if backwards else 1])


def homes(cluster: Cluster, model: str, chain: np.ndarray) -> set[int]:
    """Which nodes have all of it in memory."""
    found = set()
    for i, node in enumerate(cluster.nodes):
        if node.process is not None:
            with At(cluster, i, model) as ns:
                told = ns.lookup(chain)
                found |= {i} if told.tiers.tolist() == [1] * len(chain) else set()
    return found


def put(ns: Namespace, chain: np.ndarray) -> None:
    assert ns.put(chain, blocks_of(chain)).rejected == 0


def got(ns: Namespace, chain: np.ndarray) -> list[int]:
    into = np.zeros((len(chain), SIZE), np.uint8)
    told = ns.get(chain, into, deadline_s=5)
    assert np.array_equal(into[: told.blocks], blocks_of(chain[: told.blocks]))
    return told.tiers.tolist()


def test_one_home_a_prompt_whoever_asks(three: Cluster) -> None:
    with Client(all_of(three)) as one, Client(all_of(three, backwards=True)) as other:
        ours, theirs = one.namespace(layout("spread")), other.namespace(layout("spread"))
        chains = [ours.chain(tokens(BLOCKS, seed)) for seed in range(8)]
        for chain in chains:
            put(ours, chain)
            assert theirs.lookup(chain).tiers.tolist() == [1] * BLOCKS
            assert got(theirs, chain) == [1] * BLOCKS, "from where it was put, and not from afar"
            assert ours.put(chain, blocks_of(chain), replicas=2).replicas == 1, "one machine, and it has them"
            assert theirs.put(chain, blocks_of(chain)).held == BLOCKS
        found = [homes(three, "spread", chain) for chain in chains]
        assert all(len(one) == 1 for one in found) and len(set.union(*found)) > 1
        with ours.hold(chains[0]) as held:
            assert held.blocks == BLOCKS
        assert ours.prefetch(chains[0]) == BLOCKS


def test_the_next_one_while_its_node_is_dead(three: Cluster) -> None:
    with Client(all_of(three)) as client:
        ns = client.namespace(layout("dies"))
        chain = ns.chain(tokens(BLOCKS, 1))
        put(ns, chain)
        (home,) = homes(three, "dies", chain)
        three.nodes[home].kill()
        try:
            began = time.monotonic()
            assert got(ns, chain) == []
            put(ns, chain)
            assert got(ns, chain) == [1] * BLOCKS
            assert time.monotonic() - began < 1 + SLOW_S  # and not a deadline, which is 5 s
            assert len(homes(three, "dies", chain)) == 1
        finally:
            three.nodes[home].start()
            three.meet()


def test_one_that_stands_still_costs_one_deadline(three: Cluster) -> None:
    with Client(all_of(three)) as client:
        ns = client.namespace(layout("still"))
        chain = ns.chain(tokens(BLOCKS, 1))
        put(ns, chain)
        (home,) = homes(three, "still", chain)
        three.nodes[home].signal(signal.SIGSTOP)
        try:
            into = np.zeros((BLOCKS, SIZE), np.uint8)
            began = time.monotonic()
            assert ns.get(chain, into, deadline_s=0.5).blocks == 0
            assert time.monotonic() - began < 0.5 + SLOW_S
            assert ns.put(chain, blocks_of(chain), deadline_s=3).stored == BLOCKS
            assert got(ns, chain) == [1] * BLOCKS
        finally:
            three.nodes[home].signal(signal.SIGCONT)
            three.meet()


async def test_the_async_face(three: Cluster) -> None:
    with Client(all_of(three)) as client:
        ns = client.namespace(layout("aio"))
        chains = [ns.chain(tokens(BLOCKS, seed)) for seed in range(4)]
        for chain in chains:
            put(ns, chain)
        async with AsyncClient(all_of(three)) as other:
            there = await other.namespace(layout("aio"))
            into = np.zeros((BLOCKS, SIZE), np.uint8)
            for chain in chains:
                assert (await there.get(chain, into)).tiers.tolist() == [1] * BLOCKS
                assert np.array_equal(into, blocks_of(chain))
            (home,) = homes(three, "aio", chains[0])
            three.nodes[home].kill()
            try:
                assert (await there.put(chains[0], blocks_of(chains[0]))).stored == BLOCKS
                assert (await there.get(chains[0], into)).tiers.tolist() == [1] * BLOCKS
                assert got(ns, chains[0]) == [1] * BLOCKS, "the same next one"
            finally:
                three.nodes[home].start()
                three.meet()
            await there.clear()
            assert (await there.put(there.chain(tokens(2, 9)), blocks_of(there.chain(tokens(2, 9))))).stored == 2


def test_nobody_is_there() -> None:
    with Client("127.0.0.1:1,127.0.0.1:2", deadline_s=2) as client, pytest.raises(Unavailable):
        client.namespace(layout("nobody"))
