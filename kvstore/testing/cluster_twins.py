"""Directories, clients and nodes of a cluster that are each wrong in one thing. The simulation must catch every one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kvstore.directory.announcing import Announcer
from kvstore.directory.claims import Claims
from kvstore.directory.directory import Directory
from kvstore.directory.homes import Places, SettledView
from kvstore.directory.locating import Locating
from kvstore.directory.messages import Announce, Digest, Locate, Message, Rows, Status, Taken
from kvstore.testing.models.cluster import ClusterNode, Get

__all__ = [
    "AnswersAtOnce",
    "ForgetsWithdrawals",
    "HomesAtOnce",
    "IgnoresIncarnation",
    "IgnoresSequence",
    "NamesTheDead",
    "NoDigests",
    "NoSecondHome",
    "ServesByKey",
    "TriesAnew",
    "WaitsForAll",
]


class _AnyOrder(Claims):
    def announce(self, message: Announce) -> Taken:
        teller = self._teller(message.node, message.incarnation)
        if isinstance(teller, Status):
            return Taken(teller)
        teller.incarnation, teller.sequence = message.incarnation, message.sequence
        self._apply(teller.number, message)
        return Taken(Status.TAKEN)


class IgnoresSequence(Directory):
    """Takes batches as they come."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.claims = _AnyOrder(self.view, self.claims.table)


class _AnyIncarnation(Claims):
    def announce(self, message: Announce) -> Taken:
        teller = self.tellers.get(message.node)
        if teller is None or teller.incarnation == message.incarnation:
            return super().announce(message)
        teller.incarnation, teller.sequence = message.incarnation, message.sequence
        self._apply(teller.number, message)
        return Taken(Status.TAKEN)


class IgnoresIncarnation(Directory):
    """Takes whoever speaks last for the process that is there now."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.claims = _AnyIncarnation(self.view, self.claims.table)


class _Undigested(Announcer):
    def _plan_sweep(self, now: int) -> None:
        self._digest_at = 1 << 62
        super()._plan_sweep(now)


class NoDigests(Directory):
    """Never finds out what a home has lost."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        former = self.announcer
        self.announcer = _Undigested(self.view, former._incarnation, former._holdings, self.settings)


class _Unsettled(SettledView):
    def tick(self, now: int) -> None:
        if self.live and self.live.keys() != self.asked.members:
            self.asked = Places(self.live, self.settings.width)
        self._tell([self.asked.members])

    def standing(self, node: bytes, now: int) -> int:
        return 2 if node in self.live else 0

    def trusts(self, node: bytes, now: int) -> bool:
        return node in self.live


class HomesAtOnce(Directory):
    """Asks whoever is there now, told or not."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.view = _Unsettled(self.me, self.settings)
        former = self.announcer
        self.claims = Claims(self.view, self.claims.table)
        self.announcer = Announcer(self.view, former._incarnation, former._holdings, self.settings)


class _NoWithdrawals(Announcer):
    def _rows(self, node: bytes, ns: bytes, keys: np.ndarray[Any, np.dtype[np.uint8]]) -> Rows:
        rows = super()._rows(node, ns, keys)
        held = rows.shards != 0
        return Rows(ns, rows.keys[held], rows.shards[held], rows.tiers[held])


class ForgetsWithdrawals(Directory):
    """Says what came, and not what went."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        former = self.announcer
        self.announcer = _NoWithdrawals(self.view, former._incarnation, former._holdings, self.settings)


class _Anew(Announcer):
    def answered(self, node: bytes, message: Announce | Digest, answer: Any, now: int) -> None:
        home = self._homes.get(node)
        super().answered(node, message, answer, now)
        if answer is None and home is not None and home.flight is message and isinstance(message, Announce):
            home.flight = None  # whatever comes next has its sequence
            home.sequence -= 1


class TriesAnew(Directory):
    """A batch that was not answered is given up, and its sequence given to the next."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        former = self.announcer
        self.announcer = _Anew(self.view, former._incarnation, former._holdings, self.settings)


class _OneHome(Announcer):
    def _keepers(self, ns: bytes, keys: Any, told: tuple[Places, ...]) -> dict[bytes, Any]:
        out: dict[bytes, Any] = {}
        for places in told:
            homes = places.of(ns)
            first, _ = homes.of(keys)
            for place in np.unique(first[first >= 0]):
                chosen = first == place
                node = homes.ids[place]
                out[node] = out[node] | chosen if node in out else chosen
        return out


class NoSecondHome(Directory):
    """Tells each key's home alone."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        former = self.announcer
        self.announcer = _OneHome(self.view, former._incarnation, former._holdings, self.settings)


class AnswersAtOnce(Directory):
    """A home that has just come, or stood still, answers as if it knew, and is believed whatever its view."""

    def view_changed(self, live: Mapping[bytes, int], now: int) -> None:
        super().view_changed(live, now)
        self.view.live_word = 0

    def handle(self, message: Message, now: int) -> Any:
        if isinstance(message, Locate):
            return self.claims.locate(message, self.settings.holders_max)
        return super().handle(message, now)


class _Named(Claims):
    def view_changed(self, now: int) -> None:
        super().view_changed(now)
        for teller in self.tellers.values():
            self.table.set_named(teller.number, True)


class NamesTheDead(Directory):
    """Goes on naming who died, until it is forgotten."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.claims = _Named(self.view, self.claims.table)


class _Patient(Locating):
    def timer(self, now: int) -> list[tuple[bytes, Locate]]:
        return []

    def answered(self, message: Locate, answer: Any) -> list[tuple[bytes, Locate]]:
        return [] if answer is None else super().answered(message, answer)


class WaitsForAll(Directory):
    """A lookup that waits until every home has answered."""

    def locate(self, ns: bytes, keys: Any, now: int) -> Locating:
        found = super().locate(ns, keys, now)
        found.__class__ = _Patient
        return found


class ServesByKey(ClusterNode):
    """Gives what has the key, of whatever namespace."""

    def receive(self, sender: bytes, message: object) -> object:
        if isinstance(message, Get):
            for ns, key in sorted(self.holdings.blocks):
                if key == message.key:
                    return self.holdings.read(ns, key, message.shard)
        return super().receive(sender, message)
