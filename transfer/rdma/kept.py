"""Local registrations that outlive their regions for a while, since the same memory is often registered again at once.

  acquire --> in use --last release--> idle --+--> in use again, at no cost
                                              +--> let go: too many, too large, too long idle, or room is needed

Rules
- Only memory that cannot be given to somebody else while we hold it: that of an array which owns it, held until its
  registration is gone. What its owner may close or resize (mmap, bytearray) is not kept: holding it would get in the
  way of that. What says no more than where it lies is not either.
- Found again by that very array and by bytes within those that are registered, with rights no greater.
- For transfers of our own only: what a peer may touch is registered for its grant, and ends with that.
- Idle ones are bounded by number, bytes and time, and all are let go before anything is refused for want of room.
- Where the kernel may take pages away from under registered memory when the process forks, nothing is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from transfer.native import keep_forever
from transfer.rdma.nearness import Nearness
from transfer.rdma.registrar import Asked, Registered, Registrar
from transfer.regions import owner_of

__all__ = ["KeptReport", "Local", "LocalCache"]

Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True, eq=False)
class Local:
    """Memory as our own devices know it. memory: held until they have let it go. owner: None where it is not kept.
    near: None until somebody has asked.
    """

    registered: list[Registered]
    memory: object
    start: int = 0
    bytes: int = 0
    writable: bool = False
    owner: object | None = None
    near: Nearness | None = None
    uses: int = 1
    over: float = 0.0  # while idle: when it is let go

    def serves(self, start: int, count: int, writable: bool) -> bool:
        inside = self.start <= start and start + count <= self.start + self.bytes
        return inside and (self.writable or not writable)


class KeptReport(NamedTuple):
    """hits, misses: of memory that may be kept. idle, idle_bytes: held now, for nobody."""

    hits: int
    misses: int
    idle: int
    idle_bytes: int


class LocalCache:
    """Of one transport, and of one event loop. bytes_max 0: nothing is kept."""

    def __init__(self, registrar: Registrar, *, bytes_max: int, entries_max: int, idle_s: float) -> None:
        self._registrar = registrar
        self._bytes_max, self._entries_max, self._idle_s = bytes_max, entries_max, idle_s
        self._of: dict[int, list[Local]] = {}  # by the identity of the owner, which each of them holds
        self._idle: dict[Local, None] = {}  # the longest idle first
        self._idle_bytes = 0
        self._hits = self._misses = 0
        self._ending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        registrar.when_full(self.give_up)

    def report(self) -> KeptReport:
        return KeptReport(self._hits, self._misses, len(self._idle), self._idle_bytes)

    async def acquire(self, memory: Bytes, asked: Sequence[Asked], *, writable: bool) -> Local:
        """Raises as Registrar.acquire does. Every one is released, once."""
        assert not any(one.peer_reads or one.peer_writes for one in asked)
        owner = owner_of(memory) if memory.nbytes <= self._bytes_max and not self._closed else None
        start = int(memory.ctypes.data)
        for one in self._of.get(id(owner), ()) if owner is not None else ():
            if one.serves(start, memory.nbytes, writable):
                self._hits += 1
                one.uses += 1
                self._not_idle(one)
                return one
        made = Local(await self._registrar.acquire(asked), memory, start, memory.nbytes, writable, owner)
        if owner is not None:
            self._misses += 1
            self._of.setdefault(id(owner), []).append(made)
        return made

    async def release(self, local: Local) -> None:
        """The caller's transfers by it are over. Raises OSError where it is let go and a device refuses to."""
        local.uses -= 1
        if local.uses:
            return
        if local.owner is None or self._closed:
            self._forget(local)
            try:
                await self._registrar.release(local.registered)
            except OSError:  # the device still knows it, so nobody else may have it
                keep_forever(local.memory)
                raise
            return
        self._idle[local] = None
        self._idle_bytes += local.bytes
        local.over = asyncio.get_running_loop().time() + self._idle_s
        self._set_timer()
        surplus = self._surplus()
        if surplus:
            await asyncio.shield(self._drop(surplus))

    async def give_up(self) -> bool:
        """Lets go of all that is idle. False: nothing was."""
        some = bool(self._idle or self._ending)
        self._drop(list(self._idle))
        if self._ending:
            await asyncio.wait(set(self._ending))
        return some

    async def close(self) -> None:
        """What is still in use is let go by its release."""
        self._closed = True
        await self.give_up()

    def _surplus(self) -> list[Local]:
        found: list[Local] = []
        count, held = len(self._idle), self._idle_bytes
        for one in self._idle:
            if count <= self._entries_max and held <= self._bytes_max:
                break
            found.append(one)
            count, held = count - 1, held - one.bytes
        return found

    def _forget(self, local: Local) -> None:
        """Nobody finds it any more."""
        kept = self._of.get(id(local.owner), [])
        if local in kept:
            kept.remove(local)
            if not kept:
                del self._of[id(local.owner)]

    def _not_idle(self, local: Local) -> None:
        if local in self._idle:
            del self._idle[local]
            self._idle_bytes -= local.bytes

    def _drop(self, idle: Sequence[Local]) -> asyncio.Task[None]:
        """Found by nobody from now on; let go when the task, which no caller's cancellation stops, is over."""
        for one in idle:
            self._forget(one)
            self._not_idle(one)
        self._set_timer()
        task = asyncio.get_running_loop().create_task(self._released(idle))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return task

    async def _released(self, idle: Sequence[Local]) -> None:
        for one in idle:
            try:
                await self._registrar.release(one.registered)
            except OSError:  # the device still knows it, so nobody else may have it
                keep_forever(one.memory)

    def _set_timer(self) -> None:
        """For the one that is idle for longest."""
        if self._timer is not None:
            self._timer.cancel()
        first = next(iter(self._idle), None)
        loop = asyncio.get_running_loop()
        self._timer = None if first is None else loop.call_at(first.over, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        over = [one for one in self._idle if one.over <= now]
        if over:
            self._drop(over)
        else:
            self._set_timer()
