"""Real nodes that hand their blocks on: drained, stopped, wiped, and every block is found elsewhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from kvstore import AsyncClient, Client, Namespace
from kvstore.errors import Rejected
from kvstore.wire import admin, store
from kvstore.wire.services import AdminStub, StoreStub
from tests.integration.nodes import NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.test_cluster import Cluster, running
from tests.integration.test_cluster import admin as admin_of
from tests.integration.test_far import got
from tests.integration.test_locating import At, found_within
from tests.integration.test_replicas import SETTLE_MS, sets, wipe

CHAIN = 5


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Cluster]:
    with running(Cluster(tmp_path, 3, "", *sets())) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


def drain(node: NodeProcess, *words: str, code: int = 0) -> list[dict[str, Any]]:
    command = [
        sys.executable,
        "-m",
        "kvstore.admin",
        "--address",
        f"unix:{node.socket}.grpc",
        "drain",
        *words,
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines()]


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
            found_within(there, chain, CHAIN, 5)
            assert got(there, chain).blocks == CHAIN


def test_drained_stopped_and_wiped_nothing_is_lost(three: Cluster) -> None:
    with At(three, 0, "drained") as here, At(three, 1, "drained") as there:
        both = put(here, range(1))
        put(there, range(1))
        only = put(here, range(1, 4))
        told = drain(three.nodes[2], three.name(0))  # from anywhere
        assert told[-1]["state"] == "drained" and told[-1]["node"] == three.name(0)
        assert (told[-1]["handed_on"], told[-1]["kept_by_others"], told[-1]["could_not_be"]) == (21, 7, 0)
        # It takes nothing new, says why, and goes on to be read.
        chain = here.chain(tokens(2, 99))
        with pytest.raises(Rejected, match="draining") as refused:
            here.put(chain, blocks_of(chain))
        assert refused.value.limit == "draining"
        assert got(here, only[0]).blocks == CHAIN
        assert there.put(chain, blocks_of(chain), replicas=3).replicas == 1  # one machine
    wipe(three, 0)
    for i in (1, 2):
        all_are_there(three, i, "drained", both + only)


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
            found_within(ns, chain, 2, 2)
            with ns.hold(chain) as held:
                assert held.blocks == 0
            assert got(ns, chain).blocks == 2
        assert drain(three.nodes[1], three.at(0), "--look")[-1]["state"] == "drained"
        node.kill()
        node.start()  # and after a restart
        three.meet()
        with pytest.raises(Rejected, match="draining"):
            ns.put(chain, blocks_of(chain))
        assert drain(three.nodes[1], three.name(0), "--cancel")[-1]["state"] == "not draining"
        assert ns.put(chain, blocks_of(chain)).rejected == 0
    node.kill()
    node.start()
    three.meet()
    assert drain(node, "--look")[-1]["state"] == "not draining"


def test_killed_in_the_middle_it_goes_on_and_nothing_is_lost(three: Cluster) -> None:
    with At(three, 0, "killed") as here:
        chains = put(here, range(7))
    request = admin.DrainRequest(node=three.name(0))
    with grpc.insecure_channel(f"unix:{three.nodes[1].socket}.grpc") as channel:
        next(iter(AdminStub(channel).Drain(request, timeout=10)))
        time.sleep(0.01)
        three.nodes[0].kill()
    three.nodes[0].start()
    three.meet()
    # It goes on by itself, and when it is asked again.
    eventually(lambda: drain(three.nodes[0], "--look")[-1]["state"] == "drained")
    told = drain(three.nodes[1], three.name(0))[-1]
    assert (told["state"], told["could_not_be"]) == ("drained", 0)
    assert told["handed_on"] + told["kept_by_others"] == 49
    wipe(three, 0)
    all_are_there(three, 1, "killed", chains)


def test_what_lies_in_files_is_handed_on_too(tmp_path: Path) -> None:
    files = ("file.enabled=true", "file.bytes=16MiB", "file.admission=always")
    with running(Cluster(tmp_path, 3, "", *sets(*files))) as cluster:
        with At(cluster, 0, "files") as here:
            chains = []
            for seeds in (range(8), range(8, 16)):  # more than memory
                chains += put(here, seeds)
                time.sleep(0.5)
            kept = [chain for chain in chains if here.lookup(chain).blocks == CHAIN]
            assert any(2 in here.lookup(chain).tiers for chain in kept)
        told = drain(cluster.nodes[0])[-1]
        assert told["could_not_be"] == 0 and told["handed_on"] > 60
        wipe(cluster, 0)
        all_are_there(cluster, 1, "files", kept)


def test_without_anybody_to_take_them_it_says_so(tmp_path: Path) -> None:
    with running(Cluster(tmp_path, 2, "", *sets())) as cluster:
        with At(cluster, 0, "nobody") as here:
            put(here, range(1))
        drain(cluster.nodes[1])  # it takes nothing
        told = drain(cluster.nodes[0], code=1)[-1]
        assert told["could_not_be"] == 7 and "drain as well" in told["problem"]
        drain(cluster.nodes[1], "--cancel")
        said = admin_of(cluster.nodes[0], "drain")  # again, for people
        assert "drained: 7 blocks handed on, 0 kept by others, 0 could not be" in said
        assert drain(cluster.nodes[0], "nobody-there", code=2) == []


def test_a_node_alone_says_that_nobody_is_there(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        drain(node, code=3)
        eventually(lambda: node.holds() == 0)
