"""Gets of what other nodes hold in files, over mutual TLS, of holders that are busy, of some that die."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client, Namespace
from kvstore.client.calls import times_of
from kvstore.config import TransferConfig
from kvstore.wire import framed, store
from tests.certificates import Authority
from tests.integration.nodes import SIZE, eventually, layout, tokens
from tests.integration.patience import claimed, come_down, in_time
from tests.integration.test_cluster import Cluster, running, sealed
from tests.integration.test_far import SETTLE_MS, got, put_at, whole
from tests.integration.test_locating import FAR_FILE, FAR_MEMORY, At, found_within
from transfer.offers import Carrier, Home

# No copies of what is got again: each get is from where it was put.
SETS = (f"cluster.settle_ms={SETTLE_MS}", "cluster.directory_width=2", "cluster.replica_window_s=0")
MOVING = 20  # blocks of one connection


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is on another machine than any node: it reads over TCP."""
    monkeypatch.setattr(Home, "same_files", lambda *_: False)


def test_what_holders_have_in_files_alone(tmp_path: Path) -> None:
    files = ("file.enabled=true", "file.bytes=16MiB", "file.admission=always")
    with (
        running(Cluster(tmp_path, 2, "", *SETS, *files)) as two,
        At(two, 0, "files") as here,
        At(two, 1, "files") as there,
    ):
        chains = [here.chain(tokens(30, seed)) for seed in range(5)]
        come_down(two.nodes[0], here, chains, 4 << 20)  # more than twice what memory has
        held = [chain[: here.lookup(chain).blocks] for chain in chains]
        for chain in held:
            eventually(lambda c=chain: there.lookup(c).blocks == len(c))
        cold = [chain for chain in held if len(chain) and set(here.lookup(chain).tiers.tolist()) == {2}]
        assert cold, "nothing is in files alone"
        for chain in cold * 3:  # each pushes the others out of memory, a moment after homes said that they are there
            told = whole(there, chain)
            assert set(told.tiers.tolist()) <= {FAR_MEMORY, FAR_FILE}


def test_over_mutual_tls(tmp_path: Path) -> None:
    ours = Authority(tmp_path, "ours")
    pair = ours.sign("node", server=True, client=True)
    mine = ours.sign("client", client=True)
    shown = TransferConfig(certificate=str(mine.certificate), private_key=str(mine.private_key), peer_ca=str(ours.path))
    with running(Cluster(tmp_path, 2, "", *SETS, *sealed(ours, pair))) as two:
        with At(two, 0, "tls") as here, Client(two.nodes[1].address, transfers=shown) as client:
            there = client.namespace(layout("tls"))
            chain = put_at(here, 1)
            found_within(there, chain, len(chain))
            assert set(whole(there, chain).tiers.tolist()) == {FAR_MEMORY}
        with At(two, 1, "tls") as stranger:  # it has nothing to show: the holder is not read from
            assert got(stranger, chain).blocks == 0


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    limited = f"limits.moving_bytes_max={MOVING * SIZE}"
    with running(Cluster(tmp_path_factory.mktemp("failing"), 3, "", *SETS, limited)) as cluster:
        time.sleep(2 * SETTLE_MS / 1e3)
        yield cluster


def test_a_holder_with_no_more_to_lend_is_passed_over(three: Cluster) -> None:
    with At(three, 0, "busy") as here, At(three, 1, "busy") as there, At(three, 2, "busy") as third:
        other, chain = put_at(here, 1, MOVING), put_at(here, 2, 8)
        found_within(there, other, MOVING)
        found_within(there, chain, 8)
        lease = in_time(lambda: lent(there, other[:16]), bool)
        lease += in_time(lambda: lent(there, other[16:]), bool)
        assert got(there, chain).blocks == 0, "all that one node may have of it is lent"
        put_at(third, 2, 8)
        eventually(lambda: got(there, chain).blocks == 8)
        release(there, lease)
        assert here.clear() and third.clear()


def lent(ns: Namespace, chain: np.ndarray) -> list[int]:
    """The number of a far lease that is kept, of the whole chain."""
    line = ns._channel.current  # type: ignore[attr-defined]
    request = framed.LeaseRequest(
        namespace=ns.digest,
        chain=store.Chain(keys=chain.tobytes()),
        wait_ms=100,
        lease=next(line.numbers),
        carriers=[int(Carrier.TCP)],
        far=True,
        deadline_ms=2000,
    )
    body = ns._channel.call(store.METHOD_LEASE, request.SerializeToString(), times_of(5, None))
    if len(framed.LeaseResponse.FromString(body).offsets) == len(chain):
        return [request.lease]
    release(ns, [request.lease])
    return []


def release(ns: Namespace, leases: list[int]) -> None:
    for number in leases:
        body = framed.ReleaseRequest(lease=number).SerializeToString()
        ns._channel.call(store.METHOD_RELEASE, body, times_of(5, None))


def test_one_of_several_holders_dies_while_all_are_read(three: Cluster) -> None:
    with At(three, 0, "dies") as here, At(three, 1, "dies") as there, At(three, 2, "dies") as third:
        chain = put_at(here, 3, 16)
        put_at(third, 3, 16)
        claimed(three.nodes[1], there, chain, 2)
        killing = threading.Timer(0.02, three.nodes[0].kill)
        killing.start()
        try:
            until = time.monotonic() + 1.5
            while time.monotonic() < until:
                whole(there, chain, deadline_s=3)
        finally:
            killing.join()
            three.nodes[0].start()
            three.meet()
