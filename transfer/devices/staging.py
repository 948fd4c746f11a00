"""Pinned host memory through which bytes pass to and from a device that no NIC can see.

  land    lease, fill (from the network), queue the copy, mark      -> once the mark is done, the buffer goes back
  leave   lease, queue the copy, mark      -> once the mark is done, drain (to the network), the buffer goes back

Rules
- Buffers are of one size and pinned in full at the start, never more than `staging_bytes_max`.
- Nothing waits for a buffer while it holds one: a transfer that holds some waits for its own oldest copy instead. So
  two transfers never wait for each other. Those that wait are served in their order.
- Copies of one transfer are queued in order on one stream, with a mark after each.
- An answer, of any kind, means quiet memory: what was queued is waited for first, also when cancelled or failed. What
  is not quiet within `quiesce_max_s` is poisoned: its buffer is never used again, and the caller told (RegionPoisoned).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transfer.devices.memory import DeviceMemory
from transfer.errors import LimitReached, RegionPoisoned
from transfer.native import keep_forever

__all__ = ["Buffer", "Mark", "Stager", "StagingPool", "Stream"]

BUFFER_BYTES = 2 << 20
QUIESCE_MAX_S = 30.0
_EAGER_POLLS = 16
_POLL_MAX_S = 0.001

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

    def try_lease(self) -> Buffer | None:
        return self._free.pop() if self._free and not self._waiting else None

    async def lease(self) -> Buffer:
        """Waits for one; the caller sets the deadline. Raises LimitReached(staging_bytes_max) if none can ever come."""
        self._refuse_if_dead()
        if (buffer := self.try_lease()) is not None:
            return buffer
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

    def _refuse_if_dead(self) -> None:
        if not self._live:
            raise _dead()


def _dead() -> LimitReached:
    return LimitReached("every staging buffer is poisoned", limit="staging_bytes_max")


@dataclass(frozen=True, slots=True)
class _Queued:
    buffer: Buffer
    mark: Mark
    position: int
    count: int


class Stager:
    """Moves ranges of device memory through a pool. `open_stream` gives a fresh stream on a device.

    `fill` and `drain` get a part of a buffer and its position in the range; when they answer, or raise, nothing touches
    that part any more.
    """

    def __init__(
        self,
        pool: StagingPool,
        open_stream: Callable[[int], Stream],
        *,
        ahead_max: int = 4,
        quiesce_max_s: float = QUIESCE_MAX_S,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        if ahead_max < 1:
            raise ValueError(f"ahead_max must be at least 1, not {ahead_max}")
        self._pool = pool
        self._open_stream = open_stream
        self._ahead_max = ahead_max
        self._quiesce_max_s = quiesce_max_s
        self._sleep = sleep

    async def land(
        self,
        memory: DeviceMemory,
        offset: int,
        count: int,
        fill: Callable[[Bytes, int], Awaitable[None]],
        *,
        deadline_s: float,
    ) -> None:
        """Into the device. `deadline_s` from now on. Raises TimeoutError, RegionPoisoned, LimitReached, and whatever
        `fill` or the device raise; part of the range may be written then.
        """
        if not memory.writable:
            raise ValueError("memory is read-only")

        async def begin(copy: _Copy, buffer: Buffer, position: int, size: int) -> None:
            await fill(buffer.memory[:size], position)
            copy.stream.to_device(memory.address + offset + position, buffer.memory[:size])

        async def end(_queued: _Queued) -> None:
            return

        await self._move(memory, offset, count, begin, end, deadline_s)

    async def leave(
        self,
        memory: DeviceMemory,
        offset: int,
        count: int,
        drain: Callable[[Bytes, int], Awaitable[None]],
        *,
        deadline_s: float,
    ) -> None:
        """Out of the device, `drain` in the order of positions. Raises as `land`."""

        async def begin(copy: _Copy, buffer: Buffer, position: int, size: int) -> None:
            copy.stream.to_host(buffer.memory[:size], memory.address + offset + position)

        async def end(queued: _Queued) -> None:
            await drain(queued.buffer.memory[: queued.count], queued.position)

        await self._move(memory, offset, count, begin, end, deadline_s)

    async def _move(
        self, memory: DeviceMemory, offset: int, count: int, begin: _Begin, end: _End, deadline_s: float
    ) -> None:
        if offset < 0 or count < 0 or offset + count > memory.bytes:
            raise ValueError(f"[{offset}, {offset + count}) is beyond the memory's {memory.bytes} bytes")
        copy = _Copy(self._pool, self._open_stream(memory.device), begin, end, self._ahead_max, self._sleep)
        if memory.stream is not None:
            copy.stream.after(memory.stream)
        try:
            async with asyncio.timeout(deadline_s):
                await copy.run(count)
        finally:
            await _uncancelled(copy.settle(self._quiesce_max_s))


class _Copy:
    """One transfer: what is queued, oldest first, and the buffer that is being filled."""

    def __init__(
        self,
        pool: StagingPool,
        stream: Stream,
        begin: _Begin,
        end: _End,
        ahead_max: int,
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.stream = stream
        self._pool = pool
        self._begin = begin
        self._end = end
        self._ahead_max = ahead_max
        self._sleep = sleep
        self._queued: deque[_Queued] = deque()
        self._lost: list[Buffer] = []

    async def run(self, count: int) -> None:
        for position in range(0, count, self._pool.buffer_bytes):
            await self._queue(await self._buffer(), position, min(self._pool.buffer_bytes, count - position))
        while self._queued:
            await self._finish_oldest()

    async def _buffer(self) -> Buffer:
        while self._queued:
            if len(self._queued) < self._ahead_max and (buffer := self._pool.try_lease()) is not None:
                return buffer
            await self._finish_oldest()
        return await self._pool.lease()

    async def _queue(self, buffer: Buffer, position: int, count: int) -> None:
        try:
            await self._begin(self, buffer, position, count)
        except BaseException:
            self._after_error(buffer)
            raise
        try:
            self._queued.append(_Queued(buffer, self.stream.mark(), position, count))
        except BaseException:
            self._lost += [buffer]  # queued, and no mark to tell when it is over
            raise

    def _after_error(self, buffer: Buffer) -> None:
        """Filling failed, or queueing, which may have queued all the same: a mark tells when it is over either way."""
        try:
            self._queued.append(_Queued(buffer, self.stream.mark(), 0, 0))
        except Exception:
            self._lost += [buffer]

    async def _finish_oldest(self) -> None:
        oldest = self._queued[0]
        await self._wait(oldest.mark)
        await self._end(oldest)
        self._queued.popleft()
        self._pool.give_back(oldest.buffer)

    async def _wait(self, mark: Mark) -> None:
        polls = 0
        while not mark.done():
            polls += 1
            await self._sleep(0 if polls <= _EAGER_POLLS else min(_POLL_MAX_S, 1e-5 * (polls - _EAGER_POLLS)))

    async def settle(self, quiesce_max_s: float) -> None:
        """Waits for all that is queued. Raises RegionPoisoned for what does not end, or of which nobody knows."""
        late = False
        try:
            async with asyncio.timeout(quiesce_max_s):
                while self._queued:
                    await self._settle_oldest()
        except (TimeoutError, asyncio.CancelledError):  # cancelled itself: the event loop is being closed
            late = True
        lost = [*self._lost, *(queued.buffer for queued in self._queued)]
        self._queued.clear()
        for buffer in lost:
            self._pool.poison(buffer)
        if lost:
            why = "a copy did not end in time" if late else "the device has failed"
            raise RegionPoisoned(f"device memory is poisoned: {why}")

    async def _settle_oldest(self) -> None:
        oldest = self._queued[0]
        try:
            await self._wait(oldest.mark)
        except Exception:  # the device cannot say; whatever it was, nobody knows that the memory is quiet
            self._queued.popleft()
            self._lost += [oldest.buffer]
        else:
            self._queued.popleft()
            self._pool.give_back(oldest.buffer)


_Begin = Callable[[_Copy, Buffer, int, int], Awaitable[None]]
_End = Callable[[_Queued], Awaitable[None]]


async def _uncancelled(work: Awaitable[None]) -> None:
    """Waits to the end, however often this is cancelled meanwhile; then says that it was."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done():
                break
            cancelled = error
        except Exception:
            break
    task.result()
    if cancelled is not None:
        raise cancelled
