"""What a file tier's slots say of themselves on disk, and the table that a new process makes of it.

A record is read as docs/format/slot.md says. Records are claims, as old as chance has it: of two on the same bytes, or
on the same name, the later one is believed; the bytes themselves are verified by whoever reads them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

import xxhash

from kvstore.testing.models.lifecycle import Name, Slot, SlotState, Ticket
from kvstore.testing.models.policy import Order
from kvstore.testing.models.restart import rank
from kvstore.testing.models.slabs import Geometry
from kvstore.testing.models.table import TableModel

MAGIC: Final = b"\x01KVS"
FIXED: Final = struct.Struct("<4sHHIHHHHIQQQ32s32s32sQ")
CHECK_AT: Final = 144


class Record(NamedTuple):
    """Of one tenancy of a slot. `sequence`: of two claims the greater is the later; its low half is the tenancy."""

    name: Name
    parent: bytes
    position: int
    clean: bool
    payload_bytes: int
    offset: int
    sequence: int
    checksums: tuple[int, ...]
    meta: bytes

    @property
    def ticket_number(self) -> int:
        return max(self.sequence & 0xFFFFFFFF, 1)


def decode(records: bytes) -> list[Record]:
    """Records end to end. ValueError: these bytes are none."""
    found: list[Record] = []
    at = 0
    while at < len(records):
        (length,) = struct.unpack_from("<I", records, at + 8)
        found.append(_decode_one(records[at : at + length]))
        at += length
    return found


def _decode_one(record: bytes) -> Record:
    (
        magic,
        version,
        flags,
        length,
        shard,
        parts,
        metas,
        spare,
        position,
        sequence,
        offset,
        size,
        ns,
        key,
        parent,
        check,
    ) = FIXED.unpack_from(record)
    plain = record[:CHECK_AT] + bytes(8) + record[CHECK_AT + 8 :]
    if (magic, version, spare, length) != (MAGIC, 1, 0, len(record)) or check != xxhash.xxh3_64_intdigest(plain):
        raise ValueError("not a record")
    checksums = struct.unpack_from(f"<{parts}Q", record, FIXED.size)
    at = FIXED.size + 8 * parts
    return Record(
        Name(ns, shard, key),
        parent if any(parent) else b"",
        position,
        bool(flags & 1),
        size,
        offset,
        sequence,
        checksums,
        record[at : at + metas],
    )


def record_of(slot: Slot, sequence: int) -> Record:
    """What a sealed slot must say of itself."""
    return Record(
        slot.name,
        slot.parent,
        slot.position,
        slot.clean,
        slot.payload_bytes,
        slot.offset,
        sequence,
        tuple(slot.checksums),
        slot.meta,
    )


def restore(geometry: Geometry, order: Order, records: Iterable[Record]) -> TableModel:
    """The table of a new process, from claims in any order. A namespace's slots are found once it is open again."""
    table = TableModel(geometry, order)
    restored: list[Slot] = []
    for record in sorted(records, key=lambda record: -record.sequence):
        slot = _restore_one(table, record)
        if slot is not None:
            restored.append(slot)
    rank(table, restored[::-1])
    return table


def _restore_one(table: TableModel, record: Record) -> Slot | None:
    """None: the place, its slab or the name belongs to a later claim, or no cell of this size lies there."""
    geometry = table.slabs.geometry
    at = geometry.slot_at(record.offset, geometry.cell_bytes(record.payload_bytes))
    if at is None or record.name in table.listed:
        return None
    if not table.slabs.claim(at, geometry.cell_bytes(record.payload_bytes)):
        return None
    slot = Slot(
        Ticket(at, record.ticket_number),
        record.offset,
        record.payload_bytes,
        len(record.checksums),
        record.name,
        record.parent,
        record.meta,
        record.position,
        SlotState.SEALED,
        list(record.checksums),
    )
    slot.clean = record.clean
    table.tenancies[at] = record.ticket_number
    table.slots[at] = table.listed[record.name] = slot
    return slot
