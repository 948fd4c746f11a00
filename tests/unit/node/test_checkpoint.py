"""The checkpoint: everything that changed is written, a batch a transaction, and what was left when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from kvstore.node import checkpoint
from kvstore.node.checkpoint import Checkpoint


class Core:
    def __init__(self) -> None:
        self.changes: list[bytes] = []
        self.freed: list[int] = []
        self.drained = asyncio.Event()

    def file_epochs(self) -> int:
        return 0

    def drain_changes(self, most: int) -> tuple[bytes, npt.NDArray[np.uint64]]:
        some, self.changes = self.changes[:most], self.changes[most:]
        freed, self.freed = np.array(self.freed, np.uint64), []
        if not some and not len(freed):
            self.drained.set()
        return b"".join(some), freed


class Index:
    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.freed: list[int] = []
        self.fails = 0
        self.closed = False

    def apply(self, freed: Iterable[int], records: bytes, epochs: int) -> None:
        assert not self.closed
        if not records and not freed:
            return  # the count of epochs alone, which a stop says last: test_checkpoint_epochs.py
        if self.fails:
            self.fails -= 1
            raise OSError("index: full")
        self.rows.append(records)
        self.freed += freed

    def close(self) -> None:
        self.closed = True


def made(core: Core, index: Index) -> Checkpoint:
    return Checkpoint(core, index, ThreadPoolExecutor(1), 1)  # type: ignore[arg-type]


async def test_all_that_changed_is_written_in_batches() -> None:
    core, index = Core(), Index()
    core.changes = [b"x"] * (2 * checkpoint.CHANGES_MAX + 3)
    at_work = made(core, index)
    await at_work.flush()
    assert [len(rows) for rows in index.rows] == [checkpoint.CHANGES_MAX, checkpoint.CHANGES_MAX, 3]
    assert (at_work.transactions, at_work.failures) == (3, 0)


async def test_it_goes_on_by_itself_and_ends_with_what_is_left() -> None:
    core, index = Core(), Index()
    core.changes = [b"a"]
    at_work = made(core, index)
    at_work.start()
    async with asyncio.timeout(20):
        await core.drained.wait()
    assert index.rows == [b"a"]
    core.changes, core.freed = [b"b"], [4096]
    await at_work.stop()
    assert (index.rows, index.freed, index.closed) == ([b"a", b"b"], [4096], True)


async def test_slots_that_were_only_freed_are_written_too() -> None:
    core, index = Core(), Index()
    core.freed = [4096, 8192]
    await made(core, index).flush()
    assert (index.rows, index.freed) == ([b""], [4096, 8192])


async def test_a_failed_transaction_costs_its_rows_and_no_more() -> None:
    core, index = Core(), Index()
    core.changes, index.fails = [b"x"] * (checkpoint.CHANGES_MAX + 1), 1
    at_work = made(core, index)
    await at_work.flush()
    assert (index.rows, at_work.transactions, at_work.failures) == ([b"x"], 1, 1)


async def test_a_disk_that_stays_full_is_told_once_and_its_end_too(caplog: pytest.LogCaptureFixture) -> None:
    core, index = Core(), Index()
    at_work = made(core, index)
    for fails in (3, 0, 1):
        core.changes, index.fails = [b"x"] * 4 * checkpoint.CHANGES_MAX, fails
        await at_work.flush()
    assert at_work.failures == 4
    told = [record.message for record in caplog.records]
    begun, ended = (
        "file tier: checkpoints fail, a restart may forget blocks",
        "file tier: checkpoints are written again",
    )
    assert [each[: len(begun)] for each in told] == [begun, ended, begun, ended]
