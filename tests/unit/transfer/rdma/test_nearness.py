"""Which devices are near which memory, on made-up machines."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tests.unit.transfer.fake_sysfs import ROOT_A, ROOT_B, Sysfs
from transfer.rdma.nearness import Nearby, Nearness

NAMES = ("mlx5_0", "mlx5_1", "mlx5_2")


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    """Two sockets; a GPU and two NICs, one of them behind the GPU's switch, on the first."""
    made = Sysfs(tmp_path / "sys")
    made.nic("mlx5_0", ROOT_A, "0000:00:01.0", "0000:01:00.0")
    made.nic("mlx5_1", ROOT_A, "0000:00:02.0", "0000:02:00.0")
    made.nic("mlx5_2", ROOT_B, "0000:80:01.0", "0000:81:00.0", numa=1)
    made.pci(ROOT_A, "0000:00:01.0", "0000:3b:00.0")
    made.nodes("10 21 12", "21 10 31", "12 31 10")
    return made


def never(_address: int, _count: int) -> int | None:
    raise AssertionError("asked in vain")


@pytest.mark.parametrize(
    ("node", "near", "spare"),
    [
        (0, ("mlx5_0", "mlx5_1"), ("mlx5_2",)),
        (1, ("mlx5_2",), ("mlx5_0", "mlx5_1")),
        (2, ("mlx5_0", "mlx5_1"), ("mlx5_2",)),  # no NIC of its own: the table says which node is next
        (9, NAMES, ()),
        (None, NAMES, ()),
    ],
)
def test_host_memory(sysfs: Sysfs, node: int | None, near: tuple[str, ...], spare: tuple[str, ...]) -> None:
    nearby = Nearby(NAMES, sysfs.root, ask=lambda *_: node)
    found = nearby.of_host(4096, 1)
    assert (nearby.alike, found.near, found.spare) == (None, near, spare)
    assert nearby.mask(found) == sum(1 << NAMES.index(name) for name in near)


def test_the_mask_is_of_the_devices_in_their_order(sysfs: Sysfs) -> None:
    nearby = Nearby(("mlx5_2", "mlx5_0"), sysfs.root, ask=lambda *_: 0)
    assert nearby.of_host(0, 1).near == ("mlx5_0",) and nearby.mask(nearby.of_host(0, 1)) == 0b10


def test_device_memory_goes_by_its_switch(sysfs: Sysfs) -> None:
    nearby = Nearby(NAMES, sysfs.root, ask=never)
    assert nearby.of_device("0000:3b:00.0") == Nearness("device 0000:3b:00.0", ("mlx5_0",), ("mlx5_1", "mlx5_2"))
    for unknown in ("", "0000:3c:00.0", "gpu"):
        told = nearby.of_device(unknown)
        assert told.near == NAMES and told.where.startswith("unknown")


def test_where_distances_do_not_differ_nobody_is_asked(sysfs: Sysfs) -> None:
    assert Nearby(NAMES[:2], sysfs.root, ask=never).of_host(0, 1) == Nearness("none is nearer by its node", NAMES[:2])
    assert Nearby(("rxe0", "rxe1"), sysfs.root, ask=never).of_host(0, 1).near == ("rxe0", "rxe1")
    assert Nearby(NAMES[2:], sysfs.root, ask=never).of_host(0, 1).near == NAMES[2:]
    # Of one node, but one is behind the GPU's switch.
    assert Nearby(NAMES[:2], sysfs.root, ask=never).of_device("3b:00.0").near == ("mlx5_0",)


def test_one_that_sysfs_does_not_show_is_not_of_the_others_node(sysfs: Sysfs) -> None:
    found = Nearby(("mlx5_0", "rxe0"), sysfs.root, ask=lambda *_: 0).of_host(0, 1)
    assert (found.near, found.spare) == (("mlx5_0",), ("rxe0",))


def test_all_when_all_are_wanted(sysfs: Sysfs) -> None:
    nearby = Nearby(NAMES, sysfs.root, every=True, ask=never)
    assert nearby.of_host(0, 1).near == nearby.of_device("0000:3b:00.0").near == NAMES


def test_a_kernel_that_does_not_say_is_told(sysfs: Sysfs) -> None:
    def refused(_address: int, _count: int) -> int | None:
        raise OSError(errno.EPERM, "Operation not permitted")

    told = Nearby(NAMES, sysfs.root, ask=refused).of_host(0, 1)
    assert told.near == NAMES and told.where == "unknown: move_pages: Operation not permitted"
