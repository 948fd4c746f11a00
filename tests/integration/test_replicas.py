"""Five real nodes on five hosts, as they are told: what was answered to be on two of them outlives any one."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from kvstore import AsyncClient, Client, Namespace
from kvstore.client.journeys import Stored
from kvstore.wire import store
from kvstore.wire.services import StoreStub
from tests.integration.nodes import NodeProcess, blocks_of, layout, tokens
from tests.integration.patience import SLOW_S, in_time
from tests.integration.test_cluster import Cluster, metric, running
from tests.integration.test_far import got, quiet, whole
from tests.integration.test_locating import At, found_within

SETTLE_MS = 300
BLOCKS = 12


class Hosts(Cluster):
    """Each node on a host of its own, but for those that are said to share one."""

    shared: frozenset[int] = frozenset()

    def node(self, i: int, *sets: str, address: str = "", home: str = "") -> NodeProcess:
        host = "shared" if i in self.shared else f"host{i}"
        return super().node(i, f"cluster.host={host}", *sets, address=address, home=home)


def sets(*more: str) -> tuple[str, ...]:
    return (f"cluster.settle_ms={SETTLE_MS}", "cluster.directory_width=5", *more)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(Hosts(tmp_path_factory.mktemp("five"), 5, "", *sets())) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


def wipe(cluster: Cluster, i: int) -> None:
    """kill -9, and its memory and disk are gone."""
    node = cluster.nodes[i]
    node.kill()
    for suffix in (".payload", ".meta"):
        Path(node.facts["memory_at"]).with_suffix(suffix).unlink()
    shutil.rmtree(cluster.folder / f"h{i}" / "data")


def copied(ns: Namespace, chain: np.ndarray, replicas: int, most: int = 0) -> Stored:
    """A put that is on so many hosts; `most` where there are no more. One that was late is not counted."""
    return in_time(
        lambda: ns.put(chain, blocks_of(chain), replicas=replicas), lambda stored: stored.replicas == (most or replicas)
    )


def test_a_put_says_on_how_many_hosts_it_is(five: Cluster) -> None:
    with At(five, 0, "asked") as ns:
        chain = ns.chain(tokens(BLOCKS, 1))
        assert ns.put(chain, blocks_of(chain)).replicas == 0  # nobody asked
        for replicas in (2, 5):
            stored = copied(ns, chain, replicas)
            assert (stored.held, stored.replicas) == (BLOCKS, replicas)
            assert stored.hosts is not None and stored.hosts.tolist() == [replicas] * BLOCKS
        assert copied(ns, chain, 9, 5).replicas == 5  # fewer is an answer
        with pytest.raises(ValueError, match="replicas: 0, must be 1 to 16"):
            ns.put(chain, blocks_of(chain), replicas=0)
        for i in range(1, 5):
            with At(five, i, "asked") as there:
                assert there.lookup(chain).tiers.tolist() == [1] * BLOCKS  # its own memory
                assert got(there, chain).blocks == BLOCKS
        quiet(five.nodes[0])


async def test_the_async_face_and_grpc_answer_the_same(five: Cluster) -> None:
    async with AsyncClient(five.at(1)) as client:  # by TCP: nothing is mapped
        ns = await client.namespace(layout("faces"))
        chain = ns.chain(tokens(BLOCKS, 2))
        stored = await ns.put(chain, blocks_of(chain), replicas=3)
        assert (stored.stored, stored.replicas) == (BLOCKS, 3)
        more = ns.chain(tokens(4, 3), parent=chain[-1])
        header = store.PutHeader(
            namespace=ns.digest,
            chain=store.Chain(keys=more.tobytes(), parent=chain[-1].tobytes(), position=BLOCKS),
            replicas=4,
        )
        messages = [
            store.PutRequest(header=header),
            *(store.PutRequest(data=store.PutData(payload=block.tobytes())) for block in blocks_of(more)),
        ]
        with grpc.insecure_channel(f"unix:{five.nodes[1].socket}.grpc") as channel:
            answer = StoreStub(channel).Put(iter(messages), timeout=20)
        assert (answer.stored, answer.replicas, list(answer.hosts)) == (4, 4, [4] * 4)


def test_what_answered_two_hosts_outlives_any_one_of_five(five: Cluster) -> None:
    chains: dict[int, np.ndarray] = {}
    before = [metric(node, "kvstore_far_replicas_total") for node in five.nodes]
    with At(five, 0, "outlives") as ns:
        for seed in range(20, 36):
            chain = chains[seed] = ns.chain(tokens(4, seed))
            copied(ns, chain, 2)
    brought = [metric(node, "kvstore_far_replicas_total") - was for node, was in zip(five.nodes, before, strict=True)]
    assert sum(count > 0 for count in brought[1:]) >= 2, "families are spread"
    wipe(five, 0)
    try:
        lost = 0
        for i in range(1, 5):
            with At(five, i, "outlives") as there:
                for chain in chains.values():
                    found_within(there, chain, 4)
                    lost += 4 - whole(there, chain).blocks
        assert lost == 0
    finally:
        five.nodes[0].start()
        five.meet()
        time.sleep(2 * SETTLE_MS / 1e3)


def test_a_host_that_stands_still_makes_way_for_the_next(five: Cluster) -> None:
    five.nodes[4].signal(signal.SIGSTOP)
    try:
        with At(five, 0, "makes way") as ns:
            for seed in range(40, 43):  # not yet known to be dead
                chain = ns.chain(tokens(4, seed))
                began = time.monotonic()
                told = ns.put(chain, blocks_of(chain), replicas=4)
                assert time.monotonic() - began < 2 + SLOW_S
                assert told.replicas == 4 or copied(ns, chain, 4)
            copied(ns, ns.chain(tokens(4, 44)), 5, 4)
    finally:
        five.nodes[4].signal(signal.SIGCONT)
        five.meet()
        time.sleep(2 * SETTLE_MS / 1e3)


def test_a_node_whose_memory_is_only_holds_takes_nothing(five: Cluster) -> None:
    """Nobody else can take its place: the answer says four hosts. With room again it says five."""
    with At(five, 0, "held") as ns, Client(five.nodes[1].address) as one, Client(five.nodes[1].address) as two:
        first, second = (client.namespace(layout("held")) for client in (one, two))
        full = first.chain(tokens(64, 50))
        first.put(full, blocks_of(full))
        chain = ns.chain(tokens(8, 51))
        with first.hold(full) as half, second.hold(full[half.blocks :], position=half.blocks) as rest:
            assert half.blocks + rest.blocks > 60
            assert ns.put(chain, blocks_of(chain), replicas=5).replicas in {0, 1, 4}
            on_hosts = in_time(
                lambda: ns.put(chain, blocks_of(chain), replicas=5).hosts,
                lambda hosts: hosts is not None and hosts[-1] >= 4,
            )
            assert on_hosts is not None and on_hosts[-1] == 4
        copied(ns, chain, 5)


def test_nodes_of_one_host_count_once(tmp_path: Path) -> None:
    Hosts.shared = frozenset({1, 2})
    try:
        with running(Hosts(tmp_path, 3, "", *sets())) as cluster:
            with At(cluster, 0, "once") as ns:
                chain = ns.chain(tokens(4, 1))
                copied(ns, chain, 3, 2)
            with At(cluster, 1, "once") as ns:
                chain = ns.chain(tokens(4, 2))
                copied(ns, chain, 3, 2)
    finally:
        Hosts.shared = frozenset()
