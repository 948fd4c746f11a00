"""A node among others: membership says whom to ask, pings who lives, and this keeps both going and tells of it.

Order: made before the doors, which need its desk; `join` after them, since others come in by the door as soon as they
can find this node, and since only then its address is known. A node that may not join does not start.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import kvstore
from kvstore.allowed import WILDCARDS
from kvstore.directory import agreement
from kvstore.directory.base import Discovery, Member, Membership, duplicate
from kvstore.directory.etcd import Etcd
from kvstore.directory.etcd_client import EtcdClient
from kvstore.directory.liveness import Change, Liveness, Rules, State
from kvstore.directory.standalone import Standalone
from kvstore.directory.static import StaticList
from kvstore.errors import KvStoreError, Misconfigured
from kvstore.members import Alone, EtcdAt, Listed, parse_members
from kvstore.node.clearing import Clearing, Doubt
from kvstore.node.etcd_access import credentials_of, user_of
from kvstore.node.introduction import Introduction, pass_token
from kvstore.node.locator import Locator
from kvstore.node.peer_desk import PeerDesk
from kvstore.node.peers import NotListening, Peers

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.clock import Clock
    from kvstore.config import ClusterConfig
    from kvstore.node.namespaces import Namespaces
    from kvstore.node.tls import Certificates
    from kvstore.security import SecurityConfig

__all__ = ["Cluster", "ClusterCounts", "NodeSeen"]

log = logging.getLogger(__name__)

TICK_S: Final = 0.05
TICKS: Final = 4  # at least, in the shortest pause that is noticed: half of dead_after_ms
GREET_S: Final = 2.0
MILLIS: Final = 1_000_000
SETTLE_NS: Final = 5_000_000_000  # between tries to write what was told of clears
FOREVER: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class NodeSeen:
    """One node as this one sees it. state_s: for how long; rtt_s: of the last ping that was answered, None: none.
    problem: why it is not talked to.
    """

    member: Member
    state: State
    state_s: float
    rtt_s: float | None
    own: bool = False
    problem: str = ""


@dataclass(slots=True)
class ClusterCounts:
    """Since the start."""

    pings: int = 0
    pings_failed: int = 0
    deaths: int = 0


class Cluster:
    """From `join` to `stop`, on the node's event loop; `desk` and `door_token` before that, for the door."""

    def __init__(
        self,
        config: ClusterConfig,
        security: SecurityConfig,
        certificates: Certificates,
        clock: Clock,
        secret: bytes,
        url: str | None,
    ) -> None:
        self._config, self._clock = config, clock
        self._at = parse_members(config.members)
        self._settings = agreement.agreed(config, secret, url)
        introduction = Introduction(secret, self._settings)
        self.counts = ClusterCounts()
        self.door_token = pass_token(secret)
        self.me = Member("")
        self.locator: Locator | None = None  # in a cluster, from `introduce` on
        self.clearing: Clearing  # from `introduce` on
        self.doubt = Doubt()
        self.looked: Callable[[int], object] = lambda _until: None  # told when, at the latest, it looks again
        self._met_all = asyncio.Event()  # for the first time, whoever could be met
        self.desk = PeerDesk(
            introduction,
            lambda: self.me if self.locator is not None else None,
            self._welcome,
            self._told,
            lambda: self.clearing,
        )
        self.peers = Peers(
            introduction,
            me=lambda: self.me,
            tls=certificates.framed,
            mutual=security.client_ca is not None,
            insecure=security.insecure,
            token=self.door_token,
            secret_id=agreement.secret_id(secret),
        )
        rules = Rules(
            ping_ns=config.ping_ms * MILLIS,
            dead_after_ns=config.dead_after_ms * MILLIS,
            pings_per_second_max=config.pings_per_second_max,
        )
        self.liveness = Liveness(rules, clock.now_ns())
        self._tick_s = min(TICK_S, config.dead_after_ms / 2e3 / TICKS)
        self._membership = make_membership(config, self._at, insecure=security.insecure)
        self._known: dict[str, Member] = {}  # by address: who was met there, or who is listed
        self._met: dict[str, Member] = {}
        self._own: set[str] = set()  # other addresses of this node
        self._problems: dict[str, str] = {}
        self._states = self._count()
        self._barred: set[str] = set()  # whose id another node has
        self._living: dict[bytes, Member] = {}  # as the directory was told
        self._news = True  # that it was not told yet
        self._opened = False
        self._pings: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_clustered(self) -> bool:
        return not isinstance(self._at, Alone)

    @property
    def settings(self) -> agreement.Settings:
        """What nodes of one cluster must agree on, as this one has it."""
        return self._settings

    @property
    def discovery(self) -> Discovery:
        return self._membership.discovery

    @property
    def is_open(self) -> bool:
        """Whether this node has joined, and serves what it holds."""
        return self._opened

    @property
    def fit(self) -> bool:
        """Whether this node may serve others and believe what they announce: it has not just stood still."""
        return self.liveness.fit

    # ---- joining and leaving --------------------------------------------------------------------------------------

    def introduce(self, me: Member, core: native.NodeCore, namespaces: Namespaces) -> None:
        """Who this node is. `me.address`: of the framed door as it is bound; `cluster.address` is told instead of it.
        core: whose blocks others are told of. namespaces: whose clears. Raises Misconfigured where no other node could
        connect to it.
        """
        address = self._config.address or me.address
        host = address.rpartition(":")[0]
        if self.is_clustered and host in WILDCARDS:
            raise Misconfigured(
                f"node.address = {me.address!r}: other nodes cannot connect to a wildcard; set cluster.address"
            )
        self.me = replace(me, address=address, version=kvstore.__version__, host=self._config.host or me.host)
        self.clearing = Clearing(namespaces, self.peers)
        if self.is_clustered:
            self.locator = Locator(self.me, core, self._config, self.peers, self._clock, self.living)

    async def join(self) -> None:
        """Raises Misconfigured: refused, and by what. Returns when others can find this node, and when it knows what
        was cleared, as far as there is anybody who could tell it.
        """
        await self._membership.join(self.me, self._settings, lambda address: self.peers.greet(address, GREET_S))
        self.liveness.begin(self._clock.now_ns())
        self._relist()
        if self.is_clustered:
            self._tasks = [asyncio.ensure_future(self._follow()), asyncio.ensure_future(self._tick())]
        if self.locator is not None:
            self.locator.start()
            await self._met_all.wait()

    def open(self) -> None:
        """Clients are served from now on: what was open is open again."""
        self.doubt.end()
        self._opened = True

    async def stop(self) -> None:
        """Idempotent."""
        tasks, self._tasks = [*self._tasks, *self._pings], []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.looked(FOREVER)  # not any more; who is served until the door is closed is not to ask again and again
        if self.locator is not None:
            await self.locator.stop()
        await self._membership.leave()
        await self.peers.close()

    def _welcome(self, member: Member) -> str | None:
        """A node has introduced itself. Why it may not stay, or nothing."""
        if member.id == self.me.id:
            if member.incarnation == self.me.incarnation:
                return None  # ourselves, by an address of the list
            return duplicate(member.id, member.address, self.me.address)
        there = self._twin(member)
        if there is not None:
            return duplicate(member.id, member.address, there.address)
        self.liveness.hurry(member.address, self._clock.now_ns())
        return None

    def _twin(self, member: Member) -> Member | None:
        """Another living node with its id."""
        for address, other in self._met.items():
            same = other.id == member.id and other.incarnation != member.incarnation
            if same and address != member.address and self.liveness.state(address) is State.ALIVE:
                return other
        return None

    # ---- going on -------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        epoch = self._membership.view.epoch
        while True:
            epoch = (await self._membership.changed(epoch)).epoch
            self._relist()

    def _relist(self) -> None:
        listed = {member.address: member for member in self._membership.view.members}
        for address in self._own | {self.me.address}:
            listed.pop(address, None)
        self._known = listed
        self.liveness.expect(listed, self._clock.now_ns())

    async def _tick(self) -> None:
        settle_at = 0
        while True:
            now = self._clock.now_ns()
            self._look(now)
            if now >= settle_at:
                settle_at = now + SETTLE_NS
                self.clearing.settle()
            for address in self.liveness.due(now):
                self.liveness.asked(address, now)
                task = asyncio.ensure_future(self._ping(address, now))
                self._pings.add(task)
                task.add_done_callback(self._pings.discard)
            self._forget()
            self._see()
            self._states = self._count()
            await asyncio.sleep(self._tick_s)

    def _look(self, now: int) -> None:
        was_fit = self.liveness.fit
        for change in self.liveness.tick(now):
            self._tell(change)
        if was_fit and not self.liveness.fit:
            log.warning("this node stood still; it serves no other until a majority of them answers")
            self.doubt.raise_()
            if self.locator is not None:
                self.locator.stood_still()
        elif self.liveness.fit and not was_fit and self.locator is not None:
            self.locator.rejoined()
        if self.locator is not None:
            self.locator.answer_until(self.liveness.overdue_at if self.liveness.fit else 0)
        self.looked(self.liveness.overdue_at)
        if self.liveness.settled and self.liveness.caught_up:
            self._met_all.set()
        if self._opened and self.liveness.caught_up:
            self.doubt.end()

    async def surely(self) -> None:
        """Before a namespace is named: returns when its generation is known here. Raises Unavailable."""
        now = self._clock.now_ns()
        if self._tasks and self.liveness.overdue(now):
            self._look(now)
        await self.doubt.over()

    async def cleared(self, origin: bytes) -> tuple[int, int]:
        """A namespace was cleared here: how many nodes know it, of how many that there are. Waits for TELL_S at most
        (clearing.py).
        """
        others: dict[bytes, dict[int, str]] = {}  # each once, by the list's address, whatever a node says of itself
        for one in (*self.desk.introduced(), *self._living.values()):
            if one.id != self.me.id and self.liveness.state(one.address) is not State.DEAD:
                others.setdefault(one.id, {})[one.incarnation] = one.address
        told = await self.clearing.tell(origin, {at for known in others.values() for at in known.values()})
        knowing = sum(not told.isdisjoint(known.values()) for known in others.values())
        return 1 + knowing, max(len(self.nodes()), 1 + len(others))

    def _told(self, node: Member, method: int, body: bytes) -> bytes:
        """What a node tells the directory or asks of it: not before this one knows whether it stood still."""
        now = self._clock.now_ns()
        if self._tasks and self.liveness.overdue(now):
            self._look(now)
        assert self.locator is not None, "the desk lets nobody in before"
        return self.locator.handle(node, method, body)

    def _see(self) -> None:
        """Who lives, for the directory. Not before it is known of everybody who is listed: who was there before this
        node is asked at once, who comes later is let settle first.
        """
        if self.locator is None or not self._news or not (self._living or self.liveness.settled):
            return
        self._news = False
        self._living = {self.me.id: self.me}
        for address, member in sorted(self._met.items()):
            if self.liveness.state(address) is not State.DEAD and address not in self._barred:
                self._living.setdefault(member.id, member)
        self.locator.see({node: member.incarnation for node, member in self._living.items()})

    def serves(self) -> bool:
        """Whether other nodes may be lent blocks now: as `fit`, and a pause is noticed before it is answered."""
        now = self._clock.now_ns()
        if self._tasks and self.liveness.overdue(now):
            self._look(now)
        return self.fit

    def incarnations(self) -> dict[bytes, int]:
        """Of the nodes that live, this one among them, by id."""
        return {node: member.incarnation for node, member in self._living.items()}

    def rtt_s(self, address: str) -> float:
        """Of the last ping there that was answered; 0 before any."""
        return (self.liveness.rtt_ns(address) or 0) / 1e9

    def members(self) -> list[Member]:
        """The other nodes that live."""
        return [member for node, member in self._living.items() if node != self.me.id]

    def living(self, node: bytes) -> Member | None:
        """A node that answers, by its id, at the address where it does."""
        return self._living.get(node)

    async def _ping(self, address: str, asked_at: int) -> None:
        self.counts.pings += 1
        was_connected = self.peers.connected(address)
        change: Change | None = None
        try:
            member, known = await self.peers.ping(address, self._config.dead_after_ms / 2e3)
            if known != self.clearing.hash:
                await self.clearing.agree(address, self._config.dead_after_ms / 4e3)
        except NotListening as error:
            self.counts.pings_failed += 1
            change = self.liveness.refused(address, self._clock.now_ns())
            self._problems[address] = str(error)
        except (KvStoreError, ValueError) as error:
            self.counts.pings_failed += 1
            now = self._clock.now_ns()
            # An end of the connection asks for another look at once; an answer that did not come has had its time.
            early = now - asked_at < self._config.dead_after_ms * MILLIS // 4
            self.liveness.unanswered(address, now, broken=was_connected and early)
            self._trouble(address, error)
        except Exception:  # ours; it must not end the pings
            log.exception("%s: a ping failed", address)
            self.liveness.unanswered(address, self._clock.now_ns())
        else:
            change = self._answered(address, member, asked_at)
        if change is not None:
            self._tell(change)
        self._see()

    def _answered(self, address: str, member: Member, asked_at: int) -> Change | None:
        if member.id == self.me.id:
            if member.incarnation == self.me.incarnation:
                self._own.add(address)
                self.liveness.forget(address)
                self.peers.forget(address)
                return None
            self._bar(address, duplicate(member.id, address, self.me.address))
        else:
            twin = self._twin(replace(member, address=address))
            if twin is not None:
                self._bar(address, duplicate(member.id, address, twin.address))
            else:
                self._problems.pop(address, None)
                self._barred.discard(address)
        # Where it was found counts, whatever it says of itself: a name in the list, a forwarded port.
        found = replace(member, address=address)
        self._news = self._news or self._met.get(address) != found
        self._met[address] = found
        return self.liveness.answered(address, self._clock.now_ns(), asked_at)

    def _bar(self, address: str, why: str) -> None:
        self._news = self._news or address not in self._barred
        self._barred.add(address)
        self._trouble(address, Misconfigured(why))

    def _trouble(self, address: str, error: KvStoreError | ValueError) -> None:
        if isinstance(error, Misconfigured) and self._problems.get(address) != str(error):
            log.error("%s", error)
        self._problems[address] = str(error)

    def _tell(self, change: Change) -> None:
        self._news = True
        name = self._name(change.address)
        if change.after is State.DEAD:
            why = self._problems.get(change.address, "it does not answer")
            met = change.address in self._met
            self.counts.deaths += met
            log.log(logging.WARNING if met else logging.INFO, "%s is dead: %s", name, why)
        else:
            again = change.before is State.DEAD
            log.log(logging.WARNING if again else logging.INFO, "%s is %s", name, change.after.name.lower())

    def _name(self, address: str) -> str:
        member = self._met.get(address) or self._known.get(address)
        return f"{member.name} ({address})" if member is not None and member.name else address

    def _forget(self) -> None:
        """What is known of addresses that nobody asks any more."""
        for table in (self._met, self._problems):
            for address in [one for one in table if self.liveness.state(one) is None]:
                del table[address]
                self._barred.discard(address)
                self.peers.forget(address)

    # ---- what is told of it ---------------------------------------------------------------------------------------

    def nodes(self) -> list[NodeSeen]:
        """This one first, then all it knows of, by address."""
        now = self._clock.now_ns()
        own = NodeSeen(self.me, State.ALIVE if self.fit else State.SUSPECT, 0.0, None, own=True)
        return [own] + [
            NodeSeen(
                member=self._met.get(row.address) or self._known.get(row.address) or Member(row.address),
                state=row.state,
                state_s=row.for_ns / 1e9,
                rtt_s=row.rtt_ns / 1e9 if row.rtt_ns is not None else None,
                problem=self._problems.get(row.address, "") if row.state is not State.ALIVE else "",
            )
            for row in self.liveness.rows(now)
        ]

    @property
    def states(self) -> Mapping[str, int]:
        """How many nodes are in each state, this one among them, as of the last tick. From any thread."""
        return self._states

    def _count(self) -> dict[str, int]:
        counted = dict.fromkeys((state.name.lower() for state in State), 0)
        for node in self.nodes():
            counted[node.state.name.lower()] += 1
        return counted


def make_membership(config: ClusterConfig, at: Alone | Listed | EtcdAt, *, insecure: bool) -> Membership:
    """Raises Misconfigured for files that cannot be read."""
    match at:
        case Listed():
            return StaticList(at.addresses)
        case EtcdAt():
            client = EtcdClient(at.endpoints, credentials_of(config, at), user_of(config, at, insecure=insecure))
            return Etcd(client, at.prefix, config.join_ms / 1e3, config.etcd_ttl_s)
        case _:
            return Standalone()
