"""Sysfs trees as the kernel lays them out: PCI devices, RDMA ports, NUMA nodes."""

from __future__ import annotations

from pathlib import Path

ROOT_A, ROOT_B = "pci0000:00", "pci0000:80"
ZERO = "0000:0000:0000:0000:0000:0000:0000:0000"
LOCAL = "fe80:0000:0000:0000:0000:00ff:fe00:0001"
MAPPED = "0000:0000:0000:0000:0000:ffff:0a00:0001"


class Sysfs:
    """A sysfs tree under a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bus" / "pci" / "devices").mkdir(parents=True)

    def pci(self, *path: str, numa: int | None = 0) -> Path:
        device = self.root / "devices" / Path(*path)
        device.mkdir(parents=True, exist_ok=True)
        if numa is not None:
            (device / "numa_node").write_text(f"{numa}\n")
        link = self.root / "bus" / "pci" / "devices" / path[-1]
        if not link.exists():
            link.symlink_to(Path("../../../devices", *path))
        return device

    def nic(
        self, name: str, *path: str, numa: int | None = 0, ports: int = 1, rate: str = "100 Gb/sec (4X EDR)"
    ) -> None:
        device = self.pci(*path, numa=numa)
        shown = device / "infiniband" / name
        shown.mkdir(parents=True)
        (shown / "device").symlink_to("../..")
        for number in range(1, ports + 1):
            self.port(shown, number, f"eth_{name}_{number}", rate)
        self.list(name, shown)

    def list(self, name: str, shown: Path) -> None:
        folder = self.root / "class" / "infiniband"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(Path("../..") / shown.relative_to(self.root))

    def port(self, shown: Path, number: int, netdev: str, rate: str) -> None:
        port = shown / "ports" / str(number)
        for index, (gid, kind, ndev) in enumerate(
            [(LOCAL, "IB/RoCE v1", netdev), (LOCAL, "RoCE v2", netdev), (MAPPED, "RoCE v2", netdev), (ZERO, None, None)]
        ):
            self._write(port / "gids" / str(index), gid)
            if kind is not None:
                self._write(port / "gid_attrs" / "types" / str(index), kind)
                self._write(port / "gid_attrs" / "ndevs" / str(index), str(ndev))
        for name, text in (("state", "4: ACTIVE"), ("link_layer", "Ethernet"), ("rate", rate)):
            self._write(port / name, text)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")

    def nodes(self, *distances: str) -> None:
        """NUMA nodes 0 and up, each with its row of the table."""
        for number, row in enumerate(distances):
            self._write(self.root / "devices" / "system" / "node" / f"node{number}" / "distance", row)
