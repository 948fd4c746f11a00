"""An I/O engine on an event loop: batches are awaited, and an answer means quiet memory.

A cancelled await tells the engine, waits until the kernel has let go of the buffers, and only then lets the
cancellation through.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kvstore.quiet import quietly

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.tiers.base import Pieces

__all__ = ["AsyncEngine", "EngineBusy"]


class EngineBusy(Exception):
    """As many requests as `pending_max` allows are waiting."""


class AsyncEngine:
    """Lives on one event loop from `open` to `close`."""

    def __init__(self, engine: native.IoEngine) -> None:
        self._engine = engine
        self._waiting: dict[int, asyncio.Future[list[int] | None]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._engine.event_fd, self._reap)

    async def move(
        self, write: bool, offsets: list[int], buffers: Sequence[Pieces], deadline_ns: int, *, background: bool
    ) -> list[int] | None:
        """An errno an extent (0: done), or None where all are done. Raises EngineBusy when nothing was taken on."""
        assert self._loop is not None, "open() first"
        batch = self._engine.submit(write, offsets, list(buffers), deadline_ns, background)
        if batch == 0:
            raise EngineBusy
        future = self._loop.create_future()
        self._waiting[batch] = future
        return await quietly(future, lambda: self._engine.cancel(batch))

    async def close(self, limit_s: float) -> bool:
        """Cancels what waits, and returns when the kernel has let go of everything; or False after `limit_s`: then a
        device does not answer, and neither do we those who wait for it, since it may touch their memory yet. That is
        kept until the process ends, and the files have to stay open for as long.
        """
        if self._loop is None:
            return True
        loop, self._loop = self._loop, None
        loop.remove_reader(self._engine.event_fd)
        try:
            return await quietly(loop.run_in_executor(None, self._engine.close, int(limit_s * 1e9)))
        finally:
            self._settle()

    def _reap(self) -> None:
        try:
            os.read(self._engine.event_fd, 8)
        except BlockingIOError:
            return
        self._settle()

    def _settle(self) -> None:
        for batch, errors in self._engine.reap():
            future = self._waiting.pop(batch)
            if not future.done():
                future.set_result(errors)
