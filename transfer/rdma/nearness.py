"""Which of our devices lie near some memory, so that its bytes go over their rails (transfer.topology).

Rules
- Rails of near devices carry the bytes; those of spare ones only while no near one can (native/rdma/engine.hpp).
- Where distances do not differ, or are not known, all are near. `every`: all are near, wherever memory lies.
- What is asked costs nothing where the answer is known before: one device, or all of one node.
- Ours only: which of the peer's devices lie near its memory, the peer would have to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer.pages import node_of
from transfer.topology import Nic, Place, device_at, nearest, nics, node_distances

__all__ = ["Nearby", "Nearness", "nearness"]

_PORT = 1  # of a device: as transfer.rdma.verbs uses it


@dataclass(frozen=True, slots=True)
class Nearness:
    """where: the memory lies, for people. near, spare: devices by name. mask: a bit for each near one, by its place."""

    where: str
    near: tuple[str, ...]
    spare: tuple[str, ...] = ()

    def mask(self, names: Sequence[str]) -> int:
        return sum(1 << place for place, name in enumerate(names) if name in self.near)


def nearness(
    names: Sequence[str],
    found: Iterable[Nic],
    where: str,
    *,
    numa: int | None = None,
    device: Place | None = None,
    distances: Callable[[int], dict[int, int]] = lambda _: {},
) -> Nearness:
    """Pure. Of the devices named, `found` on this machine; those that sysfs does not show are at a place unknown."""
    known = {nic.name: nic for nic in found if nic.port == _PORT}
    listed = [known.get(name) or Nic(name, _PORT, Place((), None), "", "", 0, "", ()) for name in names]
    node = numa if device is None else device.numa
    ranked = nearest(listed, numa=numa, device=device, distances=distances(node) if node is not None else {})
    near = {one.nic.name for one in ranked if one.near}
    return Nearness(where, tuple(n for n in names if n in near), tuple(n for n in names if n not in near))


class Nearby:
    """Of one transport: `names` are its devices, in their order. alike: the answer for all of the host's memory, where
    there is only one. Asking may wait a little, as every call of the system's.
    """

    def __init__(
        self,
        names: Sequence[str],
        sysfs: Path,
        *,
        every: bool = False,
        ask: Callable[[int, int], int | None] = node_of,
    ) -> None:
        self._names, self._sysfs, self._ask = tuple(names), sysfs, ask
        self._one = self._all("all are wanted") if every else self._all("there is one") if len(names) == 1 else None
        self._found = nics(sysfs) if self._one is None else ()
        nodes = {nic.name: nic.place.numa for nic in self._found if nic.port == _PORT}
        same = len({nodes.get(name) for name in names}) == 1
        self.alike = self._one or (self._all("none is nearer by its node") if same else None)

    def _all(self, why: str) -> Nearness:
        return Nearness(why, self._names)

    def mask(self, of: Nearness) -> int:
        return of.mask(self._names)

    def of_host(self, address: int, count: int) -> Nearness:
        """Memory whose pages are there."""
        if self.alike is not None:
            return self.alike
        try:
            node = self._ask(address, count)
        except OSError as error:
            return self._all(f"unknown: move_pages: {error.strerror or os.strerror(error.errno or 0)}")
        if node is None:
            return self._all("on no one node")
        return self._of(f"node {node}", numa=node)

    def of_device(self, pci: str) -> Nearness:
        """A device's memory, by its bus address; "": it is not known."""
        if self._one is not None:
            return self._one
        try:
            place = device_at(self._sysfs, pci)
        except ValueError:
            place = None
        if place is None:
            return self._all(f"unknown: sysfs shows no device {pci}".rstrip())
        return self._of(f"device {pci}", device=place)

    def _of(self, where: str, *, numa: int | None = None, device: Place | None = None) -> Nearness:
        return nearness(
            self._names,
            self._found,
            where,
            numa=numa,
            device=device,
            distances=lambda node: node_distances(self._sysfs, node),
        )
