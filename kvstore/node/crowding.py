"""Too many readers of one block at one node: the holder says so and names others, the asking node goes there. Pure.

Rules
- A holder counts leases that other nodes have of each of its blocks. At `leases_per_block_max` the next one is answered
  `busy`, with nodes that may have the block as well: that claim it here, or that have copied it from here.
- The asking node tries those, then the busy ones again for as long as its client lets it wait, at least for BUSY_S:
  then it is a miss. Whoever has waited has no turn before who has just come, so in a crowd it may take long.
- Only what nodes lease is counted: their clients can go elsewhere, and this node's own cannot.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore.directory.locating import Holders
from kvstore.tiers.base import TierKind

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BUSY_S", "Crowd", "Crowds", "Name", "also", "names_of", "one_holder"]

Name = tuple[int, int, bytes]  # namespace handle, shard, first half of the key

BUSY_S: Final = 1.0
PAUSE_S: Final = 0.01
PAUSE_S_MAX: Final = 0.1
OTHERS_MAX: Final = 8  # named in one answer, and remembered of a block
KEPT_MAX: Final = 65_536  # blocks of which it is known who has copied them


def names_of(ns: int, shard: int, keys: NDArray[np.uint8]) -> list[Name]:
    halves = np.ascontiguousarray(keys[:, :16]).view("V16").ravel().tolist()
    return [(ns, shard, bytes(half)) for half in halves]


@dataclass(slots=True)
class Crowd:
    """Of a holder."""

    most: int
    _readers: dict[Name, int] = field(default_factory=dict)
    _kept: OrderedDict[Name, tuple[bytes, ...]] = field(default_factory=OrderedDict)
    turned_away: int = 0

    def enter(self, names: Sequence[Name]) -> Sequence[Name]:
        """As many from the first on as have room; they are to `leave`."""
        readers, most = self._readers, self.most
        for i, name in enumerate(names):
            count = readers.get(name, 0)
            if count >= most:
                self.turned_away += i == 0
                return names[:i]
            readers[name] = count + 1
        return names

    def leave(self, names: Sequence[Name]) -> None:
        for name in names:
            count = self._readers[name] - 1
            if count:
                self._readers[name] = count
            else:
                del self._readers[name]

    def copied(self, names: Sequence[Name], node: bytes) -> None:
        """It has said that it has them itself now."""
        for name in names:
            known = self._kept.pop(name, ())
            self._kept[name] = (*(one for one in known if one != node), node)[-OTHERS_MAX:]
        while len(self._kept) > KEPT_MAX:
            self._kept.popitem(last=False)

    def copies(self, name: Name) -> tuple[bytes, ...]:
        """Who has, the latest last."""
        return self._kept.get(name, ())

    @property
    def blocks(self) -> int:
        """That are being read."""
        return len(self._readers)


@dataclass(slots=True)
class Crowds:
    """Of one lease that is asked for: who was busy, and until when they are asked again."""

    until: float
    busy: set[bytes] = field(default_factory=set)
    _pause_s: float = PAUSE_S

    def pause_s(self, now: float) -> float | None:
        """Nobody else is left: how long to wait before the busy ones are asked again; None: not any more."""
        if not self.busy or now + self._pause_s >= self.until:
            return None
        self.busy.clear()
        pause_s, self._pause_s = self._pause_s, min(PAUSE_S_MAX, 2 * self._pause_s)
        return pause_s


def one_holder(node: bytes, shard: int, count: int) -> Holders:
    """Of blocks that a node has, one does not know where: in files, for all that is known."""
    shards = np.full((1, count), np.uint64(1) << np.uint64(shard), np.uint64)
    return Holders((node,), shards, np.full((1, count), int(TierKind.FILE), np.uint8))


def also(holders: Holders, nodes: Sequence[bytes], shard: int, first: int, end: int) -> Holders:
    """And these, which may have [first, end) of a shard in memory. Those among the holders stay as they are."""
    new = [node for node in dict.fromkeys(nodes) if node not in holders.nodes]
    if not new:
        return holders
    count = holders.shards.shape[1]
    shards, tiers = np.zeros((len(new), count), np.uint64), np.zeros((len(new), count), np.uint8)
    shards[:, first:end] = np.uint64(1) << np.uint64(shard)
    tiers[:, first:end] = int(TierKind.MEMORY)
    return Holders(
        (*holders.nodes, *new), np.concatenate((holders.shards, shards)), np.concatenate((holders.tiers, tiers))
    )
