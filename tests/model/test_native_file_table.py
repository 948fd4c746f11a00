"""The native table as a file tier's: checkpointed by its changes, killed at any of them, restored from rows or headers.

What comes back was written once, reads back as what its row says, and is as much as what it is restored from allows.
"""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from kvstore.testing.models.disk import Torn
from kvstore.testing.models.lifecycle import SlotState
from tests.model.file_pair import Claim, FilePair, plain
from tests.model.table_pair import SHARDS
from tests.model.test_native_table import AT_LEAST, TableMachine

EVERYTHING = 1 << 20


class FileTableMachine(TableMachine):
    policy = "leaf_lru"
    pair: FilePair

    @initialize(slabs=st.integers(1, 4), slab=st.sampled_from([16_384, 32_768]), header=st.just(4096))
    def begin(self, slabs: int, slab: int, header: int) -> None:
        super().begin(slabs, slab, header)

    def make(self, slabs: int, slab: int, header: int) -> FilePair:
        return FilePair(slabs, slab, self.policy)

    @precondition(lambda self: self.written)
    @rule(data=st.data(), torn=st.sampled_from(["", "no header", "no payload"]))
    def write_only(self, data: st.DataObject, torn: Torn) -> None:
        """What a kill before the seal leaves, or a medium that refuses half of it."""
        _, ticket, parts = data.draw(st.sampled_from(self.written))
        slot = self.pair.model.slots.get(ticket.slot)
        if slot is None or slot.ticket != ticket or slot.state != SlotState.RESERVED:
            return
        self.pair.write(ticket, slot.checksums + [100 + part for part in range(parts)][len(slot.checksums) :], torn)

    @rule(most=st.sampled_from([1, 2, 3, 5, EVERYTHING]))
    def drain(self, most: int) -> None:
        self.pair.drain(most)

    @rule()
    def checkpoint(self) -> None:
        while not self.pair.drain(4):
            pass

    # ---- a new process

    @rule(gone=st.booleans(), before_open=st.booleans())
    def restart(self, gone: bool, before_open: bool) -> None:
        """A stop: everything is drained first, and nothing sealed is forgotten."""
        self.checkpoint()
        sealed = self.pair.readable()
        self.begin_on(self.pair.index.values(), self.pair.epochs)
        assert self.pair.readable() >= sealed

    @rule(data=st.data())
    def killed(self, data: st.DataObject) -> None:
        """The index may be as old as any transaction of this life."""
        history = self.pair.history
        at = data.draw(st.integers(0, len(history) - 1))
        sealed, (rows, epochs) = self.pair.readable(), history[at]
        self.begin_on(rows.values(), epochs)
        still = {plain(record) for _, record in rows.values()} & sealed
        assert {plain(slot) for slot in self.pair.rows_now()} >= still

    @rule(then_checkpoint=st.booleans())
    def index_lost(self, then_checkpoint: bool) -> None:
        """Headers are all that is left: every name that was sealed is found again, though perhaps at an older place,
        and however old the index was that this life began on.
        """
        names = {record.name for record in self.pair.lasting()}
        self.begin_on(self.pair.disk.headers.values(), 0)
        found = {record.name for record in self.pair.rows_now() if self.pair.disk.reads_back(record)}
        assert names <= found
        if then_checkpoint:  # what was not believed is not in the index any more
            self.checkpoint()

    def begin_on(self, claims: Iterable[Claim], epochs: int) -> None:
        self.pair.restart_on(claims, epochs)
        self.written.clear()
        for ns in SHARDS:
            self.open(ns)


TestFileTable = FileTableMachine.TestCase
TestFileTable.settings = settings(max_examples=max(AT_LEAST, settings().max_examples))
