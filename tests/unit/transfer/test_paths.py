"""Which way bytes go between two processes, and the reason told for every faster one. No I/O."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer.offers import Carrier, Home, Lack, Offer, Route
from transfer.paths import Chosen, Path, fabrics, ways
from transfer.topology import Gid, Nic, Place

BOOT = b"b" * 16
HOME = Home(BOOT, 1, 2, 3, started=10, pid=100, uid=1000)
NEIGHBOUR = replace(HOME, pid=200)
ELSEWHERE = Home(b"c" * 16, 1, 2, 3, started=10, pid=100, uid=1000)
ROUTES = (
    Route(Carrier.TCP, "tcp://10.0.0.1:7000"),
    Route(Carrier.LOCAL, "unix:/run/k.sock"),
    Route(Carrier.RDMA, "rdma://10.0.0.1:7001"),
    Route(Carrier.TCP, "tcp://[fd00::1]:7000"),
)
ALL = tuple(Carrier)
HERE = Offer(HOME, fabrics=("roce",), trusted_uids=(1000,))


def peer(home: Home = NEIGHBOUR, **changed: object) -> Offer:
    fields: dict[str, object] = {"routes": ROUTES, "fabrics": ("roce",), "trusted_uids": (1000,), **changed}
    return Offer(home, **fields)  # type: ignore[arg-type]


def tried(here: Offer, there: Offer, has: tuple[Carrier, ...] = ALL) -> list[tuple[str, str]]:
    return [(way.path.value, way.address) for way in ways(here, has, there)[0]]


def reason(path: Path, here: Offer, there: Offer, has: tuple[Carrier, ...] = ALL) -> str:
    found, reasons = ways(here, has, there)
    assert path not in {way.path for way in found}
    return reasons[path]


def test_the_fastest_comes_first_and_every_address_has_its_turn() -> None:
    assert tried(HERE, peer()) == [
        ("host", "unix:/run/k.sock"),
        ("rdma", "rdma://10.0.0.1:7001"),
        ("tcp", "tcp://10.0.0.1:7000"),
        ("tcp", "tcp://[fd00::1]:7000"),
    ]
    assert tried(HERE, peer(HOME))[0] == ("process", "unix:/run/k.sock")
    assert [path for path, _ in tried(HERE, peer(ELSEWHERE))] == ["rdma", "tcp", "tcp"]


def test_every_faster_path_has_its_reason() -> None:
    assert reason(Path.PROCESS, HERE, peer()) == "another process"
    assert reason(Path.HOST, HERE, peer(ELSEWHERE)) == "other host"
    assert "faster" in reason(Path.HOST, HERE, peer(HOME))
    for other in (replace(NEIGHBOUR, mount_namespace=9), replace(NEIGHBOUR, pid_namespace=9)):
        assert "another container" in reason(Path.HOST, HERE, peer(other))
    assert reason(Path.HOST, HERE, peer(), (Carrier.TCP,)) == "no local here"
    assert reason(Path.HOST, HERE, peer(routes=ROUTES[:1])) == "peer offers no local"
    assert "no common RDMA network: roce here, ib:fe80 there" in reason(Path.RDMA, HERE, peer(fabrics=("ib:fe80",)))
    assert reason(Path.TCP, HERE, peer(routes=())) == "peer offers no tcp"


def test_users_must_trust_each_other() -> None:
    other = peer(replace(NEIGHBOUR, uid=2000))
    assert "not the same user: 1000 here, 2000 there" in reason(Path.HOST, HERE, other)
    one_sided = replace(HERE, trusted_uids=(1000, 2000))
    assert "not the same user" in reason(Path.HOST, one_sided, replace(other, trusted_uids=(2000,)))
    assert "not the same user" in reason(Path.HOST, HERE, replace(other, trusted_uids=(1000, 2000)))
    assert tried(one_sided, other)[0][0] == "host"


def test_what_a_side_lacks_is_told_with_its_why() -> None:
    without = replace(HERE, lacks=(Lack(Carrier.RDMA, "pyverbs missing"),), fabrics=())
    assert reason(Path.RDMA, without, peer(), (Carrier.LOCAL, Carrier.TCP)) == "no rdma here: pyverbs missing"
    there = peer(routes=ROUTES[:2], lacks=(Lack(Carrier.RDMA, "no device"),), fabrics=())
    assert reason(Path.RDMA, HERE, there) == "peer offers no rdma: no device"


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:7", "tcp://[::1]:7", "tcp://localhost:7"])
def test_a_loopback_address_of_another_host_is_not_tried(address: str) -> None:
    """Here it would lead to somebody else."""
    offered = {"routes": (Route(Carrier.TCP, address),)}
    assert tried(HERE, peer(**offered)) == [("tcp", address)]
    for home in (ELSEWHERE, replace(NEIGHBOUR, net_namespace=9), Home(BOOT, uid=1000)):
        assert reason(Path.TCP, HERE, peer(home, **offered)) == "peer listens on its own loopback alone"
    rdma = Route(Carrier.RDMA, address.replace("tcp", "rdma"))
    assert reason(Path.RDMA, HERE, peer(ELSEWHERE, routes=(rdma,))) == "peer listens on its own loopback alone"
    assert tried(HERE, peer(routes=(rdma,))) == [("rdma", rdma.address)]
    both = {"routes": (Route(Carrier.TCP, address), ROUTES[0])}
    assert tried(HERE, peer(ELSEWHERE, **both)) == [("tcp", "tcp://10.0.0.1:7000")]


def test_a_choice_is_told_in_one_line() -> None:
    chosen = Chosen(Path.TCP, "tcp://h:1", ((Path.HOST, "other host"), (Path.RDMA, "no rdma here")))
    assert str(chosen) == "tcp; not host: other host; not rdma: no rdma here"


def nic(layer: str, *gids: tuple[str, str], state: str = "ACTIVE") -> Nic:
    listed = tuple(Gid(index, gid, kind, "") for index, (gid, kind) in enumerate(gids))
    return Nic("n", 1, Place((), None), state, layer, 100, "", listed)


def test_fabrics_are_of_active_ports() -> None:
    subnet = ("fe80:0000:0000:0001:0002:c903:00f3:1111", "")
    assert fabrics([nic("InfiniBand", subnet), nic("InfiniBand", subnet)]) == ("ib:fe80:0000:0000:0001",)
    assert fabrics([nic("Ethernet", ("::1", "IB/RoCE v1"), ("::1", "RoCE v2"))]) == ("roce",)
    assert fabrics([nic("Ethernet", ("::1", "IB/RoCE v1")), nic("InfiniBand"), nic("Ethernet")]) == ()
    assert fabrics([nic("Ethernet", ("::1", "RoCE v2"), state="DOWN"), nic("InfiniBand", subnet, state="INIT")]) == ()


FEW = st.sampled_from([0, 1, 2])
HOMES = st.builds(Home, st.sampled_from([bytes(16), BOOT]), FEW, FEW, FEW, FEW, FEW, FEW)
OFFERS = st.builds(
    Offer,
    HOMES,
    st.lists(st.sampled_from([*ROUTES, Route(Carrier.TCP, "tcp://[::1]:7"), Route(Carrier.TCP, "odd")])).map(
        lambda routes: tuple(routes[:8])
    ),
    st.just(()),
    st.sampled_from([(), ("roce",), ("ib:1",)]),
    st.lists(FEW, max_size=3).map(tuple),
)


@given(OFFERS, st.sets(st.sampled_from(Carrier)), OFFERS)
def test_every_path_has_ways_or_a_reason(here: Offer, has: set[Carrier], there: Offer) -> None:
    found, reasons = ways(here, has, there)
    order = list(Path)
    assert [order.index(way.path) for way in found] == sorted(order.index(way.path) for way in found)
    assert {way.path for way in found} | set(reasons) == set(Path)
    assert not {way.path for way in found} & set(reasons) and all(reasons.values())
    for way in found:
        assert way.path.carrier in has and Route(way.path.carrier, way.address) in there.routes
        if way.path in (Path.PROCESS, Path.HOST):
            assert here.home.same_files(there.home)
