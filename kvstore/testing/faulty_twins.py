"""Twins with one rule left out each. A simulation that does not catch every one of them has no teeth."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.testing.link import Link
from kvstore.testing.models.client import ClientModel
from kvstore.testing.models.leases import HoldKind
from kvstore.testing.models.lifecycle import Slot, SlotState
from kvstore.testing.models.namespaces import Namespaces
from kvstore.testing.models.node import NodeModel
from kvstore.testing.models.table import TableModel


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
