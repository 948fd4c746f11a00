"""Waits for the native core from an event loop: one future a fetch, completed through the core's eventfd.

A fetch whose waiter was cancelled is released as soon as the core settles it: nobody else knows of its hold.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Final

from kvstore import native
from kvstore.node.watches import Watches

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvstore.clock import Clock

MEMORY_TIER: Final = 1  # as the core numbers its tiers


class CoreBridge:
    """Lives on one event loop from `open` to `close`. The core must outlive it."""

    def __init__(self, core: native.NodeCore, clock: Clock) -> None:
        self.core = core
        self.watches = Watches(core)
        self._clock = clock
        self._tokens = itertools.count(1)
        self._waiting: dict[int, tuple[int, asyncio.Future[native.FetchDone]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self.core.completion_fd, self._complete)
        self.watches.open()

    def close(self) -> None:
        """Waiters still there end with CancelledError."""
        if self._loop is not None:
            self._loop.remove_reader(self.core.completion_fd)
            self.watches.close()
            self._loop = None
        for _, future in self._waiting.values():
            future.cancel()
        self._waiting.clear()

    async def fetch(
        self,
        owner: int,
        ns: int,
        shard: int,
        keys: NDArray[np.uint8],
        *,
        kind: int,
        hint: native.Hint,
        wait_s: float,
        lease_s: float,
        following: bool = False,
        held_open: bool = False,
    ) -> native.FetchDone:
        """The longest run of `keys` that is in memory after at most `wait_s`. Its hold is the caller's to release.
        held_open: it counts towards held_bytes_max of its owner.
        """
        assert self._loop is not None, "open() first"
        token, now = next(self._tokens), self._clock.now_ns()
        future: asyncio.Future[native.FetchDone] = self._loop.create_future()
        self._waiting[token] = (owner, future)
        deadline, lease = now + int(wait_s * 1e9), int(lease_s * 1e9)
        self.core.fetch(token, owner, ns, shard, keys, kind, following, hint, now, deadline, lease, held_open)
        self._complete()  # what is in memory is answered already: that spares a turn of the loop
        if future.done():
            return future.result()
        try:
            done = await future
        except asyncio.CancelledError:
            # Settled and cancelled in the same turn of the loop: the answer would be lost, and its hold with it.
            if future.done() and not future.cancelled():
                self._release(owner, future.result())
            raise
        return done

    def _complete(self) -> None:
        for done in self.core.take_completions():
            owner, future = self._waiting.pop(done.token, (0, None))
            if future is not None and not future.done():
                future.set_result(done)
            else:
                self._release(owner, done)

    def _release(self, owner: int, done: native.FetchDone) -> None:
        if done.hold:
            self.core.release(MEMORY_TIER, owner, done.hold)
