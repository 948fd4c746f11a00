"""Real nodes that hand their blocks on: drained, stopped, wiped, and every block is found elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from kvstore import AsyncClient, Client, Namespace
from kvstore.errors import Rejected
from kvstore.wire import admin, store
from kvstore.wire.services import AdminStub, StoreStub
from tests.integration.nodes import NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.patience import claimed, come_down
from tests.integration.test_cluster import Cluster, running
from tests.integration.test_far import got, whole
from tests.integration.test_locating import At, found_within
from tests.integration.test_replicas import SETTLE_MS, sets, wipe
from tests.s3_server import moto_server, s3_options

CHAIN = 5


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # A node that is wiped comes back as another one: soon the others know that the former was no home any more.
    with running(Cluster(tmp_path_factory.mktemp("three"), 3, "", *sets("cluster.grace_ms=500"))) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


def command(node: NodeProcess, *words: str, code: int = 0) -> str:
    """As an operator does it."""
    line = [sys.executable, "-m", "kvstore.admin", "--address", f"unix:{node.socket}.grpc", "drain", *words]
    done = subprocess.run(line, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def drain(node: NodeProcess, name: str = "", **how: bool) -> admin.DrainProgress:
    """The last that is told, without a process for each question."""
    request = admin.DrainRequest(node=name, **how)
    with grpc.insecure_channel(f"unix:{node.socket}.grpc") as channel:
        *_, last = AdminStub(channel).Drain(request, timeout=30)
    return last


def counts(told: admin.DrainProgress) -> tuple[int, int, int]:
    return told.handed_blocks, told.kept_blocks, told.failed_blocks


def look(node: NodeProcess, name: str = "") -> admin.DrainState.ValueType:
    with grpc.insecure_channel(f"unix:{node.socket}.grpc") as channel:
        call = AdminStub(channel).Drain(admin.DrainRequest(node=name, look=True), timeout=30)
        state = next(iter(call)).state
        call.cancel()
    return state


def put(ns: Namespace, seeds: range) -> list[np.ndarray]:
    chains = []
    for seed in seeds:
        chain = ns.chain(tokens(CHAIN, seed))
        # Two that begin alike.
        branch = np.concatenate((chain[:3], ns.chain(tokens(2, 1000 + seed), parent=chain[2])))
        for one in (chain, branch):
            assert ns.put(one, blocks_of(one)).rejected == 0
        chains += [chain, branch]
    return chains


def all_are_there(cluster: Cluster, i: int, model: str, chains: list[np.ndarray]) -> None:
    with At(cluster, i, model) as there:
        for chain in chains:
            found_within(there, chain, CHAIN)
            whole(there, chain)


def test_drained_stopped_and_wiped_nothing_is_lost(three: Cluster) -> None:
    with At(three, 0, "drained") as here, At(three, 1, "drained") as there:
        both = put(here, range(1))
        put(there, range(1))
        only = put(here, range(1, 4))
        with At(three, 2, "drained") as third:
            for chain in both:  # homes know of both
                claimed(three.nodes[2], third, chain, 2)
        told = json.loads(command(three.nodes[2], three.name(0), "--json").splitlines()[-1])  # from anywhere
        assert told["state"] == "drained" and told["node"] == three.name(0)
        assert (told["handed_on"], told["kept_by_others"], told["could_not_be"]) == (21, 7, 0)
        with grpc.insecure_channel(f"unix:{three.nodes[0].socket}.grpc") as channel:
            assert AdminStub(channel).Status(admin.StatusRequest(), timeout=5).drain == admin.DRAIN_DONE
        # It takes nothing new, says why, and goes on to be read.
        chain = here.chain(tokens(2, 99))
        with pytest.raises(Rejected, match="draining") as refused:
            here.put(chain, blocks_of(chain))
        assert refused.value.limit == "draining"
        whole(here, only[0])
        assert there.put(chain, blocks_of(chain), replicas=3).replicas == 1  # one machine
    wipe(three, 0)
    for i in (1, 2):
        all_are_there(three, i, "drained", both + only)
    three.nodes[0].start()
    three.meet()
    time.sleep(2 * SETTLE_MS / 1e3)


async def test_every_way_to_put_is_refused_until_it_is_cancelled(three: Cluster) -> None:
    node = three.nodes[0]
    drain(node)
    with Client(node.address) as client:
        ns = client.namespace(layout("ways"))
        chain = ns.chain(tokens(2, 1))
        with pytest.raises(Rejected, match="draining"):
            ns.reserve(chain)
        with Client(three.at(0)) as away:
            far = away.namespace(layout("ways"))
            for verb in (lambda: far.put(chain, blocks_of(chain)), lambda: far.reserve(chain)):
                with pytest.raises(Rejected, match="draining"):
                    verb()
        async with AsyncClient(three.at(0)) as asynchronous:
            with pytest.raises(Rejected, match="draining"):
                await (await asynchronous.namespace(layout("ways"))).put(chain, blocks_of(chain))
        header = store.PutHeader(namespace=ns.digest, chain=store.Chain(keys=chain.tobytes()))
        with grpc.insecure_channel(f"unix:{node.socket}.grpc") as channel, pytest.raises(grpc.RpcError) as refused:
            StoreStub(channel).Put(iter([store.PutRequest(header=header)]), timeout=10)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        # Nor does it copy what others have.
        with At(three, 1, "ways") as there:
            there.put(chain, blocks_of(chain))
            found_within(ns, chain, 2)
            with ns.hold(chain) as held:
                assert held.blocks == 0
            whole(ns, chain)
        assert look(three.nodes[1], three.at(0)) == admin.DRAIN_DONE
        node.kill()
        node.start()  # and after a restart
        three.meet()
        with pytest.raises(Rejected, match="draining"):
            ns.put(chain, blocks_of(chain))
        mark = three.folder / "h0" / "data" / "draining"
        assert mark.exists() and drain(three.nodes[1], three.name(0), cancel=True).state == admin.DRAIN_NONE
        assert ns.put(chain, blocks_of(chain)).rejected == 0
        assert not mark.exists() and look(node) == admin.DRAIN_NONE


def test_what_was_being_put_when_it_began_is_handed_on(three: Cluster) -> None:
    with At(three, 0, "being put") as here, ThreadPoolExecutor(1) as pool:
        chain = here.chain(tokens(CHAIN, 5))
        with here.reserve(chain) as slots:
            draining = pool.submit(drain, three.nodes[0])
            time.sleep(3)  # as long as a prefill that publishes layer by layer
            for index, block in enumerate(blocks_of(chain)):
                slots.array(index)[:] = block
            assert slots.seal().stored == CHAIN
        handed, _, failed = counts(draining.result(30))
        assert handed >= CHAIN and failed == 0
    drain(three.nodes[0], cancel=True)
    held = []
    for i in (1, 2):
        with At(three, i, "being put") as there:
            held.append(there.lookup(chain).tiers.tolist())
    assert [1] * CHAIN in held


def test_killed_in_the_middle_it_goes_on_and_nothing_is_lost(three: Cluster) -> None:
    with At(three, 1, "killed") as here:
        chains = put(here, range(7))
    request = admin.DrainRequest(node=three.name(1))
    with grpc.insecure_channel(f"unix:{three.nodes[0].socket}.grpc") as channel:
        next(iter(AdminStub(channel).Drain(request, timeout=10)))
        time.sleep(0.01)
        three.nodes[1].kill()
    three.nodes[1].start()
    three.meet()
    # It goes on by itself, and when it is asked again.
    eventually(lambda: look(three.nodes[1]) == admin.DRAIN_DONE)
    told = drain(three.nodes[0], three.name(1))
    handed, kept, failed = counts(told)
    assert told.state == admin.DRAIN_DONE and failed == 0
    assert handed + kept >= 49
    wipe(three, 1)
    all_are_there(three, 2, "killed", chains)


def test_what_lies_in_files_is_handed_on_too(tmp_path: Path) -> None:
    files = ("file.enabled=true", "file.bytes=16MiB", "file.admission=always")
    with running(Cluster(tmp_path, 2, "", *sets(*files))) as cluster:
        with At(cluster, 0, "files") as here:
            chains = [here.chain(tokens(CHAIN, seed)) for seed in range(24)]  # more than memory
            come_down(cluster.nodes[0], here, chains, 4 << 20)
            kept = [chain for chain in chains if here.lookup(chain).blocks == CHAIN]
            assert any(2 in here.lookup(chain).tiers for chain in kept)
        handed, _, failed = counts(drain(cluster.nodes[0]))
        assert failed == 0 and handed > 60
        wipe(cluster, 0)
        all_are_there(cluster, 1, "files", kept)


def test_without_anybody_to_take_them_it_says_so(tmp_path: Path) -> None:
    with running(Cluster(tmp_path, 2, "", *sets())) as cluster:
        with At(cluster, 0, "nobody") as here:
            put(here, range(1))
        drain(cluster.nodes[1])  # it takes nothing
        assert "7 could not be (no other node takes blocks" in command(cluster.nodes[0], code=1)
        drain(cluster.nodes[1], cancel=True)
        said = command(cluster.nodes[0])  # again
        assert "drained: 7 blocks handed on, 0 kept by others, 0 could not be" in said
        assert command(cluster.nodes[0], "nobody-there", code=2) == ""


def test_what_nobody_takes_goes_to_the_bucket(tmp_path: Path) -> None:
    with moto_server() as port:
        bucket = ("object.url=s3://kvpacks/drained", *s3_options(port))
        with running(Cluster(tmp_path, 2, "", *sets(*bucket))) as cluster:
            with At(cluster, 0, "bucket") as here:
                chains = put(here, range(2))
            drain(cluster.nodes[1])
            assert counts(drain(cluster.nodes[0])) == (0, 14, 0)
            drain(cluster.nodes[1], cancel=True)
            wipe(cluster, 0)
            with At(cluster, 1, "bucket") as there:
                for chain in chains:
                    eventually(lambda chain=chain: there.prefetch(chain) == CHAIN)
                    assert got(there, chain).blocks == CHAIN


def test_a_node_alone_says_that_nobody_is_there(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        command(node, code=3)
