"""Three real nodes: what is put at one is got at another, byte for byte, whoever of them dies, stops or lies."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import mmap
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import numpy as np
import pytest

from engine_adapters.base import promises
from kvstore import AsyncClient, Client, Namespace
from kvstore.client.calls import times_of
from kvstore.client.held import Held
from kvstore.client.journeys import Ended, Got
from kvstore.client.views import View
from kvstore.errors import Rejected
from kvstore.node.far import ASK_S, PASS_OVER_S
from kvstore.wire import framed, services, store
from tests.integration.nodes import SIZE, NodeProcess, block_of, blocks_of, eventually, layout, tokens
from tests.integration.patience import SLOW_S, claimed, in_time
from tests.integration.test_cluster import Cluster, metric, running
from tests.integration.test_locating import FAR_MEMORY, At, found_within

SETTLE_MS = 300
BLOCKS = 24  # more than a window, which is a quarter of a node's memory
PART = SIZE // 4


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    sets = (f"cluster.settle_ms={SETTLE_MS}", "cluster.directory_width=2", "cluster.far_bytes_per_s=1MiB")
    with running(Cluster(tmp_path_factory.mktemp("far"), 3, "", *sets)) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


def put_at(ns: Namespace, seed: int, blocks: int = BLOCKS) -> np.ndarray:
    chain = ns.chain(tokens(blocks, seed))
    assert ns.put(chain, blocks_of(chain)).stored == blocks
    return chain


def got(ns: Namespace, chain: np.ndarray, deadline_s: float = 5.0) -> Got:
    """Never wrong, never late."""
    into = np.zeros((len(chain), SIZE), np.uint8)
    began = time.monotonic()
    told = ns.get(chain, into, deadline_s=deadline_s)
    assert time.monotonic() - began < deadline_s + SLOW_S
    assert np.array_equal(into[: told.blocks], blocks_of(chain[: told.blocks]))
    assert len(told.tiers) == told.blocks
    return told


def whole(ns: Namespace, chain: np.ndarray, blocks: int | None = None, deadline_s: float = 5.0) -> Got:
    """A get that brings all of it, or so many blocks."""
    blocks = len(chain) if blocks is None else blocks
    return in_time(lambda: got(ns, chain, deadline_s), lambda told: told.blocks == blocks)


def kept(ns: Namespace, chain: np.ndarray) -> Held:
    """A hold of all of it, for which it is brought here."""

    def hold() -> Held:
        held = ns.hold(chain)
        if held.blocks < len(chain):
            held.close()
        return held

    return in_time(hold, lambda held: held.blocks == len(chain))


def quiet(node: NodeProcess) -> None:
    eventually(lambda: node.holds() == 0)


def test_what_is_put_at_one_is_got_at_another(three: Cluster) -> None:
    far, hit = 'kvstore_far_blocks_total{tier="memory"}', 'kvstore_get_blocks_hit_total{tier="memory"}'
    with At(three, 0, "got") as here, At(three, 1, "got") as there:
        chain = put_at(here, 1)
        found_within(there, chain, BLOCKS)
        before = metric(three.nodes[1], far), metric(three.nodes[1], hit)
        told = whole(there, chain)
        assert (told.blocks, told.ended, set(told.tiers.tolist())) == (BLOCKS, Ended.COMPLETE, {FAR_MEMORY})
        eventually(lambda: metric(three.nodes[1], far) == before[0] + BLOCKS)
        eventually(lambda: metric(three.nodes[1], hit) == before[1] + BLOCKS)
        assert there.get(chain[:0], np.zeros((0, SIZE), np.uint8)).ended is Ended.COMPLETE
        quiet(three.nodes[0])


def test_estimates_follow_what_was_measured(three: Cluster) -> None:
    with At(three, 0, "speed") as here, At(three, 1, "speed") as there:
        seeds = itertools.count(1000)

        def follows() -> bool:
            chains = [put_at(here, next(seeds)) for _ in range(2)]
            found_within(there, chains[1], BLOCKS)
            whole(there, chains[0])
            return 0 < there.lookup(chains[1]).fetch_s < 0.5  # by the setting it would take 1.5 s

        eventually(follows)


def test_by_tcp(three: Cluster) -> None:
    with At(three, 0, "tcp") as here, Client(three.at(1)) as client:
        chain = put_at(here, 2)
        there = client.namespace(layout("tcp"))
        found_within(there, chain, BLOCKS)
        told = whole(there, chain)
        assert (told.blocks, set(told.tiers.tolist())) == (BLOCKS, {FAR_MEMORY})
        quiet(three.nodes[0])


async def test_the_async_face(three: Cluster) -> None:
    with At(three, 0, "async") as here, At(three, 2, "async") as there:
        chain = put_at(here, 3)
        found_within(there, chain, BLOCKS)
    into = np.zeros((BLOCKS, SIZE), np.uint8)
    async with AsyncClient(three.nodes[2].address) as client:
        ns, began = await client.namespace(layout("async")), time.monotonic()
        told = await ns.get(chain, into)
        if told.blocks < BLOCKS and time.monotonic() - began > 0.9 * ASK_S:  # as in_time has it
            await asyncio.sleep(PASS_OVER_S)
            told = await ns.get(chain, into)
    assert (told.blocks, set(told.tiers.tolist())) == (BLOCKS, {FAR_MEMORY})
    assert np.array_equal(into, blocks_of(chain))


def test_what_is_here_what_is_far_and_what_is_here_again(three: Cluster) -> None:
    with At(three, 0, "mixed") as here, At(three, 1, "mixed") as there, At(three, 2, "mixed") as third:
        chain = here.chain(tokens(14, 4))
        assert there.put(chain[:3], blocks_of(chain[:3])).stored == 3
        assert here.put(chain[3:8], blocks_of(chain[3:8]), parent=chain[2], position=3).stored == 5
        assert there.put(chain[8:10], blocks_of(chain[8:10]), parent=chain[7], position=8).stored == 2
        assert third.put(chain[10:12], blocks_of(chain[10:12]), parent=chain[9], position=10).stored == 2
        found_within(there, chain, 12)
        told = whole(there, chain, 12)
        assert told.tiers.tolist() == [1] * 3 + [FAR_MEMORY] * 5 + [1] * 2 + [FAR_MEMORY] * 2
        assert told.ended is Ended.MISS


def test_parts_of_blocks(three: Cluster) -> None:
    far = 'kvstore_far_blocks_total{tier="memory"}'
    with At(three, 0, "parts") as here, At(three, 1, "parts") as there:
        chain = put_at(here, 5, 6)
        found_within(there, chain, 6)
        before = metric(three.nodes[1], far)
        for first, end in ((1, 3), (0, 1), (3, 4)):
            into = np.zeros((6, (end - first) * PART), np.uint8)
            get = partial(there.get, chain, into, parts=(first, end))
            in_time(get, lambda told: told.blocks == 6)
            assert np.array_equal(into, blocks_of(chain)[:, first * PART : end * PART])
        eventually(lambda: metric(three.nodes[1], far) == before + 6)


def test_flipped_bits_at_the_holder_are_not_handed_out(three: Cluster) -> None:
    with At(three, 0, "flipped") as here, At(three, 1, "flipped") as there:
        chain = put_at(here, 6, 8)
        found_within(there, chain, 8)
        flip(three.nodes[0], chain[5])
        told = whole(there, chain, 5)
        assert told.ended in {Ended.CORRUPT, Ended.MISS}
        # The holder was told of it, and drops it.
        eventually(lambda: here.lookup(chain).blocks == 5)
        assert metric(three.nodes[1], "kvstore_far_corrupt_total") >= 1


def test_a_block_that_does_not_verify_comes_from_its_replica(three: Cluster) -> None:
    with At(three, 0, "twice") as here, At(three, 1, "twice") as there, At(three, 2, "twice") as third:
        chain = put_at(here, 7, 8)
        put_at(third, 7, 8)
        claimed(three.nodes[1], there, chain, 2)
        for node in (three.nodes[0], three.nodes[2]):
            flip(node, chain[3 if node is three.nodes[0] else 6])
        whole(there, chain)


def flip(node: NodeProcess, key: np.ndarray) -> None:
    """A bit of a block in a node's memory."""
    with Path(node.facts["memory_at"]).open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        at = memory.find(block_of(key).tobytes())
        assert at >= 0
        memory[at + SIZE // 2] ^= 1


def test_a_cleared_namespace_is_got_no_more(three: Cluster) -> None:
    with At(three, 0, "cleared") as here, At(three, 1, "cleared") as there:
        chain = put_at(here, 8)
        found_within(there, chain, BLOCKS)
        if here.clear().nodes < 3:  # who was late is told by pings
            time.sleep(SLOW_S)
        told = got(there, chain)
        assert (told.blocks, told.ended) == (0, Ended.CLEARED)
        assert got(there, chain).ended is Ended.MISS, "of what is open now"


def test_a_holder_that_is_killed_costs_a_shorter_answer(three: Cluster) -> None:
    with At(three, 0, "killed") as here, At(three, 1, "killed") as there:
        chain = put_at(here, 9)
        found_within(there, chain, BLOCKS)
        killing = threading.Timer(0.003, three.nodes[0].kill)
        killing.start()
        try:
            for _ in range(20):
                told = got(there, chain)
                assert told.blocks == BLOCKS or told.ended is Ended.MISS
            killing.join()
            assert got(there, chain).blocks == 0
        finally:
            killing.join()
            three.nodes[0].start()
            three.meet()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_replica_is_read_where_the_holder_is_gone_or_silent(three: Cluster, how: signal.Signals) -> None:
    time.sleep(2 * SETTLE_MS / 1e3)
    name = f"replica {how.name}"
    with At(three, 0, name) as here, At(three, 1, name) as there, At(three, 2, name) as third:
        chain = put_at(here, 10)
        put_at(third, 10)
        claimed(three.nodes[1], there, chain, 2)
        if how is signal.SIGKILL:
            three.nodes[0].kill()
        else:
            three.nodes[0].signal(how)
        try:
            whole(there, chain, deadline_s=3.0)
        finally:
            if how is signal.SIGKILL:
                three.nodes[0].start()
            else:
                three.nodes[0].signal(signal.SIGCONT)
            three.meet()
            time.sleep(PASS_OVER_S)


def test_only_nodes_lease_for_others(three: Cluster) -> None:
    with At(three, 0, "stranger") as here:
        put_at(here, 12, 2)
        request = framed.LeaseRequest(namespace=here.digest, carriers=[3], lease=1)
        with pytest.raises(Rejected, match="only nodes"):
            here._channel.call(store.METHOD_PEER_LEASE, request.SerializeToString(), times_of(5, None))


# ---- replicas -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["mapped", "tcp"])
def test_what_is_held_is_brought_here_and_outlives_its_holder(three: Cluster, by: str) -> None:
    address = three.nodes[1].address if by == "mapped" else three.at(1)
    with At(three, 0, f"held {by}") as here, Client(address) as client:
        there = client.namespace(layout(f"held {by}"))
        chain = put_at(here, 13)
        found_within(there, chain, BLOCKS)
        with kept(there, chain):
            three.nodes[0].kill()
            try:
                told = got(there, chain)
                assert (told.blocks, set(told.tiers.tolist())) == (BLOCKS, {1})
            finally:
                three.nodes[0].start()
                three.meet()
        quiet(three.nodes[1])
        quiet(three.nodes[0])


def test_what_is_prefetched_is_brought_here(three: Cluster) -> None:
    with At(three, 0, "prefetched") as here, At(three, 1, "prefetched") as there:
        chain = put_at(here, 14)
        found_within(there, chain, BLOCKS)
        in_time(lambda: brought(there, chain), bool)
        assert got(there, chain).tiers.tolist() == [1] * BLOCKS


def brought(ns: Namespace, chain: np.ndarray) -> bool:
    """Whether a prefetch has it here, after a while: what could not be brought is not tried again."""
    ns.prefetch(chain)
    until = time.monotonic() + SLOW_S
    while not (here := ns.lookup(chain).tiers.tolist() == [1] * len(chain)) and time.monotonic() < until:
        time.sleep(0.02)
    return here


def test_a_replica_has_the_metas_of_what_it_is_a_copy_of(three: Cluster) -> None:
    with At(three, 0, "metas") as here, At(three, 1, "metas") as there:
        chain = here.chain(tokens(BLOCKS, 16))
        metas = [f"meta {i}".encode() * (i % 5) for i in range(BLOCKS)]
        assert here.put(chain, blocks_of(chain), metas=metas).stored == BLOCKS
        found_within(there, chain, BLOCKS)
        with told_of(three, 1, there) as watching:
            kept(there, chain).close()
            told: list[store.Event] = []
            while len(told) < BLOCKS:
                told += next(watching).events
    parents = [b"", *(key.tobytes() for key in chain[:-1])]
    assert [(one.key, one.parent, one.meta) for one in told] == [
        (key.tobytes(), parent, meta) for key, parent, meta in zip(chain, parents, metas, strict=True)
    ]


def test_a_view_is_of_what_was_brought_here(three: Cluster) -> None:
    with At(three, 0, "viewed") as here, At(three, 1, "viewed") as there:
        chain = here.chain(tokens(10, 17))
        assert there.put(chain[:4], blocks_of(chain[:4])).stored == 4
        assert here.put(chain[4:], blocks_of(chain[4:]), parent=chain[3], position=4, metas=[b"m"] * 6).stored == 6
        found_within(there, chain, 10)
        with told_of(three, 1, there) as watching, viewed(there, chain) as view:
            assert np.array_equal(np.stack(view.blocks), blocks_of(chain))
            assert view.tiers.tolist() == [1] * 10
            told = next(watching).events
        assert [(one.parent, one.meta) for one in told[:1]] == [(chain[3].tobytes(), b"m")], "joined to what was here"
        quiet(three.nodes[1])
        with there.view(there.chain(tokens(3, 18))) as none:
            assert len(none) == 0


def viewed(ns: Namespace, chain: np.ndarray) -> View:
    def view() -> View:
        view = ns.view(chain)
        if len(view) < len(chain):
            view.close()
        return view

    return in_time(view, lambda view: not view.closed)


def test_a_copy_of_what_is_got_again_is_joined_to_what_was_here(three: Cluster) -> None:
    with At(three, 0, "joined") as here, At(three, 1, "joined") as there:
        chain = here.chain(tokens(10, 21))
        assert there.put(chain[:4], blocks_of(chain[:4])).stored == 4
        assert here.put(chain[4:], blocks_of(chain[4:]), parent=chain[3], position=4).stored == 6
        found_within(there, chain, 10, 3)
        with told_of(three, 1, there) as watching:
            assert [got(there, chain).blocks for _ in range(2)] == [10, 10]
            assert next(watching).events[0].parent == chain[3].tobytes()
        quiet(three.nodes[1])


def test_grpc_gets_what_was_brought_here(three: Cluster) -> None:
    with At(three, 0, "by grpc") as here, At(three, 1, "by grpc") as there:
        chain = here.chain(tokens(BLOCKS, 19))
        assert there.put(chain[:3], blocks_of(chain[:3])).stored == 3
        assert here.put(chain[3:], blocks_of(chain[3:]), parent=chain[2], position=3).stored == BLOCKS - 3
        found_within(there, chain, BLOCKS)
        beyond = np.concatenate([chain, here.chain(tokens(2, 20))])
        request = store.GetRequest(namespace=there.digest, chain=store.Chain(keys=beyond.tobytes()), wait_ms=2000)
        with grpc.insecure_channel(f"unix:{three.nodes[1].socket}.grpc") as door:
            get = services.StoreStub(door).Get
            messages = in_time(lambda: list(get(request, timeout=20)), lambda told: told[-1].end.blocks == BLOCKS)
        data = b"".join(one.data.payload for one in messages if one.HasField("data"))
        assert np.array_equal(np.frombuffer(data, np.uint8).reshape(-1, SIZE), blocks_of(chain))
        assert [one.block.index for one in messages if one.HasField("block")] == list(range(BLOCKS))
        assert messages[-1].end.blocks == BLOCKS


@contextlib.contextmanager
def told_of(cluster: Cluster, i: int, ns: Namespace) -> Iterator[Iterator[store.WatchBatch]]:
    """What a node tells from now on."""
    with grpc.insecure_channel(f"unix:{cluster.nodes[i].socket}.grpc") as door:
        watching = services.StoreStub(door).Watch(store.WatchRequest(namespace=ns.digest), timeout=20)
        next(watching)  # where it begins
        yield watching
        watching.cancel()


def test_a_promise_is_made_of_what_another_node_has(three: Cluster) -> None:
    with At(three, 0, "promised") as here, At(three, 1, "promised") as there:
        chain = put_at(here, 15)
        found_within(there, chain, BLOCKS)

        def find() -> promises.Promise:
            return promises.find(there, chain, 0, layout("promised"), promises.Budget(1 << 30), time.monotonic() + 10)

        promise = in_time(find, lambda promise: promise.blocks == BLOCKS)
        try:
            assert promise.blocks == BLOCKS
            assert there.lookup(chain).tiers.tolist() == [1] * BLOCKS
        finally:
            promise.close()
