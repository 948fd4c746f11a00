"""Three real nodes: what is put at one is found at another, for as long as it is there, whoever of them dies."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from kvstore import AsyncClient, Client, Namespace
from kvstore.client.journeys import Found
from kvstore.client.steps import Holder
from kvstore.directory.homes import Places
from kvstore.wire import store
from kvstore.wire.services import StoreStub
from tests.integration.nodes import BLOCK_TOKENS, NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.patience import DEAD_S, WAITS_S, come_down, in_time
from tests.integration.test_cluster import Cluster, metric, running, seen

FAR_MEMORY, FAR_FILE = 9, 10
SETTLE_MS = 300
BLOCKS = 12


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    sets = (f"cluster.settle_ms={SETTLE_MS}", "cluster.directory_width=2")
    with running(Cluster(tmp_path_factory.mktemp("three"), 3, "", *sets)) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


class At:
    """A namespace at one node."""

    def __init__(self, cluster: Cluster, i: int, model: str) -> None:
        self.client = Client(cluster.nodes[i].address)
        self.ns: Namespace = self.client.namespace(layout(model))

    def __enter__(self) -> Namespace:
        return self.ns

    def __exit__(self, *_: object) -> None:
        self.client.close()


def ids(cluster: Cluster) -> list[bytes]:
    return [
        bytes.fromhex((cluster.folder / f"h{i}" / "data" / "node-id").read_text()) for i in range(len(cluster.nodes))
    ]


def found_within(ns: Namespace, chain: np.ndarray, blocks: int, within_s: float = WAITS_S) -> Found:
    """A lookup that finds so many, and no lookup later than that finds another number."""
    until = time.monotonic() + within_s
    while (found := ns.lookup(chain)).blocks != blocks:
        assert time.monotonic() < until, (found, blocks)
        time.sleep(0.02)
    return found


def far(ns: Namespace, chain: np.ndarray, blocks: int) -> Found:
    """What a lookup finds at once of what was found before."""
    return in_time(lambda: ns.lookup(chain), lambda found: found.blocks == blocks)


def answered(cluster: Cluster) -> float:
    return sum(metric(node, "kvstore_locate_answered_total") for node in cluster.nodes)


def test_what_is_put_at_one_is_found_at_the_others(three: Cluster) -> None:
    with At(three, 0, "found") as here, At(three, 1, "found") as there:
        chain = here.chain(tokens(BLOCKS))
        assert (chain == there.chain(tokens(BLOCKS))).all()
        assert here.put(chain[:8], blocks_of(chain[:8])).stored == 8
        found = found_within(there, chain, 8)
        assert (found.tokens, found.tiers.tolist()) == (8 * BLOCK_TOKENS, [FAR_MEMORY] * 8)
        assert found.holders == (Holder(three.name(0), three.at(0), shard=0, first=0, count=8),)
        assert 0 < found.fetch_s < 1
        before = answered(three)
        assert far(there, chain, 8).blocks == 8
        eventually(lambda: answered(three) > before)
        assert here.lookup(chain).holders == () and here.lookup(chain).tiers.tolist() == [1] * 8
        # What is here is named as here, and what is far behind it as far.
        assert there.put(chain[:3], blocks_of(chain[:3])).stored == 3
        mixed = far(there, chain, 8)
        assert mixed.tiers.tolist() == [1] * 3 + [FAR_MEMORY] * 5 and (
            mixed.holders[0].first,
            mixed.holders[0].count,
        ) == (3, 5)
        # And what is far comes before what is here.
        assert there.put(chain[8:10], blocks_of(chain[8:10]), parent=chain[7], position=8).stored == 2
        assert far(there, chain, 10).tiers.tolist() == [1] * 3 + [FAR_MEMORY] * 5 + [1] * 2
        found_within(here, chain, 10)


async def test_the_async_face_and_grpc_find_the_same(three: Cluster) -> None:
    with At(three, 0, "faces") as here:
        chain = here.chain(tokens(BLOCKS, 1))
        here.put(chain[:5], blocks_of(chain[:5]))
        with At(three, 2, "faces") as there:
            told = found_within(there, chain, 5)
            digest = there.digest
    async with AsyncClient(three.nodes[2].address) as client:
        found = await (await client.namespace(layout("faces"))).lookup(chain)
    assert (found.blocks, found.tiers.tolist(), found.holders) == (5, [FAR_MEMORY] * 5, told.holders)
    with grpc.insecure_channel(f"unix:{three.nodes[2].socket}.grpc") as channel:
        request = store.LookupRequest(namespace=digest, chain=store.Chain(keys=chain.tobytes()), return_keys=True)
        answer = StoreStub(channel).Lookup(request, timeout=10)
    assert (answer.blocks, answer.tokens, list(answer.tiers)) == (5, 5 * BLOCK_TOKENS, [FAR_MEMORY] * 5)
    assert answer.keys == chain.tobytes() and answer.holders[0].node == three.name(0) and answer.fetch_s > 0


def test_a_cleared_namespace_is_found_no_more(three: Cluster) -> None:
    with At(three, 0, "cleared") as here, At(three, 1, "cleared") as there:
        chain = here.chain(tokens(BLOCKS, 2))
        here.put(chain, blocks_of(chain))
        found_within(there, chain, BLOCKS)
        here.clear()
        assert found_within(there, chain, 0).holders == ()


def test_a_holder_that_is_killed_is_named_no_more_and_named_again_when_it_is_back(three: Cluster) -> None:
    with At(three, 0, "killed") as here, At(three, 1, "killed") as there:
        chain = here.chain(tokens(BLOCKS, 3))
        here.put(chain, blocks_of(chain))
        found_within(there, chain, BLOCKS)
        three.nodes[0].kill()
        found_within(there, chain, 0, DEAD_S)
        three.nodes[0].start()
        three.meet()
        assert found_within(there, chain, BLOCKS).holders[0].node == three.name(0)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_home_that_dies_leaves_the_second_one_to_answer(three: Cluster, how: signal.Signals) -> None:
    """Of three nodes two are homes of a namespace; one that holds nothing of it dies, or does not say a word."""
    time.sleep(2 * SETTLE_MS / 1e3)  # one that came back is not asked at once
    nodes = ids(three)
    for n in range(64):
        with At(three, 0, f"{how.name} {n}") as here:
            if {nodes.index(node) for node in Places(nodes, 2).of(here.digest).ids} == {0, 2}:
                break
    else:
        pytest.fail("no namespace with these homes")
    with At(three, 0, f"{how.name} {n}") as here, At(three, 1, f"{how.name} {n}") as there:
        chain = here.chain(tokens(60, 4))
        here.put(chain, blocks_of(chain))
        found_within(there, chain, 60)
        hedges = metric(three.nodes[1], "kvstore_locate_hedges_total")
        if how is signal.SIGKILL:
            three.nodes[2].kill()
        else:
            three.nodes[2].signal(how)
        try:
            far(there, chain, 60)
            assert metric(three.nodes[1], "kvstore_locate_hedges_total") > hedges or is_dead(three, 2)
            began = time.monotonic()
            while not is_dead(three, 2):
                far(there, chain, 60)  # a hedge answers until its death is known
            assert time.monotonic() - began < DEAD_S

            def is_answered() -> bool:
                unanswered = metric(three.nodes[1], "kvstore_locate_unanswered_total")
                far(there, chain, 60)
                return metric(three.nodes[1], "kvstore_locate_unanswered_total") == unanswered

            eventually(is_answered)  # the dead are not asked; one who lives may be late
        finally:
            if how is signal.SIGKILL:
                three.nodes[2].start()
            else:
                three.nodes[2].signal(signal.SIGCONT)
        three.meet()
        found_within(there, chain, 60)


def is_dead(cluster: Cluster, i: int) -> bool:
    return bool(seen(cluster.nodes[1])[cluster.name(i)]["state"] == "dead")


def test_a_holder_that_stood_still_tells_all_again(three: Cluster) -> None:
    with At(three, 2, "still") as here, At(three, 1, "still") as there:
        chain = here.chain(tokens(BLOCKS, 6))
        here.put(chain, blocks_of(chain))
        found_within(there, chain, BLOCKS)
        time.sleep(0.2)  # both homes have been told
        told = metric(three.nodes[2], "kvstore_announce_rows_total")
        three.nodes[2].signal(signal.SIGSTOP)
        try:
            found_within(there, chain, 0, DEAD_S)
        finally:
            three.nodes[2].signal(signal.SIGCONT)
        three.meet()
        found_within(there, chain, BLOCKS)
        eventually(lambda: metric(three.nodes[2], "kvstore_announce_rows_total") >= told + BLOCKS)


def test_one_node_alone_asks_nobody(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, memory="4MiB", metrics="127.0.0.1:0") as node, Client(node.address) as client:
        ns = client.namespace(layout("alone"))
        chain = ns.chain(tokens(4, 5))
        ns.put(chain[:2], blocks_of(chain[:2]))
        assert ns.lookup(chain).blocks == 2
        assert metric(node, "kvstore_locate_lookups_total") == 0


def test_what_files_brought_back_is_told_after_a_restart(tmp_path: Path) -> None:
    files = ("file.enabled=true", "file.bytes=16MiB", "file.admission=always", "memory.keep=false")
    with running(Cluster(tmp_path, 2, "", f"cluster.settle_ms={SETTLE_MS}", *files)) as two:
        with At(two, 0, "files") as here:
            chains = [here.chain(tokens(30, seed)) for seed in range(10, 14)]
            come_down(two.nodes[0], here, chains, 4 << 20)  # twice what memory has: what makes way is in files
        two.nodes[0].stop()
        two.nodes[0].start()
        two.meet()
        with At(two, 0, "files") as here, At(two, 1, "files") as there:
            left = [here.lookup(chain).blocks for chain in chains]
            assert sum(left) >= 120 - 64, "what was pushed out of memory was not written to files"
            for chain, blocks in zip(chains, left, strict=True):
                eventually(
                    lambda c=chain, n=blocks: there.lookup(c).tiers.tolist() == [FAR_FILE] * n
                )  # and memory's no more
