"""What a draining node hands on, and to whom: slots as runs in chain order, and nodes in the order of asking. Pure.

A run is a stretch of one chain: each block's parent is the one before it. Runs of a family go to the same node, so that
a prompt stays together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvstore.node.demotion import chains

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Run", "by_rendezvous", "first_claimed", "order", "runs_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """family: what its place is chosen by. parent b"": none, or none known."""

    ns: int
    shard: int
    family: bytes
    keys: NDArray[np.uint8]
    parent: bytes
    position: int

    def cut(self, blocks: int) -> Iterator[Run]:
        for at in range(0, len(self.keys), blocks):
            yield self.rest(at, at + blocks)

    def rest(self, first: int, end: int | None = None) -> Run:
        parent = self.keys[first - 1].tobytes() if first else self.parent
        return Run(self.ns, self.shard, self.family, self.keys[first:end], parent, self.position + first)


def runs_of(
    ns: NDArray[np.uint32],
    shards: NDArray[np.uint16],
    keys: NDArray[np.uint8],
    parents: NDArray[np.uint8],
    positions: NDArray[np.uint32],
) -> list[Run]:
    """Of slots, one a row: family by family, each from its beginning."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, name in enumerate(zip(ns.tolist(), shards.tolist(), strict=True)):
        groups.setdefault(name, []).append(i)
    out: list[Run] = []
    for (handle, shard), members in groups.items():
        names = [keys[i].tobytes() for i in members]
        above = [parents[i].tobytes() for i in members]
        found = chains(names, above)
        root: dict[bytes, bytes] = {}  # of each block, the first that is known of its chain
        places = {name: place for place, name in enumerate(names)}
        for run in sorted(found, key=lambda run: int(positions[members[run[0]]])):
            first, parent = names[run[0]], above[run[0]]
            family = root.get(parent, parent if any(parent) and parent not in places else first)
            for place in run:
                root[names[place]] = family
            picked = [members[place] for place in run]
            out.append(
                Run(
                    handle,
                    shard,
                    family,
                    np.ascontiguousarray(keys[picked]),
                    parent if any(parent) else b"",
                    int(positions[picked[0]]),
                )
            )
    return sorted(out, key=lambda run: (run.ns, run.shard, run.family, run.position))


def order(family: bytes, wanted_bytes: int, rooms: Mapping[bytes, int]) -> list[bytes]:
    """Nodes as they are asked: by rendezvous those that have room, then the others, those with most of it first. rooms:
    bytes that are free at each.
    """
    turns = by_rendezvous(family, rooms)
    roomy = [node for node in turns if rooms[node] >= wanted_bytes]
    return roomy + sorted((node for node in turns if rooms[node] < wanted_bytes), key=lambda node: -rooms[node])


def by_rendezvous(family: bytes, nodes: Iterable[bytes]) -> list[bytes]:
    """All of them, the highest weight for this family first."""
    return sorted(nodes, key=lambda node: hashlib.sha256(family + node).digest(), reverse=True)


def first_claimed(claims: NDArray[np.bool_]) -> int:
    """How many blocks from the first on nobody claims."""
    return int(claims.argmax()) if claims.any() else len(claims)
