"""Topology read from made-up sysfs trees: where NICs and GPUs hang, and which NICs are near."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.transfer.fake_sysfs import LOCAL, MAPPED, ROOT_A, ROOT_B, Sysfs
from transfer.topology import (
    Nic,
    Place,
    device_at,
    distance,
    main_node,
    nearest,
    nics,
    node_distances,
    nodes_of_pages,
)


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def at(path: str, numa: int | None = 0) -> Place:
    return Place(tuple(path.split("/")) if path else (), numa)


def card(name: str, place: Place, rate: int = 100) -> Nic:
    return Nic(name, 1, place, "ACTIVE", "Ethernet", rate, "", ())


def test_a_machine_without_rdma_has_no_nics(tmp_path: Path) -> None:
    assert nics(tmp_path) == ()
    (tmp_path / "class" / "infiniband").mkdir(parents=True)
    assert nics(tmp_path) == ()


def test_ports_are_read_as_the_kernel_shows_them(sysfs: Sysfs) -> None:
    sysfs.nic("mlx5_1", ROOT_B, "0000:80:01.0", "0000:81:00.0", numa=1, rate="400 Gb/sec (4X NDR)")
    sysfs.nic("mlx5_0", ROOT_A, "0000:00:01.0", "0000:01:00.0", ports=2)
    first, second, other = nics(sysfs.root)
    assert [(nic.name, nic.port) for nic in (first, second, other)] == [("mlx5_0", 1), ("mlx5_0", 2), ("mlx5_1", 1)]
    assert other.place == Place(("devices", ROOT_B, "0000:80:01.0", "0000:81:00.0"), 1)
    assert (other.rate_gbps, other.link_layer, other.state, other.active) == (400, "Ethernet", "ACTIVE", True)
    assert (first.netdev, second.netdev) == ("eth_mlx5_0_1", "eth_mlx5_0_2")
    assert [(gid.index, gid.gid, gid.kind) for gid in first.gids] == [
        (0, LOCAL, "IB/RoCE v1"),
        (1, LOCAL, "RoCE v2"),
        (2, MAPPED, "RoCE v2"),
    ]


def test_what_sysfs_does_not_say_is_unknown(sysfs: Sysfs) -> None:
    sysfs.nic("mlx5_0", ROOT_A, "0000:01:00.0", numa=-1)
    soft = sysfs.root / "devices" / "virtual" / "infiniband" / "rxe0"
    soft.mkdir(parents=True)
    (soft / "parent").write_text("veth0\n")
    port = soft / "ports" / "1"
    (port / "gids" / "0").mkdir(parents=True)  # reads fail, as of an entry that is not in use
    (port / "state").write_text("1: DOWN\n")
    sysfs.list("rxe0", soft)
    empty = sysfs.root / "devices" / "virtual" / "infiniband" / "odd"
    empty.mkdir()
    sysfs.list("odd", empty)
    hardware, software = nics(sysfs.root)
    assert hardware.place.numa is None
    assert (software.name, software.place, software.netdev, software.gids) == ("rxe0", Place((), None), "veth0", ())
    assert (software.state, software.active, software.rate_gbps, software.link_layer) == ("DOWN", False, 0, "")


def test_a_link_that_leads_out_or_in_circles_is_unknown(sysfs: Sysfs, tmp_path: Path) -> None:
    for name, target in (("out", tmp_path), ("circle", Path("device")), ("nowhere", Path("missing"))):
        shown = sysfs.root / "devices" / name
        (shown / "ports" / "1").mkdir(parents=True)
        (shown / "device").symlink_to(target)
        sysfs.list(name, shown)
    assert [nic.place for nic in nics(sysfs.root)] == [Place((), None)] * 3


def test_a_gpu_is_found_by_any_spelling_of_its_address(sysfs: Sysfs) -> None:
    sysfs.pci(ROOT_A, "0000:00:01.0", "0000:3b:00.0", numa=1)
    place = Place(("devices", ROOT_A, "0000:00:01.0", "0000:3b:00.0"), 1)
    for spelling in ("0000:3b:00.0", "00000000:3B:00.0", "3b:00.0", " 0000:3B:00.0\n"):
        assert device_at(sysfs.root, spelling) == place
    assert device_at(sysfs.root, "0000:3c:00.0") is None
    for wrong in ("", "gpu0", "../0000:3b:00.0", "0000:3b:00", "0000:3b:00.9"):
        with pytest.raises(ValueError, match="pci"):
            device_at(sysfs.root, wrong)


def test_distance_is_what_is_not_common() -> None:
    switch = "devices/pci0000:00/0000:00:01.0/0000:01:00.0"
    assert distance(at(f"{switch}/a"), at(f"{switch}/b")) == 2
    assert distance(at(f"{switch}/a"), at("devices/pci0000:00/0000:00:02.0/c")) == 5
    assert distance(at(f"{switch}/a"), at("devices/pci0000:80/d")) == 6
    assert distance(at(f"{switch}/a"), at(f"{switch}/a")) == 0
    assert distance(at(""), at(switch)) is None


def test_memory_prefers_the_nics_of_its_node() -> None:
    cards = [card("b", at("x/1", 1), 200), card("c", at("x/2", 0)), card("a", at("x/3", 1))]
    ranked = nearest(cards, numa=1)
    assert [(r.nic.name, r.near, r.weight) for r in ranked] == [("a", True, 100), ("b", True, 200), ("c", False, 100)]
    for node in (7, None):
        assert all(r.near for r in nearest(cards, numa=node)), "nobody is of the node: all compete"
    assert nearest([], numa=0) == ()
    assert nearest([card("v", at(""), 0)])[0].weight == 1


def test_a_gpu_prefers_what_hangs_on_its_switch() -> None:
    gpu = at("devices/p0/s0/gpu", 0)
    cards = [
        card("far", at("devices/p1/s9/n", 1)),
        card("node", at("devices/p0/s1/n", 0)),
        card("switch", at("devices/p0/s0/n", 0)),
        card("virtual", at("", None)),
    ]
    ranked = nearest(cards, device=gpu)
    assert [(r.nic.name, r.near, r.distance) for r in ranked] == [
        ("switch", True, 2),
        ("node", False, 4),
        ("far", False, 6),
        ("virtual", False, None),
    ]
    # A NIC of the node is preferred even where one of another node seems nearer on the bus.
    odd = [card("close", at("devices/p0/s0/n", 1)), card("of_node", at("devices/p0/s1/s2/n", 0))]
    assert [r.nic.name for r in nearest(odd, device=gpu) if r.near] == ["of_node"]
    assert all(r.near for r in nearest(odd, device=at("", None)))


PARTS = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5).map(tuple)
PLACES = st.builds(Place, PARTS | st.just(()), st.sampled_from([None, 0, 1]))


@given(PLACES, PLACES, PLACES)
def test_distances_are_those_of_a_tree(one: Place, two: Place, three: Place) -> None:
    there = distance(one, two)
    assert there == distance(two, one)
    if not one.path or not two.path:
        assert there is None
        return
    assert there is not None and (there == 0) == (one.path == two.path)
    if three.path:
        assert there <= (distance(one, three) or 0) + (distance(three, two) or 0)


@given(st.lists(PLACES, max_size=5), PLACES, st.booleans(), st.randoms())
def test_the_order_is_of_the_machine_and_not_of_the_listing(
    places: list[Place], where: Place, device: bool, chance: object
) -> None:
    cards = [card(f"n{i}", place) for i, place in enumerate(places)]
    wanted = {"device": where} if device else {"numa": where.numa}
    ranked = nearest(cards, **wanted)  # type: ignore[arg-type]
    chance.shuffle(cards)  # type: ignore[attr-defined]
    assert nearest(cards, **wanted) == ranked  # type: ignore[arg-type]
    assert sorted(r.nic.name for r in ranked) == sorted(nic.name for nic in cards)
    assert [r.near for r in ranked] == sorted((r.near for r in ranked), reverse=True)
    assert bool(cards) == any(r.near for r in ranked), "somebody is always near"
    of_node = {nic.name for nic in cards if where.numa is not None and nic.place.numa == where.numa}
    near = {r.nic.name for r in ranked if r.near}
    assert not of_node or near <= of_node
    assert device or near == (of_node or {nic.name for nic in cards})


@settings(max_examples=25)
@given(st.dictionaries(PARTS, st.sampled_from([None, -1, 0, 1]), max_size=5))
def test_what_is_written_is_read(tree: dict[tuple[str, ...], int | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = Sysfs(Path(folder) / "sys")
        for i, (path, numa) in enumerate(tree.items()):
            made.nic(f"n{i}", ROOT_A, *(f"{part}{depth}" for depth, part in enumerate(path)), f"nic{i}", numa=numa)
        read = nics(made.root)
    assert [nic.name for nic in read] == [f"n{i}" for i in range(len(tree))]
    for nic, numa in zip(read, tree.values(), strict=True):
        assert nic.place.numa == (None if numa == -1 else numa)
    for (one, here), (two, there) in itertools.combinations(zip(read, tree, strict=True), 2):
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(here, there, strict=False)))
        assert distance(one.place, two.place) == len(here) + len(there) + 2 - 2 * common


# -- where memory lies


def test_the_main_node_has_three_quarters() -> None:
    assert nodes_of_pages([1, 0, 1, -2, -14]) == {0: 1, 1: 2}
    assert main_node({0: 1, 1: 3}) == 1
    assert main_node({0: 1, 1: 2}) is None and main_node({0: 5, 1: 5}) is None
    assert main_node({0: 0}) is None and main_node({}) is None


def test_without_a_nic_of_its_own_the_nearest_node_counts(sysfs: Sysfs) -> None:
    sysfs.nodes("10 12 32", "12 10 32", "32 32 10")
    cards = [card("a", at("x/1", 0)), card("b", at("x/2", 2)), card("v", at("", None))]
    distances = node_distances(sysfs.root, 1)
    assert distances == {0: 12, 1: 10, 2: 32}
    assert [r.nic.name for r in nearest(cards, numa=1, distances=distances) if r.near] == ["a"]
    assert [r.nic.name for r in nearest(cards, numa=2, distances=node_distances(sysfs.root, 2)) if r.near] == ["b"]
    assert all(r.near for r in nearest(cards, numa=1)), "no table: nobody is nearer"
    assert all(r.near for r in nearest([cards[2]], numa=1, distances=distances)), "no NIC is of a node"
    (sysfs.root / "devices/system/node/node1/distance").write_text("10 12\n")
    assert node_distances(sysfs.root, 1) == {} and node_distances(sysfs.root, 7) == {}
