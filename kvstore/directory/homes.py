"""Whom to ask and whom to tell: homes among members, and when they move.

A member that has just come is told at once and asked `settle_ms` later. One that died stays a home for `grace_ms`; its
keys' second homes answer meanwhile. Where several homes are dead there are keys of which both are, and which nobody
would find for so long: then they move after `settle_ms`, in which the new ones are told. What was asked until now is
told for another `settle_ms`, since others may see the change later. Pure: `now` is an argument, in nanoseconds.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvstore.directory.messages import Bytes, Words
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.native import homes_of, node_word, rendezvous

__all__ = ["NamespaceHomes", "Places", "SettledView", "places_in"]

CACHED_MAX = 4_096  # namespaces


@dataclass(frozen=True, slots=True)
class NamespaceHomes:
    """The nodes that keep one namespace's claims."""

    ids: tuple[bytes, ...]
    words: Words

    def of(self, keys: Bytes) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Each key's home and second home, as places in `ids`; -1: there is none."""
        return homes_of(keys, self.words)

    def kept_by(self, node: bytes, keys: Bytes) -> npt.NDArray[np.bool_]:
        if node not in self.ids:
            return np.zeros(len(keys), np.bool_)
        place = self.ids.index(node)
        first, second = self.of(keys)
        kept: npt.NDArray[np.bool_] = (first == place) | (second == place)
        return kept


def places_in(*homes: npt.NDArray[np.int32]) -> list[int]:
    """Which places are among these, ascending; -1 is none."""
    counts = np.bincount(np.concatenate(homes) + 1)
    places: list[int] = np.flatnonzero(counts[1:]).tolist()
    return places


class Places:
    """Homes among one set of members."""

    def __init__(self, members: Iterable[bytes], width: int) -> None:
        self.members = frozenset(members)
        self._ids = sorted(self.members)
        self._words = np.array([node_word(node) for node in self._ids], np.uint64)
        self._width = width
        self._cached: dict[bytes, NamespaceHomes] = {}

    def of(self, ns: bytes) -> NamespaceHomes:
        homes = self._cached.get(ns)
        if homes is None:
            places = rendezvous(ns, self._words, self._width)
            homes = NamespaceHomes(tuple(self._ids[place] for place in places), self._words[places])
            if len(self._cached) >= CACHED_MAX:
                self._cached.clear()
            self._cached[ns] = homes
        return homes


@dataclass(slots=True)
class SettledView:
    """`live`: who answers now, and as which incarnation, this node among them. `asked`: homes of lookups. `told`: homes
    of announcements, under any view that somebody may still ask by; `version` counts its changes. live_word: the same
    at all nodes whose pings the same nodes answer.
    """

    me: bytes
    settings: DirectorySettings
    live: dict[bytes, int] = field(default_factory=dict)
    live_word: int = 0
    version: int = 0
    asked: Places = field(init=False)
    told: tuple[Places, ...] = field(init=False)
    _since: dict[bytes, int | None] = field(default_factory=dict)  # it answers since; None: as long as this node knows
    _died: dict[bytes, int] = field(default_factory=dict)
    _former: list[tuple[Places, int]] = field(default_factory=list)
    _begun: bool = False
    _idle_until: float = 0.0  # nothing changes by time before

    def __post_init__(self) -> None:
        self.asked = Places((), self.settings.width)
        self.told = (self.asked,)

    def update(self, live: Mapping[bytes, int], now: int) -> None:
        for node, incarnation in live.items():
            if self.live.get(node) != incarnation:
                # At its own start a node takes the others as it finds them, and itself as new.
                self._since[node] = None if not self._begun and node != self.me else now
            self._died.pop(node, None)
        for node in self.live.keys() - live.keys():
            self._since.pop(node, None)
            self._died[node] = now
        self.live = dict(live)
        self.live_word = functools.reduce(operator.xor, map(node_word, live), 0)
        if not self._begun:
            others = [node for node in live if node != self.me]
            self.asked = Places(others or [self.me], self.settings.width)
            self._begun = True
        self._idle_until = 0.0
        self.tick(now)

    def tick(self, now: int) -> None:
        if now < self._idle_until:
            return
        settle, grace = self.settings.settle_ms * MS, self._grace()
        members = set(self.asked.members)
        members |= {node for node in self.live if self.trusts(node, now)}
        members -= {node for node, died in self._died.items() if now - died >= grace}
        remembered = self.settings.grace_ms * MS
        self._died = {node: died for node, died in self._died.items() if now - died < max(grace, remembered)}
        self._former = [(places, until) for places, until in self._former if until > now]
        if members != self.asked.members:
            self._former.append((self.asked, now + settle))
            self.asked = Places(members, self.settings.width)
        early = max(grace - settle, 0)
        coming = members | self.live.keys()
        coming -= {node for node, died in self._died.items() if now - died >= early}
        self._tell([self.asked.members, frozenset(coming), *(places.members for places, _ in self._former)])
        change = self.next_change(now)
        self._idle_until = float("inf") if change is None else change

    def _grace(self) -> int:
        """How long a dead home stays one."""
        dead = sum(node in self._died for node in self.asked.members)
        least = min(self.settings.settle_ms, self.settings.grace_ms)
        return (self.settings.grace_ms if dead < 2 else least) * MS

    def _tell(self, sets: list[frozenset[bytes]]) -> None:
        wanted = list(dict.fromkeys(sets))
        if [places.members for places in self.told] == wanted:
            return
        known = {places.members: places for places in (*self.told, self.asked, *(p for p, _ in self._former))}
        self.told = tuple(known.get(each) or Places(each, self.settings.width) for each in wanted)
        self.version += 1

    def distrust_me(self, now: int) -> None:
        """What this node knows as a home is of another time: it is as if it had come now."""
        self._since[self.me] = now
        self._idle_until = 0.0

    def trusts(self, node: bytes, now: int) -> bool:
        """It answers, and has for long enough to have been told what it should know."""
        if node not in self.live:
            return False
        since = self._since[node]
        return since is None or now - since >= self.settings.settle_ms * MS

    def standing(self, node: bytes, now: int) -> int:
        """Of a home: 0 it is dead, 1 it answers, 2 it is trusted."""
        return 0 if node not in self.live else 2 if self.trusts(node, now) else 1

    def remembers(self, node: bytes) -> bool:
        """It is alive, or not dead for long."""
        return node in self.live or node in self._died

    def next_change(self, now: int) -> int | None:
        """When tick() may come to something new."""
        settle, grace = self.settings.settle_ms * MS, self._grace()
        times = [since + settle for since in self._since.values() if since is not None]
        remembered = self.settings.grace_ms * MS
        times += [
            at
            for died in self._died.values()
            for at in (died + max(grace - settle, 0), died + grace, died + remembered)
        ]
        times += [until for _, until in self._former]
        return min((at for at in times if at > now), default=None)
