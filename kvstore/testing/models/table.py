"""One tier's slots, as native/core/slot_table.hpp says: the same verbs over dicts and lists.

Two things are nobody's business and may be told by whoever is held against this: which free cell is taken, and which
of several equally cold blocks goes. `Told` carries such answers, and the model asserts that each was allowed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kvstore.testing.models.entries import About, Control, Entries
from kvstore.testing.models.last_resort import chain_up, last_resorts
from kvstore.testing.models.leases import Hold, HoldKind, Holds
from kvstore.testing.models.lifecycle import Name, Outcome, ReserveStatus, Slot, SlotState, Ticket, Writer
from kvstore.testing.models.policy import NO_HINT, Hint, Order
from kvstore.testing.models.slabs import Geometry, Slabs

Shards = tuple[tuple[int, ...], ...]  # bytes of the parts of each shard


@dataclass(frozen=True, slots=True)
class Reserved:
    status: ReserveStatus
    ticket: Ticket | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    ticket: Ticket
    offset: int
    parts_ready: int


@dataclass(slots=True)
class Told:
    """What a table did in one reserve(): slots evicted and tickets granted, each in order."""

    evicted: deque[int] = field(default_factory=deque)
    granted: deque[Ticket] = field(default_factory=deque)


@dataclass(slots=True)
class Counts:
    evicted_clean: int = 0
    evicted_dirty: int = 0
    slabs_moved: int = 0
    lapsed_reservations: int = 0
    lapsed_leases: int = 0
    quarantined: int = 0
    aborted: int = 0


class TableModel:
    """`entries`: of a former process, for recover(); else fresh."""

    def __init__(self, geometry: Geometry, order: Order, entries: Entries | None = None) -> None:
        self.slabs = Slabs(geometry)
        self.order = order
        self.entries = entries if entries is not None else Entries()
        self.slots: dict[int, Slot] = {}
        self.listed: dict[Name, Slot] = {}
        self.holds = Holds()
        self.spaces: dict[int, tuple[bytes, Shards]] = {}
        self.tenancies: dict[int, int] = {}
        self.counts = Counts()
        self.on_evict: Callable[[Slot], None] = lambda _: None
        self._crowded = False  # this call has had to take what is no leaf

    # ---- namespaces

    def add_namespace(self, ns: int, digest: bytes, shards: Shards) -> None:
        self.spaces[ns] = (digest, shards)

    def drop_namespace(self, ns: int) -> int:
        """Unlists everything of it; returns how many slots that were."""
        space = self.spaces.pop(ns, None)
        if space is None:
            return 0
        return sum(self._retire(slot) for slot in list(self.slots.values()) if slot.name.digest == space[0])

    # ---- publishing

    def reserve(
        self,
        owner: int,
        ns: int,
        shard: int,
        keys: Sequence[bytes],
        *,
        parent: bytes = b"",
        metas: Sequence[bytes] = (),
        hint: Hint = NO_HINT,
        in_place: bool,
        now: int,
        lapse_after: int,
        told: Told | None = None,
    ) -> list[Reserved]:
        """What is here already is touched as one batch, and is not evicted by this call."""
        self.entries.begin()
        self._crowded = False
        digest, shards = self.spaces[ns]
        here = [s for key in keys if (s := self._sealed(Name(digest, shard, key)))]
        above = self.listed.get(Name(digest, shard, parent)) if parent else None
        own = [] if hint.from_below else chain_up(above, self._parent_of)
        kept = [*here, above] if above is not None and above.state == SlotState.SEALED else here
        for keeping in kept:
            keeping.holds += 1
        self.order.touched([slot.ticket.slot for slot in here], hint)
        out: list[Reserved] = []
        full = above_is_new = False
        for i, key in enumerate(keys):
            name = Name(digest, shard, key)
            slot = self.listed.get(name)
            if slot is not None:
                out.append(_here(slot))
                if above_is_new and above is not None:
                    self.order.added(slot.ticket.slot, above.ticket.slot, 0, hint)
                above, above_is_new = slot, False
                continue
            fits = self.slabs.geometry.fits(sum(shards[shard]))
            slot = self._grant(name, shards[shard], above, own, hint, told) if fits and not full else None
            above, above_is_new = slot, slot is not None
            if slot is None:
                full = full or fits
                too_large = not fits and not full
                out.append(Reserved(ReserveStatus.TOO_LARGE if too_large else ReserveStatus.FULL))
                continue
            slot.writer = Writer(owner, in_place, now + lapse_after)
            before = keys[i - 1] if i else parent
            slot.parent, slot.meta = before, metas[i] if metas else b""
            slot.position = hint.position + i
            self._write_reserved(slot)
            out.append(Reserved(ReserveStatus.GRANTED, slot.ticket, slot.offset))
        for keeping in kept:
            keeping.holds -= 1
        return out

    def publish_part(self, owner: int, ticket: Ticket, part: int, checksum: int) -> Outcome:
        slot = self._written_by(owner, ticket)
        if slot is None or slot.state != SlotState.RESERVED:
            return Outcome.STALE
        return slot.publish(part, checksum)

    def seal(self, owner: int, ticket: Ticket, checksums: Sequence[int]) -> Outcome:
        """Takes the checksums of the parts not yet published; or of all, if those published agree."""
        self.entries.begin()
        slot = self._written_by(owner, ticket)
        if slot is None or slot.state != SlotState.RESERVED:
            return Outcome.STALE
        ready = len(slot.checksums)
        if len(checksums) == slot.parts and list(checksums[:ready]) == slot.checksums:
            checksums = checksums[ready:]
        if len(checksums) != slot.parts - ready:
            return Outcome.BAD_INPUT
        slot.checksums.extend(checksums)
        slot.writer = None
        slot.move(SlotState.SEALED)
        self._write_sealed(slot)
        return Outcome.OK

    def abort(self, owner: int, ticket: Ticket) -> Outcome:
        """The owner says that it writes no more: that lifts a quarantine too, though the answer is STALE then."""
        self.entries.begin()
        slot = self._written_by(owner, ticket)
        if slot is None:
            return Outcome.STALE
        in_time = slot.state == SlotState.RESERVED
        self.counts.aborted += in_time
        self._end_writer(slot)
        return Outcome.OK if in_time else Outcome.STALE

    # ---- finding

    def find(self, ns: int, shard: int, keys: Sequence[bytes]) -> list[int | None]:
        if ns not in self.spaces:
            return [None] * len(keys)
        digest = self.spaces[ns][0]
        return [s.ticket.slot if (s := self._sealed(Name(digest, shard, key))) else None for key in keys]

    def longest(self, ns: int, shard: int, keys: Sequence[bytes]) -> int:
        found = self.find(ns, shard, keys)
        return found.index(None) if None in found else len(found)

    def shards_of(self, ns: int, key: bytes) -> int:
        shards = self.spaces[ns][1] if ns in self.spaces else ()
        return sum(1 << shard for shard in range(len(shards)) if self.find(ns, shard, [key])[0] is not None)

    # ---- holding

    def hold(
        self,
        owner: int,
        ns: int,
        shard: int,
        keys: Sequence[bytes],
        kind: HoldKind,
        *,
        following: bool = False,
        hint: Hint = NO_HINT,
        now: int = 0,
        lapse_after: int = 0,
        open_max: int = 0,
    ) -> tuple[int, list[Held]]:
        """The longest run that is here: sealed, or, for a follower, reserved with parts published. open_max: it counts
        towards what its owner holds open, and ends before that is more bytes; 0: it does not count.
        """
        self.entries.begin()
        run: list[Slot] = []
        for key in keys if ns in self.spaces else ():
            slot = self.listed.get(Name(self.spaces[ns][0], shard, key))
            if slot is None:
                break
            if slot.state != SlotState.SEALED and not (following and slot.checksums):
                break
            run.append(slot)
        run = self.holds.fitting(owner, run, open_max) if open_max else run
        if not run:
            return 0, []
        self.order.touched([slot.ticket.slot for slot in run], hint)
        deadline = None if kind == HoldKind.VIEW else now + lapse_after
        return self._hold(Hold(owner, kind, deadline, run, counted=open_max > 0), viewed=kind == HoldKind.VIEW)

    def hold_slots(self, owner: int, tickets: Sequence[Ticket]) -> tuple[int, list[Held]]:
        """A mover's: no time, no touch. What is not sealed under its ticket is left out."""
        run = [s for t in tickets if (s := self._slot(t)) and s.state == SlotState.SEALED]
        return self._hold(Hold(owner, HoldKind.LEASE, None, run), viewed=False) if run else (0, [])

    def release(self, owner: int, number: int) -> Outcome:
        self.entries.begin()
        hold = self.holds.by_id.get(number)
        if hold is None or hold.owner != owner:
            return Outcome.STALE
        self._release(number)
        return Outcome.OK

    def owner_gone(self, owner: int) -> None:
        """Releases all it had, and lifts its quarantine."""
        self.entries.begin()
        for number in self.holds.of(owner):
            self._release(number)
        for slot in list(self.slots.values()):
            if slot.writer is not None and slot.writer.owner == owner:
                self.counts.aborted += slot.state == SlotState.RESERVED
                self._end_writer(slot)

    def expire(self, now: int) -> None:
        self.entries.begin()
        for number in self.holds.due(now):
            self.counts.lapsed_leases += self.holds.by_id[number].kind == HoldKind.LEASE
            self._release(number)
        for slot in list(self.slots.values()):
            writer = slot.writer
            if writer is not None and not writer.lapsed and writer.deadline <= now:
                self.counts.lapsed_reservations += 1
                self._drop_reservation(slot)

    def next_expiry(self) -> int | None:
        times = self.holds.deadlines()
        times += [s.writer.deadline for s in self.slots.values() if s.writer is not None and not s.writer.lapsed]
        return min(times, default=None)

    def holds_of(self, owner: int) -> int:
        return len(self.holds.of(owner))

    # ---- leaving

    def retire(self, slot: int) -> Outcome:
        self.entries.begin()
        found = self.slots.get(slot)
        return Outcome.OK if found is not None and self._retire(found) else Outcome.STALE

    def retire_keys(self, ns: int, keys: Sequence[bytes]) -> int:
        """All shards; returns slots unlisted."""
        self.entries.begin()
        if ns not in self.spaces:
            return 0
        digest, shards = self.spaces[ns]
        names = [Name(digest, shard, key) for shard in range(len(shards)) for key in keys]
        return sum(self._retire(slot) for name in names if (slot := self.listed.get(name)))

    def mark(self, ticket: Ticket, *, clean: bool) -> None:
        slot = self._slot(ticket)
        if slot is not None and slot.state == SlotState.SEALED:
            slot.clean = clean
            self._write_control(slot)

    def dirty_victims(self, nbytes: int) -> list[Ticket]:
        """Of the first so many bytes that could go, those that are not clean. Leaves go first, coldest first; then what
        lies behind leaves that cannot go, from the beginnings of chains. Which comes first is the table's to choose.
        """
        leaving = self.order.leaving(lambda slot: self.slots[slot].evictable)
        rest = {at for at, slot in self.slots.items() if slot.evictable} - set(leaving)
        out: list[Ticket] = []
        for at in [*leaving, *sorted(rest, key=lambda at: self.slots[at].position)]:
            slot = self.slots[at]
            nbytes -= slot.payload_bytes
            if nbytes < 0:
                break
            if not slot.clean:
                out.append(slot.ticket)
        return out

    # ---- how it is done

    def _slot(self, ticket: Ticket) -> Slot | None:
        slot = self.slots.get(ticket.slot)
        return slot if slot is not None and slot.ticket == ticket else None

    def _sealed(self, name: Name) -> Slot | None:
        slot = self.listed.get(name)
        return slot if slot is not None and slot.state == SlotState.SEALED else None

    def _written_by(self, owner: int, ticket: Ticket) -> Slot | None:
        slot = self._slot(ticket)
        return slot if slot is not None and slot.writer is not None and slot.writer.owner == owner else None

    def _grant(
        self,
        name: Name,
        parts: tuple[int, ...],
        above: Slot | None,
        own: list[Slot],
        hint: Hint,
        told: Told | None,
    ) -> Slot | None:
        """above: its parent. own: what the call's blocks descend from."""
        cell = self.slabs.geometry.cell_bytes(sum(parts))
        while not self.slabs.candidates(cell):
            if not self._make_room(cell, own, told):
                return None
        ticket = told.granted.popleft() if told else None
        at = self.slabs.take(cell, ticket.slot if ticket else None)
        assert at is not None
        tenancy = ticket.tenancy if ticket else self.tenancies.get(at, 0) + 1
        assert tenancy != self.tenancies.get(at), f"slot {at}: a tenancy's number came twice in a row"
        self.tenancies[at] = tenancy
        slot = Slot(Ticket(at, tenancy), self.slabs.offset(at), sum(parts), len(parts), name)
        slot.move(SlotState.RESERVED)
        self.slots[at] = self.listed[name] = slot
        self.order.added(at, above.ticket.slot if above else None, hash_of(name), hint)
        return slot

    def victims(self, cell: int, own: Sequence[Slot] = ()) -> list[int]:
        """Who may go to make room for a cell, all equally good. Empty: only what is held or written is left, and what
        `own` has that is dirty.
        """
        lone = {slab for slab in range(len(self.slabs.slabs)) if self._may_empty(slab)}

        def usable(slot: int) -> bool:
            found = self.slots[slot]
            slab = self.slabs.slab_of(slot)
            return found.evictable and (self.slabs.slabs[slab].cell_bytes == cell or slab in lone)

        coldest = self.order.coldest(usable)
        # The table looks for its last resorts once a call, and goes by them although one that went has bared a leaf.
        self._crowded = self._crowded or not coldest
        if not self._crowded:
            return coldest
        last = [slot for at, slot in self.slots.items() if usable(at)]
        return [*coldest, *last_resorts(last, own, self._parent_of)]

    def _parent_of(self, slot: Slot) -> Slot | None:
        return self.listed.get(slot.name._replace(key=slot.parent)) if slot.parent else None

    def _may_empty(self, slab: int) -> bool:
        return all(self.slots[slot].evictable for slot in self.slabs.slots_of(slab))

    def _make_room(self, cell: int, own: list[Slot], told: Told | None) -> bool:
        allowed = self.victims(cell, own)
        if not allowed or (told is not None and not told.evicted):
            assert told is None or not allowed, f"answered FULL although any of {allowed} could go"
            return False
        victim = told.evicted[0] if told else allowed[0]
        slab = self.slabs.slab_of(victim)
        if self.slabs.slabs[slab].cell_bytes == cell:
            assert victim in allowed, f"evicted {victim}, which was not among the coldest {allowed}"
            leaving = [victim]
        else:
            leaving = self.slabs.slots_of(slab)
            assert set(leaving) & set(allowed), f"emptied slab {slab}, but the coldest are {allowed}"
            self.counts.slabs_moved += 1
        for slot in leaving:
            if told is not None:
                gone = told.evicted.popleft()
                assert gone in leaving, f"evicted {gone} while {leaving} had to go"
            self._evict(self.slots[slot])
        return True

    def _evict(self, slot: Slot) -> None:
        if slot.clean:
            self.counts.evicted_clean += 1
        else:
            self.counts.evicted_dirty += 1
        self.on_evict(slot)
        self._retire(slot)

    def _hold(self, hold: Hold, *, viewed: bool) -> tuple[int, list[Held]]:
        out = []
        for slot in hold.slots:
            slot.holds += 1
            if viewed:
                slot.views += 1
                self.entries.write(slot.ticket.slot, "views", slot.views)
            out.append(Held(slot.ticket, slot.offset, len(slot.checksums)))
        return self.holds.add(hold), out

    def _release(self, number: int) -> None:
        hold = self.holds.by_id.pop(number)
        for slot in reversed(hold.slots):
            slot.holds -= 1
            if hold.kind == HoldKind.VIEW:
                slot.views -= 1
                self.entries.write(slot.ticket.slot, "views", slot.views)
            self._free_if_unused(slot)

    def _retire(self, slot: Slot) -> bool:
        if slot.state == SlotState.RESERVED:
            self._drop_reservation(slot)
            return True
        if slot.state != SlotState.SEALED:
            return False
        self._unlist(slot)
        slot.move(SlotState.RETIRED)
        self._write_control(slot)
        self._free_if_unused(slot)
        return True

    def _drop_reservation(self, slot: Slot) -> None:
        """By lapse, or by a clear: quarantined if its writer may still write into the medium itself."""
        assert slot.writer is not None
        if not slot.writer.in_place:
            self._end_writer(slot)
            return
        self._unlist(slot)
        slot.writer.lapsed = True
        self.counts.quarantined += 1
        slot.move(SlotState.RETIRED)
        self._write_control(slot)

    def _end_writer(self, slot: Slot) -> None:
        slot.writer = None
        if slot.state == SlotState.RESERVED:
            self._unlist(slot)
            slot.move(SlotState.RETIRED)
        self._write_control(slot)
        self._free_if_unused(slot)

    def _unlist(self, slot: Slot) -> None:
        del self.listed[slot.name]
        self.order.removed(slot.ticket.slot)

    def let_go_of_former(self, slot: Slot) -> None:
        """No client of a former process can touch it any more."""
        slot.former = False
        self._write_control(slot)
        self._free_if_unused(slot)

    def _free_if_unused(self, slot: Slot) -> None:
        if slot.state == SlotState.RETIRED and not slot.kept:
            self._free(slot)

    def _free(self, slot: Slot) -> None:
        slot.move(SlotState.FREE)
        self._write_control(slot)
        del self.slots[slot.ticket.slot]
        self.slabs.give(slot.ticket.slot)

    # ---- the words of an entry, each verb's in program order

    def _write_reserved(self, slot: Slot) -> None:
        at = slot.ticket.slot
        about = About(slot.ticket, slot.name, slot.parent, slot.meta, slot.position, slot.payload_bytes, slot.parts)
        self.entries.write(at, "about", about)
        self.entries.write(at, "views", 0)
        self._write_control(slot)

    def _write_sealed(self, slot: Slot) -> None:
        self.entries.write(slot.ticket.slot, "checksums", tuple(slot.checksums))
        self._write_control(slot)

    def _write_control(self, slot: Slot) -> None:
        control = Control(slot.state, slot.writer is not None, slot.former, slot.clean)
        self.entries.write(slot.ticket.slot, "control", control)


def hash_of(name: Name) -> int:
    """What a policy with memory knows a content by."""
    return int.from_bytes(name.key[:8], "little") ^ name.shard


def _here(slot: Slot) -> Reserved:
    if slot.state == SlotState.SEALED:
        return Reserved(ReserveStatus.HELD, slot.ticket, slot.offset)
    return Reserved(ReserveStatus.PENDING)
