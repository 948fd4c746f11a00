"""Twins with one rule left out each. A simulation that does not catch every one of them has no teeth."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.testing.link import Link
from kvstore.testing.models.away import AwayClientModel
from kvstore.testing.models.client import Asking, ClientModel
from kvstore.testing.models.keys import part_checksums
from kvstore.testing.models.leases import HoldKind
from kvstore.testing.models.lifecycle import Slot, SlotState
from kvstore.testing.models.namespaces import Namespaces
from kvstore.testing.models.node import NodeModel
from kvstore.testing.models.table import Reserved, TableModel
from kvstore.testing.models.transfers import Grant, Landed, Reading
from kvstore.testing.models.visitors import LeaseOf, Slots, Sums, VisitorsModel
from kvstore.testing.world import Wait


class NoQuarantine(TableModel):
    """A lapsed reservation frees its slot although its writer may still write."""

    def _drop_reservation(self, slot: Slot) -> None:
        self._end_writer(slot)


class FreesHeld(TableModel):
    """A retired slot is free at once, whoever holds it."""

    def _free_if_unused(self, slot: Slot) -> None:
        if slot.state == SlotState.RETIRED and slot.writer is None and not slot.former:
            self._free(slot)


class ViewsLapse(TableModel):
    """A view ends by time, as if its holder verified after the copy."""

    VIEW_MAX = 500

    def expire(self, now: int) -> None:
        for hold in self.holds.by_id.values():
            if hold.kind == HoldKind.VIEW and hold.deadline is None:
                hold.deadline = now + self.VIEW_MAX
        super().expire(now)


class LeaksLapsed(TableModel):
    """Who lapses is forgotten, and what it held stays held."""

    def expire(self, now: int) -> None:
        for number in self.holds.due(now):
            del self.holds.by_id[number]
        super().expire(now)


class StateFirst(TableModel):
    """An entry says what it is before it is so."""

    def _write_reserved(self, slot: Slot) -> None:
        self._write_control(slot)
        super()._write_reserved(slot)

    def _write_sealed(self, slot: Slot) -> None:
        self._write_control(slot)
        super()._write_sealed(slot)


class RenamedInUse(TableModel):
    """A slot is given its next name before its entry has been FREE."""

    def _write_control(self, slot: Slot) -> None:
        if slot.listed or slot.kept or slot.writer is not None:
            super()._write_control(slot)


class ForgetsFormer(NodeModel):
    """A new process takes all clients of the former one for gone."""

    def _poll(self) -> None:
        self._former.clear()
        super()._poll()


class TrustsTheCut(NodeModel):
    """Takes a client for gone as soon as it has cut the connection itself."""

    def cut(self, link: Link) -> None:
        super().cut(link)
        self.gone(link)


class Unverified(ClientModel):
    """Takes what it copied under a lease for what it asked for."""

    def verified(self, data: bytes, sizes: Sequence[int], checksums: Sequence[int]) -> bool:
        return True


class WaitsForEver(ClientModel):
    """Has no deadline."""

    def latest(self, began: int) -> int | None:
        return None


class KeepsGeneration(Namespaces):
    """A clear drops what the node has in memory, and no more."""

    def clear(self, name: str) -> None:
        self.clears[name] = self.clears.get(name, 0) + 1


# ---- where bytes move by transfers


class ReleasesFirst(VisitorsModel):
    """Lets go of the hold, and then takes back the grant."""

    def take_back(self, lease: LeaseOf) -> None:
        self._let_go(lease)
        self.lender.revoke(lease.grant, lambda: None)


class RevokesNotAtAll(VisitorsModel):
    """A lease ends, and its grant goes on until its time is over."""

    def take_back(self, lease: LeaseOf) -> None:
        self._let_go(lease)


class HoldsByConnection(VisitorsModel):
    """What is leased is held for the connection itself, whose end lets go of everything at once."""

    def owner_of(self, link: Link) -> int:
        return link.owner

    def gone(self, link: Link) -> None:
        self.node.table.owner_gone(link.owner)
        super().gone(link)


class ReservesAsCopiedIn(VisitorsModel):
    """Slots that lapse, or whose namespace is cleared, are free at once, although a read into them is in motion."""

    def reserve(self, owner: int, ns: int, shard: int, keys: tuple[bytes, ...]) -> Sequence[Reserved]:
        return self.node.table.reserve(
            owner, ns, shard, keys, in_place=False, now=self.world.now, lapse_after=self.node.limits.reserve_lapse
        )


class ForgetsReads(VisitorsModel):
    """A connection's end gives back its slots, and does not wait for the reads into them."""

    def give_up(self, slots: Slots) -> None:
        self.close(slots)
        super().give_up(slots)


class SealsUnarrived(VisitorsModel):
    """Takes what lies in its slots for what was to arrive there."""

    def arrived(self, slots: Slots, landed: Landed) -> list[Sums | None]:
        memory, size = self.node.remains.memory, sum(slots.shard)
        return [list(part_checksums(memory.read(one.offset, size), slots.shard)) for one in slots.granted]


class FillsUnarrived(VisitorsModel):
    """The same, of a part."""

    def arrived_part(self, slots: Slots, landed: Landed, part: int, size: int) -> Sums | None:
        memory, before = self.node.remains.memory, sum(slots.shard[:part])
        return [part_checksums(memory.read(one.offset + before, size), (size,))[0] for one in slots.granted]


class AnswersFirst(AwayClientModel):
    """Answers its caller, and then takes back what it has lent."""

    def take_back(self, grant: Grant) -> Asking:
        self.world.after(self.limits.copy_time, lambda: self.lender.revoke(grant, lambda: None))
        yield 0


class WaitsForNobody(AwayClientModel):
    """Revokes, and answers although a peer is in the middle of a slice."""

    def take_back(self, grant: Grant) -> Asking:
        self.lender.revoke(grant, lambda: None)
        yield 0


class AnswersTooSoon(AwayClientModel):
    """Answers a get at its deadline, whatever may still land."""

    def quiet(self, wait: Wait[object], reading: Reading) -> Asking:
        soon: Wait[object] = Wait(self.world.now + self.limits.copy_time)
        wait.wake = lambda: soon.fulfil(wait.answer)
        if wait.done:
            soon.fulfil(wait.answer)
        landed = yield soon
        return landed if isinstance(landed, Landed) else Landed(tuple(None for _ in reading.rows), "late")


class UnverifiedAway(AwayClientModel):
    """Takes what it has read by a lease for what it asked for."""

    def arrived_right(self, row: bytes, sizes: Sequence[int], checksums: Sequence[int]) -> bool:
        return True
