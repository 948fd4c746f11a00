"""Who is alive, by this node's own pings alone. Pure: `now` is an argument, nothing is sent from here.

Rules
- Only an answer to a ping of ours is a sign of life, and it counts from when the ping was sent. What discovery says
  adds nodes to ask; it takes away none that answers.
- No answer for `dead_after`: dead. A refused connection is an immediate second try; `REFUSALS` of them: dead.
- Whoever is dead is asked for nothing, at once. When homes move is another question (homes.py).
- Who stood still (nobody looked for half of `dead_after`: a stopped process) counts nobody's silence meanwhile, and is
  not `fit` until a majority of those it knew has answered pings sent since. Until then it may be the one that the
  others have given up: their silence began with their last ping before it stopped, so a pause that is shorter than
  `dead_after` is enough for that. Where the clock stands still as well (a suspended machine) no pause is seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

__all__ = ["Change", "Liveness", "Row", "Rules", "State"]

REFUSALS: Final = 3
REFUSED_AGAIN_NS: Final = 50_000_000
DEAD_PING: Final = 2  # the dead are asked so much more seldom
FORGET_NS: Final = 60_000_000_000  # how long a dead node that is listed no more is shown
SECOND_NS: Final = 1_000_000_000


class State(IntEnum):
    """SUSPECT: has not answered lately, or never yet."""

    ALIVE = 0
    SUSPECT = 1
    DEAD = 2


@dataclass(frozen=True, slots=True)
class Rules:
    ping_ns: int
    dead_after_ns: int
    pings_per_second_max: int


@dataclass(frozen=True, slots=True)
class Change:
    address: str
    before: State
    after: State


@dataclass(frozen=True, slots=True)
class Row:
    """for_ns: in this state. rtt_ns: of the last ping that was answered. heard: has ever answered."""

    address: str
    state: State
    for_ns: int
    rtt_ns: int | None
    heard: bool


@dataclass(slots=True)
class _Peer:
    since: int  # of the state
    heard_at: int  # when the last ping was sent that was answered; before any, when it was listed
    due: int
    state: State = State.SUSPECT
    asked: bool = False
    heard: bool = False
    refusals: int = 0
    rtt_ns: int | None = None
    listed: bool = True
    unlisted_at: int = 0


@dataclass(slots=True)
class Liveness:
    rules: Rules
    began: int
    _peers: dict[str, _Peer] = field(default_factory=dict)
    _ticked: int = field(init=False)
    _allowance: float = 1.0
    _allowed_at: int = field(init=False)
    _woke: int | None = None
    _electorate: frozenset[str] = frozenset()
    _voted: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._ticked = self._allowed_at = self.began

    # ---- what is told it ------------------------------------------------------------------------------------------

    def begin(self, now: int) -> None:
        """Ticks begin. What came before was a start, however long it took, and no pause."""
        self._ticked = self._allowed_at = now

    def expect(self, addresses: Iterable[str], now: int) -> None:
        """Who should be there, beside this node."""
        listed = set(addresses)
        for address in listed - self._peers.keys():
            self._peers[address] = _Peer(since=now, heard_at=now, due=now)
        for address, peer in self._peers.items():
            if peer.listed and address not in listed:
                peer.unlisted_at = now
            peer.listed = address in listed

    def forget(self, address: str) -> None:
        """It is this node itself, by another address."""
        self._peers.pop(address, None)

    def hurry(self, address: str, now: int) -> None:
        """There is a reason to ask now: it was heard of."""
        peer = self._peers.get(address)
        if peer is not None and not peer.asked:
            peer.due = now

    def asked(self, address: str, now: int) -> None:
        peer = self._peers[address]
        peer.asked = True
        peer.due = now + self._interval() * (DEAD_PING if peer.state is State.DEAD else 1)

    def answered(self, address: str, now: int, asked_at: int) -> Change | None:
        """The ping that was sent at `asked_at`."""
        peer = self._peers.get(address)
        if peer is None:
            return None
        peer.asked, peer.refusals, peer.heard = False, 0, True
        peer.heard_at, peer.rtt_ns = max(peer.heard_at, asked_at), now - asked_at
        if self._woke is not None and asked_at >= self._woke and address in self._electorate:
            self._voted.add(address)
        if now - peer.heard_at > self._dead_after():
            return None  # it came so late that it says nothing of now
        return self._turn(address, peer, State.ALIVE, now)

    def refused(self, address: str, now: int) -> Change | None:
        """Nobody listens there."""
        peer = self._peers.get(address)
        if peer is None:
            return None
        peer.asked = False
        peer.refusals += 1
        if peer.refusals >= REFUSALS:
            return self._turn(address, peer, State.DEAD, now)
        peer.due = now + REFUSED_AGAIN_NS
        return None

    def unanswered(self, address: str, now: int, *, broken: bool = False) -> None:
        """A ping that came to nothing. broken: a connection that had been there has ended, which asks for a second
        look at once.
        """
        peer = self._peers.get(address)
        if peer is not None:
            peer.asked = False
            if broken and peer.state is not State.DEAD:
                peer.due = now

    # ---- what it decides ------------------------------------------------------------------------------------------

    def due(self, now: int) -> list[str]:
        """Whom to ask now, those that have waited longest first."""
        rate = self.rules.pings_per_second_max
        self._allowance = min(float(rate), self._allowance + rate * (now - self._allowed_at) / SECOND_NS)
        self._allowed_at = now
        waiting = [(peer.due, address) for address, peer in self._peers.items() if not peer.asked and peer.due <= now]
        taken = [address for _, address in sorted(waiting)[: int(self._allowance)]]
        self._allowance -= len(taken)
        return taken

    def tick(self, now: int) -> list[Change]:
        """To be called every few ten milliseconds: a longer gap is taken for a time in which this process stood."""
        gap, self._ticked = now - self._ticked, now
        if gap > self.rules.dead_after_ns // 2:
            self._stood_still(now)
        changes = []
        dead_after = self._dead_after()
        for address, peer in self._peers.items():
            silent = now - peer.heard_at
            if peer.state is not State.DEAD and silent > dead_after:
                changes.append(self._turn(address, peer, State.DEAD, now))
            elif peer.state is State.ALIVE and silent > dead_after // 2:
                changes.append(self._turn(address, peer, State.SUSPECT, now))
        self._drop(now)
        self._judge()
        return [change for change in changes if change is not None]

    def overdue(self, now: int) -> bool:
        """Whether a tick would find that this process stood still: to be asked before others are believed."""
        return now > self.overdue_at

    @property
    def overdue_at(self) -> int:
        """A tick after this would find that this process stood still."""
        return self._ticked + self.rules.dead_after_ns // 2

    @property
    def settled(self) -> bool:
        """Of every node that is expected it is known whether it lives."""
        return all(peer.heard or peer.state is State.DEAD for peer in self._peers.values())

    @property
    def fit(self) -> bool:
        """Whether this node may serve what it holds to others, and take what they announce."""
        return self._woke is None

    @property
    def caught_up(self) -> bool:
        """Whoever could tell this node what it missed while it stood still has: it is `fit`, or those that have not
        answered since are dead.
        """
        if self._woke is None:
            return True
        states = {address: self._peers[address].state for address in self._electorate if address in self._peers}
        return all(address in self._voted or state is State.DEAD for address, state in states.items())

    def state(self, address: str) -> State | None:
        peer = self._peers.get(address)
        return peer.state if peer is not None else None

    def rtt_ns(self, address: str) -> int | None:
        peer = self._peers.get(address)
        return peer.rtt_ns if peer is not None else None

    def rows(self, now: int) -> list[Row]:
        return [
            Row(address, peer.state, now - peer.since, peer.rtt_ns, peer.heard)
            for address, peer in sorted(self._peers.items())
        ]

    # ---- how ------------------------------------------------------------------------------------------------------

    def _interval(self) -> int:
        """Between two pings of a node: `ping_ns`, or longer where there are more than the limit allows for."""
        return max(self.rules.ping_ns, len(self._peers) * SECOND_NS // self.rules.pings_per_second_max)

    def _dead_after(self) -> int:
        """At least three pings long, so that one lost message kills nobody."""
        return max(self.rules.dead_after_ns, 3 * self._interval())

    def _turn(self, address: str, peer: _Peer, state: State, now: int) -> Change | None:
        before = peer.state
        if before is state:
            return None
        peer.state, peer.since = state, now
        return Change(address, before, state)

    def _drop(self, now: int) -> None:
        """Who is neither listed nor alive. One that left first and died then is not kept to be looked at."""
        for address, peer in list(self._peers.items()):
            if peer.listed or peer.state is not State.DEAD:
                continue
            shown = self._dead_after() if peer.unlisted_at <= peer.since else FORGET_NS
            if now - max(peer.since, peer.unlisted_at) > shown:
                del self._peers[address]

    def _stood_still(self, now: int) -> None:
        self._woke = now
        self._voted.clear()
        self._electorate = frozenset(a for a, peer in self._peers.items() if peer.state is not State.DEAD)
        for peer in self._peers.values():
            if peer.state is not State.DEAD:
                peer.heard_at, peer.due = now, min(peer.due, now)

    def _judge(self) -> None:
        if self._woke is None:
            return
        known = self._electorate & self._peers.keys()
        if 2 * (len(self._voted & known) + 1) > len(known) + 1:
            self._woke = None
