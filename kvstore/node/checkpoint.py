"""Checkpoints the file tier's index: what has changed in the table goes to LMDB, a batch a transaction, in a thread.

Off the hot path: a change is a few bytes in the core until it is drained, and nobody waits for the transaction. What a
failed one would have said is lost, which costs a restart its blocks and never a wrong byte.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from kvstore.quiet import quietly
from kvstore.tiers.file_index import EPOCHS_AHEAD

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.tiers.file_index import FileIndex

__all__ = ["Checkpoint"]

log = logging.getLogger(__name__)

CHANGES_MAX: Final = 8_192  # of one transaction


class Checkpoint:
    """Lives on one event loop from `start` to `stop`. `thread`: where the index was made and is used."""

    def __init__(self, core: native.NodeCore, index: FileIndex, thread: ThreadPoolExecutor, period_ms: int) -> None:
        self._core = core
        self._index = index
        self._thread = thread
        self._period_s = period_ms / 1000
        self._task: asyncio.Task[None] | None = None
        self._epochs = core.file_epochs()  # when the index was last told; it knows of EPOCHS_AHEAD more
        self.transactions = 0
        self.failures = 0
        self._failing = False

    def start(self) -> None:
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Writes what is left, and closes the index. Nothing is written to the tier any more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        await self.flush()
        await self._apply(b"", [], self._core.file_epochs())
        await quietly(asyncio.get_running_loop().run_in_executor(self._thread, self._index.close))

    async def flush(self) -> None:
        """Everything that has changed until now."""
        while await self._step():
            continue

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._period_s)
            await self.flush()

    async def _step(self) -> bool:
        """One transaction; False: there was nothing to write."""
        records, freed = self._core.drain_changes(CHANGES_MAX)
        epochs = self._core.file_epochs()  # afterwards: no row is of a later one
        if not records and not len(freed) and epochs - self._epochs < EPOCHS_AHEAD // 2:
            return False
        self._epochs = epochs
        await self._apply(records, freed.tolist(), epochs + EPOCHS_AHEAD)
        return True

    async def _apply(self, records: bytes, freed: list[int], epochs: int) -> None:
        loop = asyncio.get_running_loop()
        try:
            await quietly(loop.run_in_executor(self._thread, self._index.apply, freed, records, epochs))
            self.transactions += 1
        except OSError as error:
            self.failures += 1
            if not self._failing:  # several times a second, as long as a disk is full
                log.warning("file tier: checkpoints fail, a restart may forget blocks: %s", error)
            self._failing = True
        else:
            if self._failing:
                log.warning("file tier: checkpoints are written again")
            self._failing = False
