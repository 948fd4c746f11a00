"""Bytes on their way between a device and the network, or a caller, through staging buffers.

  into the device     lease, fill (from the network), queue copies, wait for them     -> the buffer goes back
  out of the device   lease, queue copies, wait for them, empty (to the network)      -> the buffer goes back

Rules
- A transfer is cut into pieces, each with a buffer of its own; up to `ahead_max` of them are under way at once, in any
  order. Who waits for a buffer holds none.
- Copies of one transfer are queued on streams of its own, one a device; a piece is over when the mark behind its last
  copy is.
- An answer, of any kind, means quiet memory: what was queued is waited for first, also when cancelled or failed. What
  is not quiet within `quiesce_max_s`, or of which the device cannot say it, is poisoned: its buffer is never used
  again, and the caller told (RegionPoisoned).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from transfer.devices.memory import DeviceMemory
from transfer.devices.staging import Buffer, Bytes, Mark, StagingPool, Stream
from transfer.errors import RegionPoisoned

__all__ = ["Crossing", "Stager", "uncancelled"]

QUIESCE_MAX_S = 30.0
_EAGER_POLLS = 16
_POLL_MAX_S = 0.001
_COPIES_A_TURN = 64
_STREAMS_KEPT = 32

_Piece = TypeVar("_Piece")
_T = TypeVar("_T")
_Sleep = Callable[[float], Awaitable[None]]
After = Mapping[int, Sequence[int]]  # device -> streams, by handle, whose work until now must be over first


class Crossing:
    """One buffer on its way. What is queued here touches `host`, and the device's memory, until `drained`."""

    def __init__(self, buffer: Buffer, streams: _Streams, sleep: _Sleep) -> None:
        self.buffer = buffer
        self.host: Bytes = buffer.memory
        self.spoilt = False
        self._streams = streams
        self._sleep = sleep
        self._devices: dict[int, None] = {}  # those with copies that are not known to be over
        self._copies = 0

    @property
    def busy(self) -> bool:
        return bool(self._devices)

    def spoil(self) -> None:
        """Something else than the device may still touch the buffer: it is not used again."""
        self.spoilt = True

    async def to_device(self, device: int, address: int, host: Bytes) -> None:
        """`host`: of this crossing's buffer. Gives the event loop back now and then."""
        self._devices[device] = None  # also where it fails: it may have queued all the same
        self._streams.on(device).to_device(address, host)
        await self._breathe()

    async def to_host(self, device: int, host: Bytes, address: int) -> None:
        self._devices[device] = None
        self._streams.on(device).to_host(host, address)
        await self._breathe()

    async def drained(self) -> None:
        """Waits for what was queued. Raises what a device says: then nobody knows what it still touches."""
        await _passed([self._streams.on(device).mark() for device in self._devices], self._sleep)
        self._devices.clear()

    async def _breathe(self) -> None:
        self._copies += 1
        if self._copies % _COPIES_A_TURN == 0:
            await self._sleep(0)


class Stager:
    """Moves bytes through a pool. `open_stream` gives a fresh stream on a device; streams are used again."""

    def __init__(
        self,
        pool: StagingPool,
        open_stream: Callable[[int], Stream],
        *,
        ahead_max: int = 4,
        quiesce_max_s: float = QUIESCE_MAX_S,
        sleep: _Sleep = asyncio.sleep,
    ) -> None:
        if ahead_max < 1:
            raise ValueError(f"ahead_max must be at least 1, not {ahead_max}")
        self.pool = pool
        self._open_stream = open_stream
        self._ahead_max = ahead_max
        self._quiesce_max_s = quiesce_max_s
        self._sleep = sleep
        self._idle: dict[int, list[Stream]] = {}

    async def land(
        self,
        memory: DeviceMemory,
        offset: int,
        count: int,
        fill: Callable[[Bytes, int], Awaitable[None]],
        *,
        deadline_s: float,
    ) -> None:
        """Into the device. `fill` gets a part of a buffer and its position in the range, in any order; when it answers,
        or raises, it touches that part no more. `deadline_s` from now on. Raises TimeoutError, RegionPoisoned,
        LimitReached, and whatever `fill` or the device raise; part of the range may be written then.
        """
        if not memory.writable:
            raise ValueError("memory is read-only")

        async def carry(crossing: Crossing, piece: tuple[int, int]) -> None:
            position, size = piece
            await fill(crossing.host[:size], position)
            await crossing.to_device(memory.device, memory.address + offset + position, crossing.host[:size])

        await self._range(memory, offset, count, carry, deadline_s)

    async def leave(
        self,
        memory: DeviceMemory,
        offset: int,
        count: int,
        drain: Callable[[Bytes, int], Awaitable[None]],
        *,
        deadline_s: float,
    ) -> None:
        """Out of the device; `drain` as `fill`. Raises as `land`."""

        async def carry(crossing: Crossing, piece: tuple[int, int]) -> None:
            position, size = piece
            await crossing.to_host(memory.device, crossing.host[:size], memory.address + offset + position)
            await crossing.drained()
            await drain(crossing.host[:size], position)

        await self._range(memory, offset, count, carry, deadline_s)

    async def _range(
        self,
        memory: DeviceMemory,
        offset: int,
        count: int,
        carry: Callable[[Crossing, tuple[int, int]], Awaitable[None]],
        deadline_s: float,
    ) -> None:
        if offset < 0 or count < 0 or offset + count > memory.bytes:
            raise ValueError(f"[{offset}, {offset + count}) is beyond the memory's {memory.bytes} bytes")
        step = self.pool.buffer_bytes
        pieces = [(position, min(step, count - position)) for position in range(0, count, step)]
        after = {memory.device: (memory.stream,)} if memory.stream is not None else {}
        async with asyncio.timeout(deadline_s):
            await self.cross(pieces, carry, after=after)

    async def cross(
        self,
        pieces: Sequence[_Piece],
        carry: Callable[[Crossing, _Piece], Awaitable[None]],
        *,
        after: After | None = None,
    ) -> None:
        """Has every piece carried. When this returns or raises, nothing of it touches memory any more, but for what
        RegionPoisoned is about. Else raises the first error, and what else was under way has been cancelled.
        """
        streams = _Streams(self._open, after or {})
        left = deque(pieces)

        async def work() -> None:
            while left:
                buffer = await self.pool.lease()
                crossing = Crossing(buffer, streams, self._sleep)
                try:
                    if left:
                        await carry(crossing, left.popleft())
                        await crossing.drained()
                finally:
                    try:
                        if crossing.busy:
                            await uncancelled(self._settle(crossing))
                    finally:
                        (self.pool.poison if crossing.spoilt else self.pool.give_back)(buffer)

        workers = min(self._ahead_max, len(left))
        if workers <= 1:
            await work()
        else:
            await _together([asyncio.ensure_future(work()) for _ in range(workers)])
        self._keep(streams)

    async def wait_for(self, streams: After) -> None:
        """Until what these streams have queued until now is over. Touches no memory, so it may be given up at any time.
        Raises what a device says.
        """
        ours = _Streams(self._open, streams)
        await _passed([ours.on(device).mark() for device in streams], self._sleep)
        self._keep(ours)

    def _keep(self, streams: _Streams) -> None:
        """Of those that ended well only."""
        for device, stream in streams.opened.items():
            kept = self._idle.setdefault(device, [])
            if len(kept) < _STREAMS_KEPT:
                kept.append(stream)

    def _open(self, device: int) -> Stream:
        kept = self._idle.get(device)
        return kept.pop() if kept else self._open_stream(device)

    async def _settle(self, crossing: Crossing) -> None:
        """Waits for all that is queued. Raises RegionPoisoned for what does not end, or of which nobody knows."""
        why = "a copy did not end in time"
        try:
            async with asyncio.timeout(self._quiesce_max_s):
                await crossing.drained()
                return
        except (TimeoutError, asyncio.CancelledError):  # cancelled itself: the event loop is being closed
            pass
        except Exception as error:
            why = f"the device has failed: {error}"
        crossing.spoil()
        raise RegionPoisoned(f"device memory is poisoned: {why}")


class _Streams:
    """Those of one transfer, a device each."""

    def __init__(self, open_stream: Callable[[int], Stream], after: After) -> None:
        self.opened: dict[int, Stream] = {}
        self._open_stream = open_stream
        self._after = after

    def on(self, device: int) -> Stream:
        stream = self.opened.get(device)
        if stream is None:
            stream = self._open_stream(device)
            for producer in self._after.get(device, ()):
                stream.after(producer)
            self.opened[device] = stream
        return stream


async def _passed(marks: Sequence[Mark], sleep: _Sleep) -> None:
    polls = 0
    for mark in marks:
        while not mark.done():
            polls += 1
            await sleep(0 if polls <= _EAGER_POLLS else min(_POLL_MAX_S, 1e-5 * (polls - _EAGER_POLLS)))


async def _together(tasks: Sequence[asyncio.Future[None]]) -> None:
    """Waits for all, also when cancelled; one that fails has the others cancelled. Raises the error that weighs most:
    poisoned memory, then the first other one, then a cancellation.
    """
    cancelled: asyncio.CancelledError | None = None
    stopped = False
    pending = set(tasks)
    while pending:
        try:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_EXCEPTION)
            stop = any(task.cancelled() or task.exception() is not None for task in done)
        except asyncio.CancelledError as error:
            cancelled, stop = error, True
            pending = {task for task in pending if not task.done()}
        if stop and not stopped:
            stopped = True
            for task in pending:
                task.cancel()
    raised = [None if task.cancelled() else task.exception() for task in tasks]
    errors = sorted(filter(None, raised), key=lambda one: not isinstance(one, RegionPoisoned))
    if errors and (cancelled is None or isinstance(errors[0], RegionPoisoned)):
        raise errors[0]
    if cancelled is not None:
        raise cancelled
    if stopped:
        raise asyncio.CancelledError


async def uncancelled(work: Awaitable[_T]) -> _T:
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
    result = task.result()
    if cancelled is not None:
        raise cancelled
    return result
