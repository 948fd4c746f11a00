"""The home's half of the directory: what other nodes claim, and answers to who asks for it.

Batches of a node are taken in the order of their sequence, and only from the incarnation that this node's view has;
what is missing is answered with RESYNC. Who is dead is named no more at once, and forgotten when the view forgets it.
Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kvstore.directory.homes import SettledView
from kvstore.directory.messages import (
    ALL_BUCKETS,
    Announce,
    Digest,
    DigestAnswer,
    Locate,
    LocateAnswer,
    Status,
    Taken,
)
from kvstore.directory.settings import MS
from kvstore.native import ClaimTable, namespace_word

__all__ = ["Claims"]

CROWDED = 0.9  # a table that is fuller keeps losing what it is told again


@dataclass(slots=True)
class Teller:
    """A node that has told something, and how far."""

    number: int  # in the table
    incarnation: int | None = None
    sequence: int = 0


class Claims:
    """`table` is this object's alone."""

    def __init__(self, view: SettledView, table: ClaimTable) -> None:
        self.table = table
        self._view = view
        self.tellers: dict[bytes, Teller] = {}
        self._ids: dict[int, bytes] = {}
        self._outdated: dict[bytes, int] = {}

    def view_changed(self, now: int) -> None:
        for node, teller in list(self.tellers.items()):
            if self._view.remembers(node):
                self.table.set_named(teller.number, node in self._view.live)
                if self._view.live.get(node, teller.incarnation) == teller.incarnation:
                    self._outdated.pop(node, None)
                else:
                    self._outdated.setdefault(node, now + self._view.settings.grace_ms * MS)
            else:
                self._drop(node)

    def tick(self, now: int) -> None:
        """A node that came back may tell other homes only: what its former incarnation told here goes in the end. And
        one that died before it was ever asked leaves the view without changing it.
        """
        for node in [one for one in self.tellers if not self._view.remembers(one)]:
            self._drop(node)
        for node, until in list(self._outdated.items()):
            if now >= until:
                self._drop(node)

    def next_change(self) -> int | None:
        return min(self._outdated.values(), default=None)

    def _drop(self, node: bytes) -> None:
        number = self.tellers.pop(node).number
        self.table.drop_node(number)
        del self._ids[number]
        self._outdated.pop(node, None)

    def announce(self, message: Announce) -> Taken:
        teller = self._teller(message.node, message.incarnation)
        if isinstance(teller, Status):
            return Taken(teller)
        scratch = message.begin == ALL_BUCKETS
        if teller.incarnation == message.incarnation:
            if message.sequence <= teller.sequence:
                return Taken(Status.TAKEN)
            if message.sequence != teller.sequence + 1 and not scratch:
                return Taken(Status.RESYNC)
        elif not scratch:
            return Taken(Status.RESYNC)
        teller.incarnation, teller.sequence = message.incarnation, message.sequence
        self._outdated.pop(message.node, None)
        self._apply(teller.number, message)
        return Taken(Status.TAKEN)

    def _apply(self, number: int, message: Announce) -> None:
        if message.begin:
            self.table.begin(number, message.begin)
        for ns in message.cleared:
            self.table.drop_namespace(number, namespace_word(ns))
        for rows in message.rows:
            self.table.apply(number, namespace_word(rows.ns), rows.keys, rows.shards, rows.tiers)
        if message.end:
            self.table.end(number, message.end)

    def digest(self, message: Digest) -> DigestAnswer:
        teller = self._teller(message.node, message.incarnation)
        if isinstance(teller, Status):
            return DigestAnswer(teller)
        if teller.incarnation != message.incarnation or teller.sequence != message.sequence:
            return DigestAnswer(Status.RESYNC)
        crowded = len(self.table) > CROWDED * self.table.claims_max
        if crowded and self.table.evicted_of(teller.number):
            return DigestAnswer(Status.TAKEN)
        differ = np.flatnonzero(self.table.digests(teller.number) != message.buckets)
        return DigestAnswer(Status.TAKEN, sum(1 << int(bucket) for bucket in differ) & message.valid)

    def locate(self, message: Locate, holders_max: int) -> LocateAnswer:
        word = namespace_word(message.ns)
        counts, numbers, shards, tiers = self.table.locate(word, message.keys, holders_max, message.spread)
        distinct = np.flatnonzero(np.bincount(numbers))  # few of many, and small: sorting them took four times as long
        places = np.zeros(int(distinct[-1]) + 1 if len(distinct) else 0, np.uint16)
        places[distinct] = np.arange(len(distinct))
        nodes = tuple(self._ids[number] for number in distinct.tolist())
        return LocateAnswer(Status.TAKEN, nodes, counts, places[numbers], shards, tiers, self._view.live_word)

    def nothing(self, message: Locate) -> LocateAnswer:
        """The answer of a home that is not fit to be asked."""
        none = np.zeros(0, np.uint8)
        counts = np.zeros(len(message.keys), np.uint8)
        return LocateAnswer(Status.AWAY, (), counts, none.astype(np.uint16), none.astype(np.uint64), none)

    def _teller(self, node: bytes, incarnation: int) -> Teller | Status:
        if self._view.live.get(node) != incarnation:
            return Status.STRANGER
        teller = self.tellers.get(node)
        if teller is None:
            number = self.table.add_node()
            if number < 0:
                return Status.FULL
            self.table.name_node(number, node)
            teller = self.tellers[node] = Teller(number)
            self._ids[number] = node
        return teller
