"""A native file table and its model, with what outlives them: a disk of headers and blocks, an index of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from kvstore import native
from kvstore.testing.models.disk import DiskModel, Torn, identity
from kvstore.testing.models.lifecycle import Outcome, Slot, SlotState, Ticket
from kvstore.testing.models.records import Record, decode, record_of, restore
from kvstore.tiers.file_index import EPOCHS_AHEAD, split_records
from tests.model.table_pair import TablePair, aligned, word_of

HEADER_BYTES: Final = 4096
Claim = tuple[bytes, Record]


class FilePair(TablePair):
    """`index`: payload offset to row, as transactions made it; `history`: every state that it was in this life, and
    what it said of epochs."""

    always_in_place = True  # a write that comes late must not meet another tenancy

    def __init__(self, slabs: int, slab_bytes: int, policy: str) -> None:
        super().__init__(slabs, slab_bytes, HEADER_BYTES, policy, judged=policy == "leaf_lru")
        self.disk = DiskModel()
        self.ever: set[tuple[object, ...]] = set()  # all that was ever written
        self.here: set[tuple[object, ...]] = set()  # of that, by this process
        self.index: dict[int, Claim] = {}
        self.epochs = EPOCHS_AHEAD  # as the index tells them
        self.history: list[tuple[dict[int, Claim], int]] = [({}, EPOCHS_AHEAD)]
        self.rejected: set[int] = set()  # offsets of rows that the last restore did not believe
        self.doubtful: set[tuple[object, ...]] = set()  # restored, and found overwritten by whoever reads them

    def _open(self) -> native.SlotTable:
        self.meta = aligned(self.meta.size)  # nothing of it outlives a process
        return super()._open()

    # ---- what a file tier does between reserve and seal

    def write(self, ticket: Ticket, checksums: Sequence[int], torn: Torn = "") -> None:
        """Of a reserved slot: header and payload."""
        raw = self.native.record(word_of(ticket), np.array(checksums, np.uint64))
        assert raw is not None
        (record,) = decode(raw)
        expected = record_of(self.model.slots[ticket.slot], record.sequence)
        assert record == expected._replace(checksums=tuple(checksums))
        assert record.ticket_number == ticket.tenancy
        self._is_the_latest(record)
        self.disk.write(raw, record, torn)
        self.ever.add(identity(record))
        self.here.add(identity(record))

    def _is_the_latest(self, record: Record) -> None:
        """Of all claims on a slab that cannot both be, the one made now must win, whatever this process knows of."""
        shape = self.geometry
        cell = shape.cell_bytes(record.payload_bytes)
        for _, other in self.disk.headers.values():
            same_slab = other.offset // shape.slab_bytes == record.offset // shape.slab_bytes
            if same_slab and shape.cell_bytes(other.payload_bytes) != cell:
                assert other.sequence < record.sequence, f"{other} would win over {record}"

    def seal(self, owner: int, ticket: Ticket, checksums: Sequence[int]) -> Outcome:
        """Sealed is only what was written."""
        slot = self.model.slots.get(ticket.slot)
        if slot is not None and slot.ticket == ticket and slot.state == SlotState.RESERVED and slot.writer is not None:
            ready = [] if len(checksums) == slot.parts else slot.checksums
            whole = [*ready, *checksums]
            if (
                len(whole) == slot.parts
                and slot.writer.owner == owner
                and whole[: len(slot.checksums)] == slot.checksums
            ):
                self.write(ticket, whole)
        return super().seal(owner, ticket, checksums)

    # ---- the checkpoint

    def drain(self, most: int) -> bool:
        """One transaction of at most so many changes. Whether that was all."""
        raw, freed = self.native.drain_changes(most)
        rows = [(row, decode(row)[0]) for _, row in split_records(raw)]
        assert len(rows) + len(freed) <= most
        for offset in freed.tolist():
            self.index.pop(offset, None)
            self.rejected.discard(offset)
        for claim in rows:
            record = claim[1]
            slot = self._slot_at(record.offset)
            assert slot is not None and slot.state == SlotState.SEALED, f"a row of what is not sealed: {record}"
            assert record == record_of(slot, record.sequence)
            assert record.ticket_number == slot.ticket.tenancy
            assert self.disk.reads_back(record) or identity(record) in self.doubtful
            self.index[record.offset] = claim
            self.rejected.discard(record.offset)
        self._rows_can_all_be()
        self.epochs = self.native.epochs() + EPOCHS_AHEAD
        self.history.append((dict(self.index), self.epochs))
        if len(rows) + len(freed) == most:
            return False
        self._index_is_the_table()
        return True

    def _slot_at(self, offset: int) -> Slot | None:
        return next((slot for slot in self.model.slots.values() if slot.offset == offset), None)

    def _rows_can_all_be(self) -> None:
        """No two rows on one byte, and no two of one name: whenever it is cut, an index contradicts itself nowhere."""
        end, names = 0, set()
        for offset in sorted(self.index.keys() - self.rejected):
            record = self.index[offset][1]
            assert offset - HEADER_BYTES >= end, f"{record} lies on the one before"
            end = offset - HEADER_BYTES + self.geometry.cell_bytes(record.payload_bytes)
            assert record.name not in names, f"{record.name} twice"
            names.add(record.name)

    def _index_is_the_table(self) -> None:
        """When nothing is left to drain: a row for each sealed slot, and none of a place that is free."""
        sealed = {slot.offset for slot in self.model.slots.values() if slot.state == SlotState.SEALED}
        assert sealed <= self.index.keys(), "a sealed slot without a row"
        for offset, (_, record) in self.index.items():
            slot = self._slot_at(offset)
            assert slot is not None, f"a row of a free place: {record}"
            assert identity(record) == identity(record_of(slot, 0)), f"a row of another tenancy: {record}"
            assert slot.state != SlotState.SEALED or record == record_of(slot, record.sequence), "an old row"

    # ---- a new process

    def readable(self) -> set[Record]:
        """What is sealed now, without flags and sequences, and lies whole on the disk: all but what an old row told."""
        sealed = {record for record in self.rows_now() if identity(record) not in self.doubtful}
        assert all(self.disk.reads_back(record) for record in sealed), "sealed, and not on the disk"
        return {plain(record) for record in sealed}

    def lasting(self) -> set[Record]:
        """Of what is readable, what headers alone would tell of: all that this process wrote. What it has from an index
        may be contradicted by headers that came after that, and that nobody has told it of.
        """
        shape, latest = self.geometry, dict[int, Record]()
        for _, header in self.disk.headers.values():
            slab = header.offset // shape.slab_bytes
            if slab not in latest or latest[slab].sequence < header.sequence:
                latest[slab] = header
        kept = set()
        for record in self.readable():
            newest = latest[record.offset // shape.slab_bytes]
            same = shape.cell_bytes(newest.payload_bytes) == shape.cell_bytes(record.payload_bytes)
            if same or identity(record) in self.here:
                kept.add(record)
        return kept

    def rows_now(self) -> list[Record]:
        return [record_of(slot, 0) for slot in self.model.slots.values() if slot.state == SlotState.SEALED]

    def restart_on(self, claims: Iterable[Claim], epochs: int) -> None:
        """The process is killed; another begins on these claims, and on what the index said of epochs (0: lost)."""
        claims = list(claims)
        self.native = self._open()
        count = self.native.restore(b"".join(raw for raw, _ in claims), epochs)
        self.model = restore(self.geometry, self._order(), [record for _, record in claims])
        assert count == len(self.model.slots)
        assert self.native.stats()["recovered_rejected"] == len(claims) - count
        self.holds.clear()
        self.former_counted = 0
        self.index = {claim[1].offset: claim for claim in claims}
        self.rejected = self.index.keys() - {slot.offset for slot in self.model.slots.values()}
        self.here.clear()
        self.epochs = self.native.epochs() + EPOCHS_AHEAD
        self.history = [(dict(self.index), self.epochs)]
        self.doubtful = {identity(record) for record in self.rows_now() if not self.disk.reads_back(record)}
        for record in self.rows_now():
            assert identity(record) in self.ever, f"nobody ever wrote {record}"


def plain(record: Record) -> Record:
    return record._replace(clean=False, sequence=0)
