"""A node's whole part in the directory, without connections: what to send, what to answer, whom to ask.

    tick     poll(now) -> messages to send; answered(to, message, answer | None, now); wake_at(now)
    a peer   handle(message, now) -> answer
    a lookup locate(ns, keys, now) -> Locating, whose messages go the same way

Messages to this node itself never leave it: poll() applies them, and a caller asks handle() where a Locating names it.
A node that stood still answers AWAY until rejoined() says that its view is of now; one that has just come answers AWAY
to who asks it, until others have told it what it should know. Pure: no clock, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping

from kvstore.directory.announcing import Announcer, Holdings
from kvstore.directory.claims import Claims
from kvstore.directory.homes import SettledView
from kvstore.directory.locating import Locating
from kvstore.directory.messages import Announce, Answer, Bytes, Digest, DigestAnswer, Message, Status, Taken
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.native import ClaimTable, node_word

__all__ = ["Directory"]


class Directory:
    """`table` keeps what others claim; random `hash_seed` in production."""

    def __init__(
        self,
        me: bytes,
        incarnation: int,
        holdings: Holdings,
        table: ClaimTable,
        settings: DirectorySettings | None = None,
    ) -> None:
        self.me = me
        self.settings = settings or DirectorySettings()
        self.view = SettledView(me, self.settings)
        self.claims = Claims(self.view, table)
        self.announcer = Announcer(self.view, incarnation, holdings, self.settings)
        self._spread = node_word(me) & 0xFFFFFFFF
        self._away = False
        self._version = -1

    def view_changed(self, live: Mapping[bytes, int], now: int) -> None:
        """Who answers pings now, and as which incarnation; this node is among them."""
        self.answer_until(0, now)
        self.view.update(live, now)
        self.claims.view_changed(now)

    def stood_still(self, now: int) -> None:
        """It was stopped for longer than others wait for a ping: what it knows is of another time."""
        self._away = True
        self.answer_until(0, now)

    def answer_until(self, until: int, now: int) -> None:
        """Before `until`, and before the view changes, the table itself may answer who asks it, as handle() would."""
        fit = not self._away and self.view.trusts(self.me, now)
        self.claims.table.answer_until(until if fit else 0, self.view.live_word, self.settings.holders_max)

    def rejoined(self, now: int) -> None:
        """Others may have forgotten what it told them, and it may have seen nobody go: it tells them all again."""
        self._away = False
        self.view.distrust_me(now)
        self.announcer.resync()

    def poll(self, now: int) -> list[tuple[bytes, Announce | Digest]]:
        if not self.view.live:
            return []
        self.view.tick(now)
        if self._version != self.view.version:
            self._version = self.view.version
            self.claims.view_changed(now)
        self.claims.tick(now)
        out: list[tuple[bytes, Announce | Digest]] = []
        for to, message in self.announcer.poll(now):
            if to == self.me:
                self.announcer.answered(to, message, self.handle(message, now), now)
            else:
                out.append((to, message))
        return out

    def answered(self, to: bytes, message: Announce | Digest, answer: Answer | None, now: int) -> None:
        """None: no answer came, and none will be believed any more."""
        self.announcer.answered(to, message, answer, now)

    def wake_at(self, now: int) -> int:
        """poll() is due then, or `announce_ms` after something came or went here. At once after view_changed(),
        rejoined() and answered(): what they bring is not in a time told before.
        """
        changes = (self.view.next_change(now), self.claims.next_change())
        return min([self.announcer.next_poll(now), *(at for at in changes if at is not None)])

    def handle(self, message: Message, now: int) -> Answer:
        self.view.tick(now)
        if isinstance(message, Announce):
            return Taken(Status.AWAY) if self._away else self.claims.announce(message)
        if isinstance(message, Digest):
            return DigestAnswer(Status.AWAY) if self._away else self.claims.digest(message)
        fit = not self._away and self.view.trusts(self.me, now)
        return self.claims.nothing(message) if not fit else self.claims.locate(message, self.settings.holders_max)

    def locate(self, ns: bytes, keys: Bytes, now: int) -> Locating:
        """Who else may hold blocks of a chain. Whoever is not settled is not asked, nor does it cost a wait."""
        self.view.tick(now)
        return Locating(
            ns,
            keys,
            self.view.asked.of(ns),
            lambda node: self.view.standing(node, now),
            spread=self._spread,
            view=self.view.live_word,
            hedge_at=now + self.settings.hedge_ms * MS,
            ends_at=now + self.settings.locate_ms_max * MS,
        )
