"""Which NICs lie near which memory, from sysfs. Pure over a sysfs root: it reads files below it, and nothing else.

  devices/pci0000:00/0000:00:01.0/0000:01:00.0   GPU     distance of the two: the parts of both paths that are not
  devices/pci0000:00/0000:00:01.0/0000:02:00.0   NIC     common, here 1 + 1

Rules
- What sysfs does not say is unknown (None), never a guess and never an error: containers show half of it.
- For memory of a NUMA node the NICs of that node are near. For a device: of the NICs of its node, those at the least
  distance. Where none is of the node: those of the nodes that the kernel's table says are nearest to it. Where the node
  is unknown, all compete. The others are spare.
- The order is total (near, distance, name, port): the same machine gives the same rails at every start.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

__all__ = [
    "Gid",
    "Nic",
    "Place",
    "Ranked",
    "device_at",
    "distance",
    "main_node",
    "nearest",
    "nics",
    "node_distances",
    "nodes_of_pages",
]

_ZERO_GID = "0000:0000:0000:0000:0000:0000:0000:0000"
_PCI = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])")
_MAIN_SHARE = 0.75
_NOWHERE: Mapping[int, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a device is: the parts of its path below the sysfs root (none: it is virtual), and its NUMA node."""

    path: tuple[str, ...]
    numa: int | None


@dataclass(frozen=True, slots=True)
class Gid:
    """An entry in use of a port's table. `kind` as the kernel says it: "IB/RoCE v1" or "RoCE v2"; "" if it does not.
    `netdev` is "" where the entry's network device is of another namespace, or there is none.
    """

    index: int
    gid: str
    kind: str
    netdev: str


@dataclass(frozen=True, slots=True)
class Nic:
    """One port of one RDMA device. `rate_gbps` is 0 where unknown; `netdev` "" without one."""

    name: str
    port: int
    place: Place
    state: str  # the kernel's word, as ACTIVE or DOWN; "" unknown
    link_layer: str  # "Ethernet", "InfiniBand"
    rate_gbps: int
    netdev: str
    gids: tuple[Gid, ...]

    @property
    def active(self) -> bool:
        return self.state == "ACTIVE"


@dataclass(frozen=True, slots=True)
class Ranked:
    """A NIC as seen from some memory. `weight` is what transfer.plan and transfer.rails take."""

    nic: Nic
    near: bool
    distance: int | None  # None: not known, or not asked
    weight: int


def nics(sys: Path) -> tuple[Nic, ...]:
    """All ports of all RDMA devices, in the order of their names."""
    found: list[Nic] = []
    for device in _children(sys / "class" / "infiniband"):
        place = _place(sys, device / "device")
        netdevs = [path.name for path in _children(device / "device" / "net")]
        parent = _text(device / "parent")  # a software device names its network device so
        ports = sorted(int(path.name) for path in _children(device / "ports") if path.name.isdecimal())
        found += [_port(device, number, place, netdevs or ([parent] if parent else [])) for number in ports]
    return tuple(found)


def device_at(sys: Path, pci: str) -> Place | None:
    """A PCI device, as a GPU, by its bus address in any usual spelling. None where there is none of this address.
    Raises ValueError for what is not a bus address.
    """
    match = _PCI.fullmatch(pci.strip().lower())
    if match is None:
        raise ValueError(f"pci must be a bus address as 0000:3b:00.0, not {pci!r}")
    domain, bus, slot, function = match.groups()
    link = sys / "bus" / "pci" / "devices" / f"{int(domain or '0', 16):04x}:{bus}:{slot}.{function}"
    return _place(sys, link) if link.exists() else None


def distance(one: Place, other: Place) -> int | None:
    """The steps between two devices on the bus: parts of either path outside their common beginning. None: unknown."""
    if not one.path or not other.path:
        return None
    common = 0
    for here, there in zip(one.path, other.path, strict=False):
        if here != there:
            break
        common += 1
    return len(one.path) + len(other.path) - 2 * common


def node_distances(sys: Path, node: int) -> dict[int, int]:
    """How far each NUMA node is from this one (10: itself), as the firmware says; {}: it does not."""
    root = sys / "devices" / "system" / "node"
    told = _text(root / f"node{node}" / "distance").split()
    # A row names the nodes that are there, in their order; numbers may be missing among them.
    there = sorted(int(path.name[4:]) for path in _children(root) if re.fullmatch(r"node\d+", path.name))
    if len(told) != len(there) or not all(one.isdecimal() for one in told):
        return {}
    return dict(zip(there, map(int, told), strict=True))


def nearest(
    candidates: Iterable[Nic],
    *,
    numa: int | None = None,
    device: Place | None = None,
    distances: Mapping[int, int] = _NOWHERE,
) -> tuple[Ranked, ...]:
    """NICs for memory of a NUMA node, or of a device (whose node then counts): near ones first, then the spare ones.
    distances: of that node, as `node_distances` tells.
    """
    node = numa if device is None else device.numa
    listed = list(candidates)
    of_node = _of_nearest_node(listed, node, distances)
    steps = {(nic.name, nic.port): None if device is None else distance(nic.place, device) for nic in listed}
    known = [found for nic in of_node if (found := steps[nic.name, nic.port]) is not None]
    least = min(known, default=None)
    ranked = [
        Ranked(
            nic,
            near=nic in of_node and steps[nic.name, nic.port] == least,
            distance=steps[nic.name, nic.port],
            weight=max(1, nic.rate_gbps),
        )
        for nic in listed
    ]
    return tuple(sorted(ranked, key=_order))


def _of_nearest_node(listed: list[Nic], node: int | None, distances: Mapping[int, int]) -> list[Nic]:
    if node is None:
        return listed
    of_node = [nic for nic in listed if nic.place.numa == node]
    if of_node:
        return of_node
    away = {numa: distances[numa] for nic in listed if (numa := nic.place.numa) is not None and numa in distances}
    least = min(away.values(), default=None)
    return [nic for nic in listed if nic.place.numa is not None and away.get(nic.place.numa, -1) == least] or listed


def _order(ranked: Ranked) -> tuple[bool, bool, int, str, int]:
    known = ranked.distance is not None
    return not ranked.near, not known, ranked.distance or 0, ranked.nic.name, ranked.nic.port


# -- where memory lies


def nodes_of_pages(status: Sequence[int]) -> dict[int, int]:
    """Pages a NUMA node, by what move_pages(2) tells of each page; a negative number is a page that lies nowhere."""
    return dict(Counter(node for node in status if node >= 0))


def main_node(nodes: Mapping[int, int]) -> int | None:
    """The node with three quarters of the memory or more. None: it is spread, or lies nowhere."""
    total = sum(nodes.values())
    return next((node for node, held in nodes.items() if held > 0 and held >= _MAIN_SHARE * total), None)


# -- sysfs


def _port(device: Path, number: int, place: Place, netdevs: Sequence[str]) -> Nic:
    port = device / "ports" / str(number)
    gids = _gids(port)
    # A port's own entries name its network device best: a device of two ports has two.
    named = sorted({gid.netdev for gid in gids if gid.netdev})
    rate = re.match(r"\s*(\d+)", _text(port / "rate"))
    return Nic(
        device.name,
        number,
        place,
        state=_text(port / "state").rpartition(":")[2].strip(),
        link_layer=_text(port / "link_layer"),
        rate_gbps=int(rate.group(1)) if rate else 0,
        netdev=next(iter(named), next(iter(netdevs), "")),
        gids=gids,
    )


def _gids(port: Path) -> tuple[Gid, ...]:
    found = []
    entries = sorted((path for path in _children(port / "gids") if path.name.isdecimal()), key=lambda p: int(p.name))
    for entry in entries:
        gid = _text(entry)
        if not gid or gid == _ZERO_GID:
            continue
        attributes = port / "gid_attrs"
        kind = _text(attributes / "types" / entry.name)
        found.append(Gid(int(entry.name), gid, kind, _text(attributes / "ndevs" / entry.name)))
    return tuple(found)


def _place(sys: Path, link: Path) -> Place:
    """Where a link to a device leads."""
    try:
        path = link.resolve(strict=True).relative_to(sys.resolve()).parts
    except (OSError, ValueError, RuntimeError):  # missing, leads out of sysfs, goes round in circles
        return Place((), None)
    numa = _text(link / "numa_node")
    return Place(path, int(numa) if numa.isdecimal() else None)  # -1: the kernel does not know


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    """A small file's content; "" where it cannot be read, as of an entry that is not in use."""
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
