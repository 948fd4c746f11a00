"""Moves blocks between memory and the tiers below: what the core's work queue asks for, in chain order.

Rules
- Decides with the core's plain calls and awaits only where bytes move. Nothing here waits for room while holding some.
- Whatever happens to a promotion, the fetches parked on it are settled, so that nobody waits for what will not come.
- Bytes that do not verify are dropped where they lie, and counted by the core. What one tier could not give is asked of
  the next, before the fetches that wait for it are answered; of the object tier even if its packs are not known yet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from kvstore import native
from kvstore.client.landed import leading
from kvstore.clock import Clock
from kvstore.tiers.base import Hold, Keys, Tier, TierKind
from kvstore.tiers.ladder import Ladder, stretches
from kvstore.tiers.memory import MemoryTier

log = logging.getLogger(__name__)

WORK_MAX: Final = 256  # items taken from the core at once
PROMOTION_BYTES: Final = 64 << 20  # moved and made visible at once: a fetch can begin before all of its prompt is up
PROMOTIONS_MAX: Final = 8  # at once; what waits for them is in the core's parked fetches
FIND_S: Final = 10.0  # for the packs of a block that files could not give; a fetch is answered at its own deadline
AHEAD_MAX: Final = 2  # at once, of those that nobody waits for yet: the rest of a prompt, prefetches


# Writes the coldest dirty blocks down until memory is below its watermark, or there is nothing to write.
Demote = Callable[[], Coroutine[object, object, None]]
# Looks for packs: namespace, shard, keys, the position of keys[0], and for how long at most.
Find = Callable[[int, int, Keys, int, float], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Failure:
    """A tier had a block, at this position of its chain, and could not give it."""

    tier: TierKind
    position: int


class Mover:
    """Lives on the node's event loop from `start` to `stop`. `demote` runs once at a time; without it, victims are
    dropped and counted by the core.
    """

    def __init__(
        self,
        core: native.NodeCore,
        memory: MemoryTier,
        ladder: Ladder,
        clock: Clock,
        demote: Demote | None = None,
        probe: Callable[[native.Work], None] | None = None,
        find: Find | None = None,
    ) -> None:
        self._core = core
        self._memory = memory
        self._ladder = ladder
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(PROMOTIONS_MAX)
        self._ahead = asyncio.Semaphore(AHEAD_MAX)
        self._demote = demote
        self._probe = probe
        self._find = find
        self._demotion: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # Blocks on their way up, each with what ends when they are there or not to be had.
        self._moving: dict[tuple[int, int, bytes], asyncio.Future[None]] = {}

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._core.work_fd, self._take)

    async def stop(self) -> None:
        """Ends what is under way; returns when no copy touches the segment any more."""
        if self._loop is not None:
            self._loop.remove_reader(self._core.work_fd)
            self._loop = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _take(self) -> None:
        for work in self._core.take_work(WORK_MAX):
            if work.kind == native.WorkKind.PROMOTE:
                room = self._room if work.wanted_now else self._ahead
                self._begin(self._promote(work.ns, work.shard, work.keys, room))
            elif work.kind == native.WorkKind.WRITE_BEHIND:
                if self._demote is not None and (self._demotion is None or self._demotion.done()):
                    self._demotion = self._begin(self._demote())
            elif work.kind == native.WorkKind.CORRUPT:
                self._begin(self._check(work.ticket))
            elif self._probe is not None:
                self._probe(work)

    def bring_up(self, ns: int, shard: int, keys: Keys) -> None:
        """Promotes blocks that nobody waits for yet."""
        if self._loop is not None:
            self._begin(self._promote(ns, shard, keys, self._ahead))

    def _begin(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("moving blocks failed", exc_info=error)

    # ---- promote ----------------------------------------------------------------------------------------------------

    async def _promote(self, ns: int, shard: int, keys: Keys, room: asyncio.Semaphore) -> None:
        """Brings up what is not up, run after run, until one is not to be had: behind a hole nothing is of use."""
        at = 0
        failure: Failure | None = None  # of the block at `at`
        try:
            async with room:
                for first, end in stretches(~self._memory.lookup(ns, shard, keys)):
                    at = first
                    while at < end:
                        came, failure = await self._promote_run(ns, shard, keys[at:end], failure)
                        self._core.promoted(ns, shard, keys[at : at + came], self._clock.now_ns())
                        at += came
                        if came == 0 and failure is None:
                            return
        finally:
            self._core.promoted(ns, shard, keys[at:], self._clock.now_ns())

    async def _promote_run(
        self, ns: int, shard: int, keys: Keys, failure: Failure | None
    ) -> tuple[int, Failure | None]:
        """One hold below, one copy up. `failure`: who could not give keys[0]; those below it are asked. Returns how
        many blocks from the start are up now, and who could not give the one behind them.
        """
        moving = self._moving.get((ns, shard, keys[0].tobytes()))
        if moving is not None:
            # Somebody else brings it up: read ahead, when it is asked for now. To ask again would find it reserved.
            await asyncio.shield(moving)
            up = self._up(ns, shard, keys)
            if up:
                return up, None
        under = failure.tier if failure is not None else TierKind.NONE
        found = self._ladder.hold(ns, shard, keys, under)
        if found is None and failure is not None and under < TierKind.OBJECT and self._find is not None:
            await self._find(ns, shard, keys, failure.position, FIND_S)
            found = self._ladder.hold(ns, shard, keys, under)
        return await self._promote_held(ns, shard, keys, *found) if found is not None else (0, None)

    async def _promote_held(
        self, ns: int, shard: int, keys: Keys, tier: Tier, hold: Hold
    ) -> tuple[int, Failure | None]:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        names: list[tuple[int, int, bytes]] = []
        try:
            reservation = self._memory.reserve(hold.run)
            try:
                count = min(_leading(reservation.granted), max(1, PROMOTION_BYTES // reservation.block_bytes))
                if count == 0:
                    return self._up(ns, shard, keys), None
                names = [(ns, shard, key.tobytes()) for key in keys[:count]]
                self._moving.update(dict.fromkeys(names, ended))
                position = hold.run.position
                came = await hold.read(reservation.places[:count])
                up = reservation.seal(came)
                self._core.moved(int(tier.kind), int(self._memory.kind), up)
                if came == count:
                    return up, None
                # Those that did not verify are not there any more; what was only late still is.
                gone = int((~tier.lookup(ns, shard, keys[came:count])).sum())
                self._core.failed_read(ns, int(tier.kind), max(1, gone))
                return up, Failure(TierKind(tier.kind), position + came) if up == came else None
            finally:
                reservation.abort()
        finally:
            for name in names:
                self._moving.pop(name, None)
            ended.set_result(None)
            hold.release()

    def _up(self, ns: int, shard: int, keys: Keys) -> int:
        """How many blocks from the start are in memory."""
        there = self._memory.lookup(ns, shard, keys)
        return leading(there)

    # ---- check ------------------------------------------------------------------------------------------------------

    async def _check(self, ticket: int) -> None:
        """A client says that a block does not verify. Only what the node finds wrong itself is dropped: a client may
        lie, or have bad memory of its own.
        """
        hold = self._memory.hold_slots(np.array([ticket], dtype=np.uint64))
        if hold is None:
            return
        try:
            if not await hold.verifies():
                log.warning("a block in memory does not verify: dropped")
                self._core.retire(self._memory.kind, hold.tickets, corrupt=True)
        finally:
            hold.release()


def _leading(granted: Sequence[int]) -> int:
    """How many from the run's start were granted without a gap."""
    return next((i for i, index in enumerate(granted) if index != i), len(granted))
