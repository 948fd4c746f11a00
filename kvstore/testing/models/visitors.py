"""A node's half of clients that map nothing: what each has leased and is putting, as kvstore/node does it.

Rules
- A lease is a hold without an end of its own and a grant. It ends by release, by time or with the connection: first the
  grant is taken back, then, when nobody reads by it any more, the hold goes.
- Only the node writes its slots. They are reserved as written in place and have an owner of their own, so that whatever
  ends a reservation keeps them from reuse until the read into them is quiet.
- What did not arrive whole is not sealed, and a part that is read anew was not filled before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.testing.models import messages as m
from kvstore.testing.models.keys import part_checksums
from kvstore.testing.models.lifecycle import Outcome, ReserveStatus, Ticket
from kvstore.testing.models.table import Held, Reserved
from kvstore.testing.models.transfers import Carrier, Grant, Landed, Lender, Reading, Way

if TYPE_CHECKING:
    from kvstore.testing.link import Link
    from kvstore.testing.models.node import NodeModel

Sums = list[int]
Number = tuple[int, int]  # of a lease or a reservation: its connection, and the client's number


@dataclass(slots=True)
class LeaseOf:
    link: Link
    owner: int
    hold: int
    grant: Grant
    tickets: frozenset[Ticket]


@dataclass(slots=True, eq=False)
class Slots:
    """Reserved slots of one call."""

    node: NodeModel
    link: Link
    shard: tuple[int, ...]  # bytes of its parts
    owner: int
    began: int
    statuses: tuple[ReserveStatus, ...]
    granted: list[Reserved]
    indices: list[int]  # of the granted ones, among the keys
    reading: Reading | None = None

    @property
    def until(self) -> int:
        """Reads end before the reservation lapses."""
        return self.began + self.node.limits.reserve_lapse * 9 // 10


@dataclass(slots=True, eq=False)
class Filling:
    number: Number
    slots: Slots
    published: int = 0
    sums: dict[int, Sums] = field(default_factory=dict)
    waiting: list[tuple[int, m.Fill]] = field(default_factory=list)
    closed: bool = False


class VisitorsModel:
    """Of one process of a node."""

    def __init__(self, node: NodeModel) -> None:
        self.node = node
        self.world = node.world
        self.lender = Lender(node.world, node)
        self.leases: dict[Number, LeaseOf] = {}
        self.fillings: dict[Number, Filling] = {}
        self.pulling: list[Slots] = []
        self.owners: dict[int, int] = {}  # of leases, by connection
        self.sealed = self.unread = 0

    def owner_of(self, link: Link) -> int:
        """Not the connection's own: what it owns goes at once when it ends."""
        if link.owner not in self.owners:
            self.owners[link.owner] = self.node.new_owner()
        return self.owners[link.owner]

    def decide(self, link: Link, request: int, message: object) -> object | None:
        """None: answered later, or not at all."""
        match message:
            case m.ReleaseLease(number, corrupt):
                self._release(link, number, corrupt)
            case m.Pull():
                return self._pull(link, request, message)
            case m.ReserveSlots():
                return self._reserve(link, message)
            case m.Fill():
                return self._fill(link, request, message)
            case m.PublishFilled(number, part):
                return self._publish(link, number, part)
            case m.SealFilled(number):
                return self._seal_filled(link, number)
            case m.AbortFilled(number):
                self._end_filling((link.owner, number))
        return None

    # ---- leases

    def leased(
        self, link: Link, client_number: int, hold: int, held: Sequence[Held], checksums: tuple[tuple[int, ...], ...]
    ) -> m.Leased:
        lasts = self.node.limits.lease_away
        if not held:
            return m.Leased(lasts, None, (), ())
        table, memory = self.node.table, self.node.remains.memory
        tickets = frozenset(one.ticket for one in held)

        def read(offset: int, size: int) -> bytes:
            memory.lent(tickets, offset, size)
            return memory.read(offset, size)

        ranges = [(one.offset, table.slots[one.ticket.slot].payload_bytes) for one in held]
        grant = self.lender.grant(self._carrier(link), read, ranges, lasts)
        number = (link.owner, client_number)
        self.leases[number] = LeaseOf(link, self.owner_of(link), hold, grant, tickets)
        self.world.after(lasts, lambda: self.node.deliver(lambda: self._end_lease(number)))
        return m.Leased(lasts, grant, tuple(held), checksums)

    def _release(self, link: Link, number: int, corrupt: Sequence[Ticket]) -> None:
        """One that is not answered yet is given up."""
        self.node.give_up(link, number)
        lease = self.leases.get((link.owner, number))
        for ticket in corrupt:
            if lease is not None and ticket in lease.tickets:
                self.node.corrupt(ticket)
        self._end_lease((link.owner, number))

    def _end_lease(self, number: Number) -> None:
        lease = self.leases.pop(number, None)
        if lease is not None:
            self.take_back(lease)

    def take_back(self, lease: LeaseOf) -> None:
        """First the grant, and the hold when no peer reads by it any more."""
        self.lender.revoke(lease.grant, lambda: self._let_go(lease))

    def _let_go(self, lease: LeaseOf) -> None:
        self.node.table.release(lease.owner, lease.hold)

    # ---- slots

    def _slots(self, link: Link, ns: int, shard: int, keys: tuple[bytes, ...]) -> Slots | m.Refused:
        node = self.node
        if ns not in node.opened:
            return m.Refused.STALE_NAMESPACE
        owner, now = node.new_owner(), self.world.now
        blocks = self.reserve(owner, ns, shard, keys)
        indices = [i for i, one in enumerate(blocks) if one.status == ReserveStatus.GRANTED]
        statuses = tuple(one.status for one in blocks)
        return Slots(
            node, link, node.opened[ns].shards[shard], owner, now, statuses, [blocks[i] for i in indices], indices
        )

    def reserve(self, owner: int, ns: int, shard: int, keys: tuple[bytes, ...]) -> Sequence[Reserved]:
        return self.node.table.reserve(
            owner, ns, shard, keys, in_place=True, now=self.world.now, lapse_after=self.node.limits.reserve_lapse
        )

    def _read(
        self,
        slots: Slots,
        grant: Grant,
        rows: Sequence[tuple[int, int]],
        before: int,
        deadline: int,
        done: Callable[[Landed], None],
    ) -> None:
        """A row of granted memory into each granted slot, `before` bytes from its start."""
        memory = self.node.remains.memory

        def land(row: int, at: int, data: bytes) -> None:
            one = slots.granted[row]
            assert one.ticket is not None
            memory.write(one.ticket, one.offset + before + at, data)

        way = slots.link.way
        assert way is not None
        until = min(self.world.now + deadline, slots.until)
        slots.reading = Reading(way, self.node, grant, rows, land, until, done)

    def seal(self, slots: Slots, sums: Sequence[Sums | None]) -> int:
        """Those that have checksums; how many were sealed."""
        sealed = 0
        for one, checksums in zip(slots.granted, sums, strict=True):
            assert one.ticket is not None
            if checksums is None:
                self.unread += 1
            elif self.node.seal(slots.owner, one.ticket, checksums) == Outcome.OK:
                sealed += 1
                self.node.remains.memory.sealed(self.node.table.slots[one.ticket.slot])
        self.sealed += sealed
        return sealed

    def close(self, slots: Slots) -> None:
        """Nothing is read into them any more: what was not sealed is given back."""
        self.node.table.owner_gone(slots.owner)

    # ---- a put in one call

    def _pull(self, link: Link, request: int, message: m.Pull) -> object | None:
        slots = self._slots(link, message.ns, message.shard, message.keys)
        if isinstance(slots, m.Refused):
            return slots
        if not slots.granted:
            return m.Pulled(slots.statuses, 0)
        block = sum(slots.shard)
        rows = [(i * block, block) for i in slots.indices]
        self.pulling.append(slots)
        self._read(slots, message.grant, rows, 0, message.deadline, lambda told: self._pulled(slots, request, told))
        return None

    def _pulled(self, slots: Slots, request: int, landed: Landed) -> None:
        def conclude() -> None:
            if slots.link.owner in self.node.links:
                sealed = self.seal(slots, self.arrived(slots, landed))
                self.node.reply(slots.link, request, m.Pulled(slots.statuses, sealed))
            self.close(slots)

        self.pulling.remove(slots)
        self.node.act(m.Pull, conclude)

    def arrived(self, slots: Slots, landed: Landed) -> list[Sums | None]:
        """Checksums as bytes landed; None for what did not arrive whole."""
        return [None if row is None else part_checksums(row, slots.shard) for row in landed.rows]

    # ---- part by part

    def _filling(self, link: Link, number: int) -> Filling | None:
        return self.fillings.get((link.owner, number))

    def _reserve(self, link: Link, message: m.ReserveSlots) -> object:
        slots = self._slots(link, message.ns, message.shard, message.keys)
        if isinstance(slots, m.Refused):
            return slots
        if not slots.granted:
            return m.ReservedSlots(slots.statuses)
        number = (link.owner, message.number)
        self.fillings[number] = Filling(number, slots)
        self.world.at(slots.until, lambda: self.node.deliver(lambda: self._end_filling(number)))
        return m.ReservedSlots(slots.statuses)

    def _fill(self, link: Link, request: int, message: m.Fill) -> object | None:
        filling = self._filling(link, message.number)
        if filling is None or message.part < filling.published:
            return m.Refused.NOT_READY
        if filling.slots.reading is not None:
            filling.waiting.append((request, message))
            return None
        slots, parts = filling.slots, filling.slots.shard
        size, before = parts[message.part], sum(parts[: message.part])
        filling.sums.pop(message.part, None)
        rows = [(i * size, size) for i in range(len(slots.granted))]
        done = lambda told: self._filled(filling, request, message, told)  # noqa: E731 - as _pull says it
        self._read(slots, message.grant, rows, before, message.deadline, done)
        return None

    def _filled(self, filling: Filling, request: int, message: m.Fill, landed: Landed) -> None:
        slots, size = filling.slots, filling.slots.shard[message.part]
        slots.reading = None

        def conclude() -> None:
            if filling.closed:
                self.close(slots)
                self.node.reply(slots.link, request, m.Refused.NOT_READY)
            else:
                sums = self.arrived_part(slots, landed, message.part, size)
                if sums is not None:
                    filling.sums[message.part] = sums
                self.node.reply(slots.link, request, m.Filled(landed.failure if sums is None else ""))
            self._next(filling)

        self.node.act(m.Fill, conclude)

    def arrived_part(self, slots: Slots, landed: Landed, part: int, size: int) -> Sums | None:
        """A checksum a block; None unless all of it arrived."""
        rows = [row for row in landed.rows if row is not None]
        return [part_checksums(row, (size,))[0] for row in rows] if len(rows) == len(landed.rows) else None

    def _next(self, filling: Filling) -> None:
        """Whoever waits for the one that read."""
        waiting, filling.waiting = filling.waiting, []
        for request, message in waiting:
            answer = self._fill(filling.slots.link, request, message)
            if answer is not None:
                self.node.reply(filling.slots.link, request, answer)

    def _publish(self, link: Link, number: int, part: int) -> object:
        filling = self._filling(link, number)
        if filling is None or part != filling.published or part not in filling.sums:
            return m.Refused.NOT_READY
        for one, checksum in zip(filling.slots.granted, filling.sums[part], strict=True):
            assert one.ticket is not None
            self.node.table.publish_part(filling.slots.owner, one.ticket, part, checksum)
        filling.published += 1
        return Outcome.OK

    def _seal_filled(self, link: Link, number: int) -> object:
        filling = self._filling(link, number)
        if filling is None or filling.slots.reading is not None:
            return m.Refused.NOT_READY
        rest = range(filling.published, len(filling.slots.shard))
        if not all(part in filling.sums for part in rest):
            return m.Refused.NOT_READY
        blocks = range(len(filling.slots.granted))
        sealed = self.seal(filling.slots, [[filling.sums[part][i] for part in rest] for i in blocks])
        self._end_filling(filling.number)
        return m.Pulled(filling.slots.statuses, sealed)

    def _end_filling(self, number: Number) -> None:
        filling = self.fillings.pop(number, None)
        if filling is not None:
            filling.closed = True
            if filling.slots.reading is None:  # else whoever reads closes it
                self.close(filling.slots)

    # ---- ends

    def gone(self, link: Link) -> None:
        """The connection has ended: reads first, then grants, then holds and slots."""
        for slots in [slots for slots in self.pulling if slots.link is link]:
            self.give_up(slots)
        for filling in [one for one in self.fillings.values() if one.slots.link is link]:
            self._end_filling(filling.number)
            self.give_up(filling.slots)
        for number in [number for number, lease in self.leases.items() if lease.link is link]:
            self._end_lease(number)

    def give_up(self, slots: Slots) -> None:
        if slots.reading is not None:
            slots.reading.stop("the connection has ended")

    @staticmethod
    def _carrier(link: Link) -> Carrier:
        way: Way | None = link.way
        assert way is not None
        return way.carrier
