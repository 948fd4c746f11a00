"""Waits for what becomes of blocks that are being published: one event a watch, set through the core's eventfd."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvstore.errors import Rejected

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvstore import native

__all__ = ["Watch", "Watches"]


@dataclass(slots=True)
class Watch:
    """abandoned: since it began, a reservation of one of its keys ended without a seal, or the namespace did."""

    number: int
    abandoned: bool = False
    _told: asyncio.Event = field(default_factory=asyncio.Event)

    def look(self) -> None:
        """What comes about from now on wakes; so look at the table after it."""
        self._told.clear()

    async def wait(self, longest_s: float) -> None:
        """Until something came about since `look`, or the time is over."""
        try:
            async with asyncio.timeout(longest_s):
                await self._told.wait()
        except TimeoutError:
            pass

    def tell(self, *, abandoned: bool) -> None:
        self.abandoned |= abandoned
        self._told.set()


class Watches:
    """Of a core, on one event loop from `open` to `close`."""

    def __init__(self, core: native.NodeCore) -> None:
        self._core = core
        self._watches: dict[int, Watch] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._core.watch_fd, self._take)

    def close(self) -> None:
        if self._loop is not None:
            self._loop.remove_reader(self._core.watch_fd)
            self._loop = None

    def begin(self, ns: int, shard: int, keys: NDArray[np.uint8]) -> Watch:
        """Of a namespace that is open; ended by `end`. Raises Rejected."""
        number = self._core.watch(ns, shard, keys)
        if not number:
            raise Rejected("watches_max: too many follow what is being published here", limit="watches_max")
        watch = self._watches[number] = Watch(number)
        return watch

    def end(self, watch: Watch) -> None:
        if self._watches.pop(watch.number, None) is not None:
            self._core.unwatch(watch.number)

    def _take(self) -> None:
        for number, abandoned in self._core.take_woken():
            watch = self._watches.get(number)
            if watch is not None:
                watch.tell(abandoned=abandoned)
