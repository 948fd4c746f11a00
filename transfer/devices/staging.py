"""Pinned host memory through which bytes pass to and from a device that no NIC can see: the pool of it.

Rules
- Buffers are of one size and pinned in full at the start, never more than `staging_bytes_max`.
- Whoever waits for a buffer holds none (transfer.devices.crossing), so two transfers never wait for each other. Those
  that wait are served in their order.
- A buffer that something may still touch is poisoned: never leased again, never unpinned.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transfer.errors import LimitReached
from transfer.native import keep_forever

__all__ = ["Buffer", "Mark", "StagingPool", "Stream"]

BUFFER_BYTES = 2 << 20

Bytes = npt.NDArray[np.uint8]


class Mark(Protocol):
    """A place in a stream."""

    def done(self) -> bool:
        """Whether everything before it has ended. Raises if the device has failed."""
        ...


class Stream(Protocol):
    """Copies in their order. Nothing here waits; all may raise what the device says."""

    def to_device(self, address: int, host: Bytes) -> None: ...

    def to_host(self, host: Bytes, address: int) -> None: ...

    def mark(self) -> Mark: ...

    def after(self, stream: int) -> None:
        """What is queued from now on waits for what another stream, by its handle, has queued until now."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    memory: Bytes


class StagingPool:
    """`pin` gives one buffer of pinned memory; it may wait, so make the pool off the event loop."""

    def __init__(
        self, pin: Callable[[int], Bytes], *, staging_bytes_max: int, buffer_bytes: int = BUFFER_BYTES
    ) -> None:
        if buffer_bytes < 4096:
            raise ValueError(f"buffer_bytes must be at least 4096, not {buffer_bytes}")
        if staging_bytes_max < buffer_bytes:
            raise ValueError(f"staging_bytes_max must hold a buffer of {buffer_bytes} bytes, not {staging_bytes_max}")
        self.buffer_bytes = buffer_bytes
        self._free = [Buffer(pin(buffer_bytes)) for _ in range(staging_bytes_max // buffer_bytes)]
        self._live = len(self._free)
        self._waiting: deque[asyncio.Future[Buffer]] = deque()

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def live(self) -> int:
        """Buffers that are not poisoned."""
        return self._live

    async def lease(self) -> Buffer:
        """Waits for one; the caller sets the deadline. Raises LimitReached(staging_bytes_max) if none can ever come."""
        if not self._live:
            raise _dead()
        if self._free and not self._waiting:
            return self._free.pop()
        turn: asyncio.Future[Buffer] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.give_back(turn.result())  # it came in the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def give_back(self, buffer: Buffer) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(buffer)
                return
        self._free.append(buffer)

    def poison(self, buffer: Buffer) -> None:
        """Something may still touch it: never leased again, never unpinned."""
        keep_forever(buffer.memory)
        self._live -= 1
        while not self._live and self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(_dead())


def _dead() -> LimitReached:
    return LimitReached("every staging buffer is poisoned", limit="staging_bytes_max")
