"""What must be true of a table model between calls."""

from __future__ import annotations

from kvstore.testing.models.lifecycle import SlotState
from kvstore.testing.models.table import TableModel


def check(table: TableModel) -> None:
    """Slots add up, holds and states agree, what is listed is found by its name. AssertionError naming what is not."""
    held: dict[int, int] = {}
    for hold in table.holds.by_id.values():
        for slot in hold.slots:
            held[slot.ticket.slot] = held.get(slot.ticket.slot, 0) + 1
            assert table.slots.get(slot.ticket.slot) is slot, f"slot {slot.ticket.slot} is held and was reused"
    listed = 0
    for at, slot in table.slots.items():
        assert slot.holds == held.get(at, 0), f"slot {at}: {slot.holds} holds, {held.get(at, 0)} of them known"
        assert slot.state != SlotState.FREE, f"slot {at} is free and in use"
        assert slot.state != SlotState.RESERVED or slot.writer is not None, f"slot {at} is reserved by nobody"
        assert slot.state != SlotState.SEALED or slot.writer is None, f"slot {at} is sealed and written"
        assert slot.state != SlotState.SEALED or len(slot.checksums) == slot.parts, f"slot {at} lacks checksums"
        assert slot.state != SlotState.RETIRED or slot.kept, f"slot {at} is retired, unused and not free"
        if slot.listed:
            listed += 1
            assert table.listed.get(slot.name) is slot, f"slot {at} is not to be found by its name"
    assert listed == len(table.listed), "names without slots"
    used = sum(len(slab.used) for slab in table.slabs.slabs)
    assert used == len(table.slots), f"{used} cells in use for {len(table.slots)} slots"
    _check_places(table)


def _check_places(table: TableModel) -> None:
    """No two slots share a byte, and none passes the medium's end."""
    end = 0
    for slot in sorted(table.slots.values(), key=lambda slot: slot.offset):
        assert slot.offset >= end, f"slot {slot.ticket.slot} overlaps the one before"
        end = slot.offset + slot.payload_bytes
    assert end <= table.slabs.geometry.bytes, "the last slot passes the end of the medium"
