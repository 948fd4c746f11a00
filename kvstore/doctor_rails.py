"""What `kvstore doctor` says about which NICs lie near which memory, and so which rails carry whose bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from kvstore.finding import Finding
from transfer.pages import node_of
from transfer.rdma.nearness import Nearness, nearness
from transfer.topology import Nic, device_at, nics, node_distances

_NVIDIA = "0x10de"
_DISPLAYS = ("0x0300", "0x0302")  # PCI classes: VGA, 3D
_PORT = 1


def rails(sysfs: Path, ask: Callable[[int, int], int | None] = node_of) -> list[Finding]:
    """Nothing where there are not two NICs to choose from. ask: transfer.pages.node_of."""
    found = [nic for nic in nics(sysfs) if nic.port == _PORT and nic.active]
    if len(found) < 2:
        return []
    subject = "RDMA rails"
    seen = [*_of_nodes(sysfs, found), *_of_gpus(sysfs, found)]
    differing = [one for one in seen if one.spare]
    if not differing:
        return [Finding(subject, "ok", "all NICs are used: none is nearer to any memory than another")]
    told = "; ".join(f"{one.where}: {', '.join(one.near)}" for one in differing)
    if any(one.where.startswith("node") for one in differing) and (why := _refused(ask)):
        return [
            Finding(
                subject,
                "slow",
                f"{told}; but the kernel does not say where memory lies (move_pages: {why}): all NICs are used for it",
                "containers: --cap-add SYS_NICE, or a seccomp profile that allows move_pages",
            )
        ]
    return [Finding(subject, "ok", f"{told}; others while these are down")]


def _of_nodes(sysfs: Path, found: Sequence[Nic]) -> list[Nearness]:
    names = [path.name for path in (sysfs / "devices/system/node").glob("node*")]
    numbers = sorted(int(name[4:]) for name in names if re.fullmatch(r"node\d+", name))
    devices = [nic.name for nic in found]
    return [
        nearness(devices, found, f"node {one}", numa=one, distances=lambda node: node_distances(sysfs, node))
        for one in numbers
    ]


def _of_gpus(sysfs: Path, found: Sequence[Nic]) -> list[Nearness]:
    devices = [nic.name for nic in found]
    seen = []
    for path in sorted((sysfs / "bus/pci/devices").glob("*")):
        if _text(path / "vendor") == _NVIDIA and _text(path / "class").startswith(_DISPLAYS):
            place = device_at(sysfs, path.name)
            seen.append(
                nearness(
                    devices,
                    found,
                    f"GPU {path.name}",
                    device=place,
                    distances=lambda node: node_distances(sysfs, node),
                )
            )
    return seen


def _refused(ask: Callable[[int, int], int | None]) -> str:
    """Why the kernel does not say where memory lies; "" where it does."""
    page = np.ones(4096, dtype=np.uint8)
    try:
        ask(int(page.ctypes.data), page.nbytes)
    except OSError as error:
        return error.strerror or os.strerror(error.errno or 0)
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
