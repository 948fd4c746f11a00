"""A node: one table over one memory, a lower tier, fetches that wait, and what survives its process.

Decides at once when a message arrives, and answers then, or when a promotion has ended, or at the deadline. A kill
takes everything but `Remains`, and may fall between any two words of the verb in progress.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from kvstore.testing.link import Link
from kvstore.testing.models import messages as m
from kvstore.testing.models.entries import Entries
from kvstore.testing.models.keys import part_checksums
from kvstore.testing.models.leaf_lru import LeafLruModel
from kvstore.testing.models.leases import HoldKind
from kvstore.testing.models.lifecycle import Name, Outcome, ReserveStatus, Slot, SlotState, Ticket
from kvstore.testing.models.memory import Memory
from kvstore.testing.models.namespaces import Namespaces, Space
from kvstore.testing.models.restart import former_clients_gone, quarantine_left, recover
from kvstore.testing.models.slabs import Geometry
from kvstore.testing.models.table import TableModel
from kvstore.testing.models.transfers import Carrier, Way
from kvstore.testing.models.visitors import VisitorsModel
from kvstore.testing.world import Process, World

MOVER: Final = -1  # the owner of what the node itself reserves and holds


@dataclass(frozen=True, slots=True)
class NodeLimits:
    reserve_lapse: int = 1_500
    lease_max: int = 2_000
    lease_away: int = 1_200  # of clients that map nothing
    parked_max: int = 4
    attempts_max: int = 3
    move_time: int = 150  # of one batch to or from the lower tier
    write_behind_bytes_max: int = 96
    free_wanted: int = 100
    poll: int = 500  # how often the ends of former clients are looked for
    lower_max: int = 12


@dataclass(slots=True)
class Remains:
    """What outlives the process: the segment, its entries, its client table, and the disk."""

    memory: Memory
    entries: Entries
    spaces: Namespaces
    clients: dict[int, Process] = field(default_factory=dict)
    lower: dict[Name, tuple[bytes, tuple[int, ...]]] = field(default_factory=dict)


@dataclass(slots=True)
class Parked:
    link: Link
    request: int
    fetch: m.Fetch | m.Lease
    deadline: int
    attempts: int = 0


class NodeModel:
    """One process of a node. `make`, `visitors`: the classes of its parts, so that faulty ones can be tried."""

    def __init__(
        self,
        world: World,
        geometry: Geometry,
        remains: Remains,
        limits: NodeLimits,
        make: type[TableModel],
        visitors: type[VisitorsModel],
    ) -> None:
        self.world = world
        self.remains = remains
        self.limits = limits
        self.table = recover(geometry, LeafLruModel(), remains.entries, make)
        self.alive = True
        self.kill_within: tuple[type, ...] = ()  # messages in whose handling the process will be killed
        self.links: dict[int, Link] = {}
        self.opened: dict[int, Space] = {}
        self.parked: list[Parked] = []
        self._outbox: list[tuple[Link, int, object]] = []
        self.moving: set[Name] = set()
        self.writing_behind = False
        self._last_ns = 0
        self._armed: int | None = None
        self._former = list(remains.clients)
        self._owners = MOVER
        self.visitors = visitors(self)
        self._poll()

    @property
    def running(self) -> bool:
        return self.alive

    def deliver(self, call: Callable[[], None]) -> None:
        """As kvstore.testing.models.transfers.Party: a node is killed, and never stopped."""
        if self.alive:
            call()

    def new_owner(self) -> int:
        """Of what the node itself does for a connection."""
        self._owners -= 1
        return self._owners

    # ---- connections

    def accept(self, owner: int, process: Process, *, local: bool, delay_max: int) -> Link:
        link = Link(self.world, self, owner, local, delay_max)
        self.links[owner] = link
        if local:
            self.remains.clients[owner] = process
        else:
            link.way = Way(self.world, self.world.rng.choice(list(Carrier)), lambda: link.silent)
        return link

    def gone(self, link: Link) -> None:
        """The client's end is closed, or its process dead: nothing of it can land any more."""
        if not self.alive or self.links.pop(link.owner, None) is None:
            return
        self.parked = [parked for parked in self.parked if parked.link is not link]
        self.visitors.gone(link)
        self.table.owner_gone(link.owner)
        self.remains.clients.pop(link.owner, None)

    def cut(self, link: Link) -> None:
        """The node ends a connection. Who maps the segment may still write: its owner is gone only when it says so."""
        link.end_from_node()
        if not link.local:
            link.told = True
            self.gone(link)

    def kill(self) -> None:
        self.alive = False
        for link in self.links.values():
            link.told = True
            link.end_from_node()

    def handle(self, link: Link, request: int, message: Any) -> None:
        self.act(type(message), lambda: self.reply(link, request, self._decide(link, request, message)))

    def act(self, what: type, do: Callable[[], None]) -> None:
        """One step, in which the process may be killed."""
        if not self.alive:
            return
        self.remains.entries.begin()
        do()
        journal = self.remains.entries.journal
        if issubclass(what, self.kill_within) and journal:
            self.remains.entries.cut(self.world.rng.randint(0, len(journal)))
            self.world.note("node", f"killed within {what.__name__}")
            self.kill()
            return
        self._send()
        self._arm()

    def reply(self, link: Link, request: int, reply: object | None) -> None:
        if reply is not None and request:
            self._outbox.append((link, request, reply))

    def _send(self) -> None:
        """What was decided is told only now: a verb that a kill cut short was never answered."""
        outbox, self._outbox = self._outbox, []
        for link, request, reply in outbox:
            link.answer(request, reply)

    def _decide(self, link: Link, request: int, message: Any) -> object | None:  # noqa: PLR0911, PLR0912
        owner = link.owner
        match message:
            case m.Open(name):
                return self._open(name)
            case m.Quiet(former):
                self.remains.clients.pop(former, None)
                self._check_former()
            case m.Look(ns, shard, keys):
                return self.table.longest(ns, shard, keys)
            case m.Prefetch(ns, shard, keys):
                self._promote(ns, shard, self._below(ns, shard, keys))
                return Outcome.OK
            case m.Clear(ns):
                return self._clear(ns)
            case m.Reserve(ns):
                return self._reserve(owner, message) if ns in self.opened else m.Refused.STALE_NAMESPACE
            case m.Publish(ticket, part, checksum):
                return self.table.publish_part(owner, ticket, part, checksum)
            case m.Seal(tickets, checksums):
                return tuple(self.seal(owner, t, c) for t, c in zip(tickets, checksums, strict=True))
            case m.Abort(tickets):
                for ticket in tickets:
                    self.table.abort(owner, ticket)
            case m.Fetch() | m.Lease():
                self._fetch(Parked(link, request, message, self.world.now + message.wait))
            case m.Release(hold):
                self.table.release(owner, hold)
            case m.Corrupt(ticket):
                self.corrupt(ticket)
            case _:
                return self.visitors.decide(link, request, message)
        return None

    # ---- namespaces

    def _open(self, name: str) -> m.Opened:
        space = self.remains.spaces.now(name)
        for ns, other in self.opened.items():
            if other.digest == space.digest:
                return m.Opened(ns, space)
        self._last_ns += 1
        ns = self._last_ns
        self.opened[ns] = space
        self.table.add_namespace(ns, space.digest, space.shards)
        return m.Opened(ns, space)

    def _clear(self, ns: int) -> object:
        space = self.opened.get(ns)
        if space is None:
            return m.Refused.STALE_NAMESPACE
        self.remains.spaces.clear(space.name)
        self._drop(ns)
        self._settle(lambda parked: parked.fetch.ns == ns)
        return Outcome.OK

    def _drop(self, ns: int) -> None:
        del self.opened[ns]
        self.table.drop_namespace(ns)

    # ---- publishing

    def _reserve(self, owner: int, message: m.Reserve) -> m.Grants:
        out = self.table.reserve(
            owner,
            message.ns,
            message.shard,
            message.keys,
            in_place=True,
            now=self.world.now,
            lapse_after=self.limits.reserve_lapse,
        )
        return m.Grants(tuple(out))

    def seal(self, owner: int, ticket: Ticket, checksums: Sequence[int]) -> Outcome:
        outcome = self.table.seal(owner, ticket, checksums)
        if outcome == Outcome.OK:
            self._write_behind()
        return outcome

    # ---- fetching

    def _fetch(self, parked: Parked) -> None:
        """Answers if the run is up, or nothing more can come of it; else parks, holding nothing."""
        fetch = parked.fetch
        below = self._below(fetch.ns, fetch.shard, fetch.keys) if fetch.ns in self.opened else []
        may_wait = self.world.now < parked.deadline and parked.attempts < self.limits.attempts_max
        if below and may_wait and len(self.parked) < self.limits.parked_max:
            parked.attempts += 1
            self.parked.append(parked)
            self._promote(fetch.ns, fetch.shard, below)
            return
        self.reply(parked.link, parked.request, self._hold(parked.link, fetch))

    def _hold(self, link: Link, fetch: m.Fetch | m.Lease) -> object:
        if fetch.ns not in self.opened:
            return m.Refused.STALE_NAMESPACE
        if isinstance(fetch, m.Lease):  # held until the node lets go
            owner, kind, following, lapse_after = self.visitors.owner_of(link), HoldKind.VIEW, False, 0
        else:
            owner, kind, following = link.owner, fetch.kind, fetch.following
            lapse_after = min(fetch.lease, self.limits.lease_max)
        hold, held = self.table.hold(
            owner,
            fetch.ns,
            fetch.shard,
            fetch.keys,
            kind,
            following=following,
            now=self.world.now,
            lapse_after=lapse_after,
        )
        checksums = tuple(tuple(self.table.slots[one.ticket.slot].checksums) for one in held)
        if isinstance(fetch, m.Lease):
            return self.visitors.leased(link, fetch.number, hold, held, checksums)
        return m.Fetched(hold, tuple(held), checksums)

    def give_up(self, link: Link, lease: int) -> None:
        """Of one that waits: nobody wants its answer any more."""
        self.parked = [
            one
            for one in self.parked
            if one.link is not link or not isinstance(one.fetch, m.Lease) or one.fetch.number != lease
        ]

    def _settle(self, which: Any) -> None:
        ready = [parked for parked in self.parked if which(parked)]
        self.parked = [parked for parked in self.parked if not which(parked)]
        for parked in ready:
            self._fetch(parked)

    def corrupt(self, ticket: Ticket) -> None:
        """A client says so; the node looks for itself."""
        slot = self.table.slots.get(ticket.slot)
        if slot is not None and slot.ticket == ticket and slot.state == SlotState.SEALED and not self._verifies(slot):
            self.table.retire(ticket.slot)

    def _parts(self, slot: Slot) -> tuple[int, ...]:
        return self.remains.spaces.by_digest[slot.name.digest][slot.name.shard]

    def _verifies(self, slot: Slot) -> bool:
        data = self.remains.memory.read(slot.offset, slot.payload_bytes)
        return part_checksums(data, self._parts(slot)) == slot.checksums

    # ---- the mover

    def _below(self, ns: int, shard: int, keys: Sequence[bytes]) -> list[bytes]:
        """Those of the run from keys[0] that are on the lower tier only."""
        if ns not in self.opened:
            return []
        below: list[bytes] = []
        for key in keys:
            name = Name(self.opened[ns].digest, shard, key)
            listed = self.table.listed.get(name)
            if listed is not None and listed.state == SlotState.SEALED:
                continue
            if name not in self.remains.lower:
                break
            below.append(key)
        return below

    def _promote(self, ns: int, shard: int, keys: list[bytes]) -> None:
        digest = self.opened[ns].digest if ns in self.opened else b""
        keys = [key for key in keys if Name(digest, shard, key) not in self.moving]
        if not keys:
            return
        granted = self.table.reserve(
            MOVER, ns, shard, keys, in_place=True, now=self.world.now, lapse_after=self.limits.reserve_lapse
        )
        names = [Name(digest, shard, key) for key in keys]
        self.moving.update(names)
        self.world.after(self.limits.move_time, lambda: self._promoted(names, granted))

    def _promoted(self, names: list[Name], granted: Sequence[Any]) -> None:
        if not self.alive:
            return
        for name, one in zip(names, granted, strict=True):
            self.moving.discard(name)
            if one.status != ReserveStatus.GRANTED:
                continue
            found = self.remains.lower.get(name)
            slot = self.table.slots.get(one.ticket.slot)
            if found is not None and slot is not None and slot.state == SlotState.RESERVED:
                self.remains.memory.write(one.ticket, one.offset, found[0])
                self.table.seal(MOVER, one.ticket, found[1])
                self.table.mark(one.ticket, clean=True)
            self.table.abort(MOVER, one.ticket)  # of one that is sealed, nothing
        moved = {(name.digest, name.shard) for name in names}
        self._settle(lambda parked: (self._digest(parked.fetch.ns), parked.fetch.shard) in moved)
        self._send()
        self._arm()

    def _digest(self, ns: int) -> bytes:
        return self.opened[ns].digest if ns in self.opened else b""

    def _write_behind(self) -> None:
        if self.writing_behind or self.table.slabs.bytes_free() >= self.limits.free_wanted:
            return
        tickets = self.table.dirty_victims(self.limits.write_behind_bytes_max)
        hold, held = self.table.hold_slots(MOVER, tickets)
        if hold:
            self.writing_behind = True
            self.world.after(self.limits.move_time, lambda: self._written_behind(hold, [one.ticket for one in held]))

    def _written_behind(self, hold: int, tickets: list[Ticket]) -> None:
        if not self.alive:
            return
        self.writing_behind = False
        for ticket in tickets:
            slot = self.table.slots.get(ticket.slot)
            if slot is not None and slot.state == SlotState.SEALED and self._verifies(slot):
                data = self.remains.memory.read(slot.offset, slot.payload_bytes)
                self.remains.lower[slot.name] = (data, tuple(slot.checksums))
                self.table.mark(ticket, clean=True)
        self.table.release(MOVER, hold)
        while len(self.remains.lower) > self.limits.lower_max:
            del self.remains.lower[next(iter(self.remains.lower))]

    # ---- time

    def _arm(self) -> None:
        times = [parked.deadline for parked in self.parked]
        expiry = self.table.next_expiry()
        if expiry is not None:
            times.append(expiry)
        if times and (self._armed is None or min(times) < self._armed):
            self._armed = min(times)
            self.world.at(self._armed, self._tick)

    def _tick(self) -> None:
        if not self.alive:
            return
        self._armed = None
        self.table.expire(self.world.now)
        self._settle(lambda parked: parked.deadline <= self.world.now)
        self._send()
        self._arm()

    def _poll(self) -> None:
        """Former clients: those of an earlier process that have not ended yet and have not said that they are quiet."""
        if not self.alive:
            return
        for owner in self._former:
            process = self.remains.clients.get(owner)
            if process is not None and not process.running:
                del self.remains.clients[owner]
        self._check_former()
        if quarantine_left(self.table):
            self.world.after(self.limits.poll, self._poll)

    def _check_former(self) -> None:
        self._former = [owner for owner in self._former if owner in self.remains.clients]
        if not self._former:
            former_clients_gone(self.table)
