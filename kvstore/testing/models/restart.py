"""A node's new process on the memory of the former one.

What was sealed is listed again, cold, its chains known. What was viewed, reserved or already kept stays from reuse
until every client of a former process is gone: it may still be read, or written. Leases count for nothing: their
holders verify after the copy.
"""

from __future__ import annotations

from kvstore.testing.models.entries import About, Control, Entries, Entry
from kvstore.testing.models.lifecycle import Name, Slot, SlotState
from kvstore.testing.models.policy import NO_HINT, Order
from kvstore.testing.models.slabs import Geometry
from kvstore.testing.models.table import TableModel, hash_of


def recover(geometry: Geometry, order: Order, entries: Entries, make: type[TableModel] = TableModel) -> TableModel:
    """The table as a new process finds it. A namespace's slots are found once it is open again."""
    table = make(geometry, order, entries)
    entries.begin()
    sealed: list[Slot] = []
    for at in sorted(entries.by_slot):
        entry = entries.by_slot[at]
        about = entry.about
        if entry.control.state == SlotState.FREE or about is None:
            continue
        table.tenancies[at] = about.ticket.tenancy
        slot = recover_one(table, entry, about)
        if slot is None:
            entries.write(at, "control", Control())
        elif slot.state == SlotState.SEALED:
            sealed.append(slot)
    rank(table, sealed)
    return table


def recover_one(table: TableModel, entry: Entry, about: About) -> Slot | None:
    """The slot as it goes on, or None if nobody needs its bytes any more."""
    state, writer, former, clean = entry.control
    viewed = entry.views > 0
    if state == SlotState.RETIRED and not (viewed or writer or former):
        return None
    if state == SlotState.SEALED and (len(entry.checksums) != about.parts or about.name in table.listed):
        return None
    at = about.ticket.slot
    if not table.slabs.claim(at, table.slabs.geometry.cell_bytes(about.payload_bytes)):
        return None
    slot = Slot(
        about.ticket, table.slabs.offset(at), about.payload_bytes, about.parts, about.name, about.parent, about.meta
    )
    slot.position = about.position
    table.slots[at] = slot
    if state == SlotState.SEALED:
        slot.state, slot.checksums, slot.former = state, list(entry.checksums), viewed or former
        slot.clean = clean
        table.listed[about.name] = slot
    else:
        slot.state, slot.former = SlotState.RETIRED, True
    table.entries.write(at, "control", Control(slot.state, False, slot.former, slot.clean))
    table.entries.write(at, "views", 0)
    return slot


def rank(table: TableModel, sealed: list[Slot]) -> None:
    """The order of use did not survive; chains did."""
    table.order.touched([], NO_HINT)
    for slot in sealed:
        table.order.added(slot.ticket.slot, None, hash_of(slot.name), NO_HINT)
    for slot in sealed:
        parent = table.listed.get(Name(slot.name.digest, slot.name.shard, slot.parent)) if slot.parent else None
        if parent is not None:
            table.order.added(slot.ticket.slot, parent.ticket.slot, 0, NO_HINT)


def quarantine_left(table: TableModel) -> bool:
    return any(slot.former for slot in table.slots.values())


def former_clients_gone(table: TableModel) -> None:
    table.entries.begin()
    for slot in list(table.slots.values()):
        if slot.former:
            table.let_go_of_former(slot)
