"""Asking homes for a chain's holders, and what their answers come to: the longest boundary, and who has which of it.

One message a home, all at once: at most `directory_width`, since a namespace has no more homes. A home that is dead, or
not settled again, is left out for the second one; one that is slow or fails is hedged by the second homes of its keys,
with at most as many messages again. So is a home whose view is not this node's, for what it knows nobody of: a link
between two nodes breaks, and the holder may not have reached this home. Whatever is missing at the end is a miss. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.directory.homes import NamespaceHomes, places_in
from kvstore.directory.messages import PUBLISHING, Bytes, Locate, LocateAnswer, Status, Words
from kvstore.native import NeedKind

__all__ = ["Holders", "Locating", "Run", "longest_boundary"]

Need = tuple[int, int, int]  # shard, NeedKind, blocks
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Run:
    """Blocks [first, first + count) of one shard at one node."""

    node: bytes
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Holders:
    """shards[i, k]: what nodes[i] says that it holds of key k, as a bitmap; tiers[i, k]: 0 where it says nothing."""

    nodes: tuple[bytes, ...]
    shards: npt.NDArray[np.uint64]
    tiers: npt.NDArray[np.uint8]

    def only(self, *, publishing: bool) -> Holders:
        """Without claims of blocks that are still being published, or with them."""
        if publishing or not (self.tiers == PUBLISHING).any():
            return self
        left = self.tiers != PUBLISHING
        return Holders(self.nodes, np.where(left, self.shards, np.uint64(0)), np.where(left, self.tiers, np.uint8(0)))

    def together(self, local: Words | None = None) -> Words:
        """What there is of each key anywhere; `local`: what the asking node holds itself."""
        all_of: Words = np.bitwise_or.reduce(self.shards, axis=0, initial=np.uint64(0))
        return all_of if local is None else all_of | local

    def among(self, nodes: Collection[bytes]) -> Holders:
        """Of these nodes alone: a home may name one that the asking node knows to be dead, or itself."""
        chosen = [i for i, node in enumerate(self.nodes) if node in nodes]
        if len(chosen) == len(self.nodes):
            return self
        return Holders(tuple(self.nodes[i] for i in chosen), self.shards[chosen], self.tiers[chosen])

    def runs(self, shard: int, first: int, end: int, order: Sequence[bytes] = ()) -> list[Run]:
        """[first, end) of a shard cut into runs of one node each, up to the first block that nobody has. The node whose
        run goes on longest has it; of two alike, the one that stands first in `order`.
        """
        count = end - first
        if not self.nodes or not count:
            return []
        ranks = {node: place for place, node in enumerate(order)}
        preferred = sorted(range(len(self.nodes)), key=lambda i: (ranks.get(self.nodes[i], len(ranks)), i))
        has = (self.shards[preferred, first:end] >> np.uint64(shard) & np.uint64(1)).astype(np.bool_)
        # Where each run that goes on here ends, found from behind: one pass, however many runs there are.
        ends = np.where(has, count, np.arange(count))
        ends = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
        best, until = ends.argmax(axis=0), ends.max(axis=0)
        out: list[Run] = []
        at = 0
        while at < count and until[at] > at:
            out.append(Run(self.nodes[preferred[best[at]]], first + at, int(until[at]) - at))
            at = int(until[at])
        return out


def longest_boundary(needs: Iterable[Need], shards: Words) -> int:
    """The longest boundary at which every need holds, of bitmaps a block; no needs: shard 0 of all blocks."""
    count = len(shards)
    good = np.ones(count, np.bool_)  # boundary i + 1
    boundaries = np.arange(1, count + 1)
    for shard, kind, blocks in list(needs) or [(0, int(NeedKind.ALL), 0)]:
        has = (shards >> np.uint64(shard) & np.uint64(1)).astype(np.bool_)
        holes = np.where(has, -1, np.arange(count))
        runs = np.arange(count) - np.maximum.accumulate(holes) if count else boundaries
        wanted = {int(NeedKind.ALL): count, int(NeedKind.LAST): blocks, int(NeedKind.STATE): 1}[int(kind)]
        good &= runs >= np.minimum(wanted, boundaries)
    found = np.flatnonzero(good)
    return int(found[-1]) + 1 if len(found) else 0


@dataclass(slots=True)
class _Asked:
    place: int
    message: Locate
    keys: Places
    waits: bool = True


class Locating:
    """One lookup. start() first; then tell what was answered, what failed, and when hedge_at has come."""

    def __init__(
        self,
        ns: bytes,
        keys: Bytes,
        homes: NamespaceHomes,
        standing: Callable[[bytes], int],
        *,
        spread: int,
        view: int = 0,
        hedge_at: int,
        ends_at: int,
    ) -> None:
        """`standing` of a home: 0 dead, 1 it answers, 2 it has been told what it should know. view: as in answers."""
        self._ns, self._homes, self._spread, self._view = ns, homes, spread, view
        self._keys = np.ascontiguousarray(keys[:, :16])
        first, second = homes.of(keys)
        standings = [standing(node) for node in homes.ids]
        good = np.array([*standings, 0])  # the last: place -1
        if len(set(standings)) > 1:
            swap = good[second] > good[first]
            first, second = np.where(swap, second, first), np.where(swap, first, second)
        self._first, self._second = first, second
        self._usable = good > 0
        self._open = np.ones(len(keys), np.bool_)
        self._asked: list[_Asked] = []
        self._known: dict[bytes, tuple[Words, Bytes]] = {}
        self._hedges_left = len(homes.ids)
        self.hedge_at, self.ends_at = hedge_at, ends_at
        self.messages = 0
        self.hedges = 0

    def start(self) -> list[tuple[bytes, Locate]]:
        keys = np.arange(len(self._first))
        return self._ask(self._first, keys[self._usable[self._first]])

    @property
    def done(self) -> bool:
        return not self._open.any() or not any(one.waits for one in self._asked)

    def answered(self, message: Locate, answer: LocateAnswer | None) -> list[tuple[bytes, Locate]]:
        """What more is to be asked. None: it failed, or its connection did."""
        asked = next(one for one in self._asked if one.message is message)
        asked.waits = False
        keys = asked.keys
        if answer is None or answer.status != Status.TAKEN or len(answer.counts) != len(keys):
            return self._hedge(asked)
        self._open[keys] = False
        rows = np.repeat(keys, answer.counts)
        for number, node in enumerate(answer.nodes):
            chosen = answer.holders == number
            if node not in self._known:
                count = len(self._keys)
                self._known[node] = (np.zeros(count, np.uint64), np.zeros(count, np.uint8))
            shards, tiers = self._known[node]
            shards[rows[chosen]] = answer.shards[chosen]
            tiers[rows[chosen]] = answer.tiers[chosen]
        if answer.view == self._view:
            return []
        self._open[keys[answer.counts == 0]] = True
        return self._hedge(asked)

    def timer(self, now: int) -> list[tuple[bytes, Locate]]:
        """Once hedge_at has come: who has not answered by then is slow."""
        if now >= self.ends_at:
            for one in self._asked:
                one.waits = False
            return []
        if now < self.hedge_at:
            return []
        self.hedge_at = self.ends_at
        out: list[tuple[bytes, Locate]] = []
        for one in list(self._asked):
            if one.waits:
                out += self._hedge(one)
        return out

    def holders(self) -> Holders:
        nodes = tuple(self._known)
        shape = (len(nodes), len(self._keys))
        shards = np.stack([self._known[node][0] for node in nodes]) if nodes else np.zeros(shape, np.uint64)
        tiers = np.stack([self._known[node][1] for node in nodes]) if nodes else np.zeros(shape, np.uint8)
        return Holders(nodes, shards, tiers)

    def _hedge(self, asked: _Asked) -> list[tuple[bytes, Locate]]:
        keys = asked.keys[self._open[asked.keys]]
        keys = keys[(self._first[keys] == asked.place) & self._usable[self._second[keys]]]
        out = self._ask(self._second, keys, self._hedges_left)
        self._first[keys] = -1  # a key is hedged once
        self._hedges_left -= len(out)
        self.hedges += len(out)
        return out

    def _ask(self, whom: npt.NDArray[np.int32], keys: Places, most: int | None = None) -> list[tuple[bytes, Locate]]:
        out: list[tuple[bytes, Locate]] = []
        of = whom[keys]
        for place in places_in(of)[:most]:
            chosen = keys[of == place]
            message = Locate(self._ns, self._keys[chosen], self._spread)
            self._asked.append(_Asked(place, message, chosen))
            out.append((self._homes.ids[place], message))
        self.messages += len(out)
        return out
