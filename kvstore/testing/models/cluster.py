"""A node of a simulated cluster, and a client that looks up at it and gets from whom it names.

The directory in it is the real one, and so is the claim table. What a node holds, its connections, pings and clients
are models. A node that is killed may come back with what it held, or with nothing, as another incarnation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from kvstore.directory.directory import Directory
from kvstore.directory.locating import Locating
from kvstore.directory.messages import Announce, Answer, Digest, Locate, LocateAnswer, Status
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.native import ClaimTable
from kvstore.testing.models.holdings import HoldingsModel, Name, content, keys_array
from kvstore.testing.network import Network
from kvstore.testing.world import Broken, World

__all__ = ["Asking", "Believing", "ClusterNode", "Get"]

CALL_MS = 400
GET_MS = 300
LOOKUP_SLACK_MS = 20


@dataclass(frozen=True, slots=True)
class Get:
    """Of one shard, from a holder: answered with its content, or None."""

    ns: bytes
    key: bytes
    shard: int


@dataclass(slots=True)
class Judge:
    """What the simulation wants to be told of."""

    announced: Callable[[ClusterNode, Announce, bool], None]
    located: Callable[[Asking], None]


class ClusterNode:
    """`kind`: the Directory, or a faulty twin of it."""

    def __init__(
        self,
        world: World,
        network: Network,
        name: bytes,
        settings: DirectorySettings,
        kind: type[Directory],
        judge: Judge,
        log_max: int,
    ) -> None:
        self.world, self.network, self.name = world, network, name
        self._settings, self._kind, self._judge = settings, kind, judge
        self.holdings = HoldingsModel(log_max)
        self.running = False
        self.stopped = False
        self.fit = True  # it has not stood still, or has heard the others since
        self.started_at = self.killed_at = 0
        self.incarnation = 0
        self.directory: Directory
        self.heard: dict[bytes, tuple[int, int]] = {}  # when, and the incarnation
        self._kept: list[Callable[[], None]] = []
        self._due: int | None = None

    def __repr__(self) -> str:
        return self.name[:2].decode()

    # ---- its life

    def start(self, *, wiped: bool) -> None:
        self.incarnation = self.world.rng.getrandbits(64)
        self.running, self.stopped, self.fit = True, False, True
        self.started_at = self.world.now
        if wiped:
            self.holdings = HoldingsModel(self.holdings.log_max)
        self.holdings.restarted(self.world.now)
        table = ClaimTable(self._settings.claims_max, 1)
        self.directory = self._kind(self.name, self.incarnation, self.holdings, table, self._settings)
        self.heard.clear()
        self._due = None
        self.network.parties[self.name] = self
        self.world.note(str(self), f"starts as {self.incarnation:x}, holds {len(self.holdings.blocks)}")

    def kill(self) -> None:
        self.running = False
        self.killed_at = self.world.now
        self._kept.clear()
        self.world.note(str(self), "is killed")

    def stop(self) -> None:
        self.stopped = True
        self.world.note(str(self), "is stopped")

    def wake(self) -> None:
        """What had arrived is handled after it knows that it stood still."""
        if not (self.running and self.stopped):
            return
        self.stopped, self.fit = False, False
        self.world.note(str(self), "goes on")
        self.directory.stood_still(self.world.now)
        kept, self._kept = self._kept, []
        for call in kept:
            call()
        self.poll()

    def deliver(self, call: Callable[[], None]) -> None:
        if self.running and self.stopped:
            self._kept.append(lambda: self.deliver(call))
        elif self.running:
            call()

    # ---- its directory

    def see(self, live: dict[bytes, int]) -> None:
        if live != self.directory.view.live:
            self.world.note(str(self), f"sees {len(live)} alive")
            self.directory.view_changed(live, self.world.now)
            self.poll()

    def rejoined(self) -> None:
        """It has heard a majority since it stood still. It looks at once, as a node does: where nobody seemed to come
        or go meanwhile, nothing else makes it tell again those that have forgotten it.
        """
        self.fit = True
        self.directory.rejoined(self.world.now)
        self.poll()

    def changed(self) -> None:
        """Something came or went here."""
        self._wake_by(self.world.now + self._settings.announce_ms * MS)

    def poll(self) -> None:
        if not self.running or self.stopped:
            return
        now = self.world.now
        incarnation = self.incarnation
        for to, message in self.directory.poll(now):
            self._send(to, message, incarnation)
        self._wake_by(self.directory.wake_at(now))

    def _send(self, to: bytes, message: Announce | Digest, incarnation: int) -> None:
        def done(answer: object) -> None:
            def tell() -> None:
                if self.incarnation == incarnation:
                    self.directory.answered(to, message, answer, self.world.now)  # type: ignore[arg-type]
                    self.poll()

            self.deliver(tell)

        self.network.call(self.name, to, message, self.world.now + CALL_MS * MS, done)

    def _wake_by(self, when: int) -> None:
        if self._due is not None and self._due <= when:
            return
        self._due = when
        incarnation = self.incarnation

        def due() -> None:
            if self.incarnation == incarnation and self._due == when:
                self._due = None
                self.deliver(self.poll)

        self.world.at(max(when, self.world.now + 1), due)

    def receive(self, sender: bytes, message: object) -> object:
        if isinstance(message, Get):
            return self.holdings.read(message.ns, message.key, message.shard)
        if isinstance(message, Announce):
            self._judge.announced(self, message, True)
        assert isinstance(message, Announce | Digest | Locate)
        answer = self.directory.handle(message, self.world.now)
        if isinstance(message, Announce):
            self._judge.announced(self, message, False)
        return answer


@dataclass(slots=True, eq=False)
class Asking:
    """A client of a node: one lookup, then a get of each key from those named. `found`: holders named, by key."""

    node: ClusterNode
    ns: bytes
    keys: list[bytes]
    judge: Judge
    began: int = 0
    locating: Locating = field(init=False)
    first_wave: int = 0
    found: dict[bytes, dict[bytes, int]] = field(default_factory=dict)
    got: int = 0
    missed: int = 0
    done: bool = False
    waiting: int = 0

    def start(self) -> None:
        world = self.node.world
        self.began = world.now
        self.locating = self.node.directory.locate(self.ns, keys_array(self.keys), world.now)
        asked = self.locating.start()
        self.first_wave = len(asked)
        self._ask(asked)
        for at in (self.locating.hedge_at, self.locating.ends_at):
            world.at(at, self._timer)

    def _timer(self) -> None:
        if not self.done:
            self._ask(self.locating.timer(self.node.world.now))

    def _ask(self, asked: list[tuple[bytes, Locate]]) -> None:
        world, node = self.node.world, self.node
        for to, message in asked:
            if to == node.name:
                self._answered(message, node.directory.handle(message, world.now))
            else:
                deadline = self.locating.ends_at
                node.network.call(node.name, to, message, deadline, lambda a, m=message: self._answered(m, a))  # type: ignore[misc]
        if self.locating.done and not self.done:
            self._located()

    def _answered(self, message: Locate, answer: Answer | object) -> None:
        if self.done:
            return
        said = answer if isinstance(answer, LocateAnswer) else None
        more = self.locating.answered(message, said)
        if said is not None and said.status == Status.AWAY:
            self.node.world.note(str(self.node), "is told: away")
        self._ask(more)

    def _located(self) -> None:
        self.done = True
        holders = self.locating.holders()
        for place, key in enumerate(self.keys):
            named = {node: int(holders.shards[i, place]) for i, node in enumerate(holders.nodes)}
            self.found[key] = {node: shards for node, shards in named.items() if shards}
        self.judge.located(self)
        if self.node.running and not self.node.stopped:
            for key in self.keys:
                self._get(key)

    def _get(self, key: bytes) -> None:
        for holder, shards in self.found[key].items():
            shard = shards.bit_length() - 1
            self._fetch(holder, (self.ns, key), shard)
            return

    def _fetch(self, holder: bytes, name: Name, shard: int) -> None:
        world = self.node.world
        self.waiting += 1

        def got(answer: object) -> None:
            self.waiting -= 1
            if answer is None:
                self.missed += 1
            elif answer != content(*name, shard):
                raise Broken(f"wrong bytes: of {name[1][:4].hex()} from {holder[:2].decode()}")
            else:
                self.got += 1

        self.node.network.call(self.node.name, holder, Get(*name, shard), world.now + GET_MS * MS, got)


class Believing(Asking):
    """A client that takes what a home says for what a holder has."""

    __slots__ = ()

    def _fetch(self, holder: bytes, name: Name, shard: int) -> None:
        there = self.node.network.parties.get(holder)
        held = isinstance(there, ClusterNode) and there.holdings.read(*name, shard) is not None
        if not held:
            raise Broken(f"a claim was believed: {name[1][:4].hex()} of {holder[:2].decode()}")
        self.got += 1
