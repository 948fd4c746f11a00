"""Looks in the background for the packs of chains that ended at a hole, so that a later lookup sees them.

Rules
- Bounded: `PROBES_MAX` at once, `WAITING_MAX` behind them; more are dropped, and a later lookup asks again.
- The same hole is looked for once at a time, and a hole where the store has nothing not again for `again_s`.
- A request that failed says nothing of the hole: it may be looked for again after `FAILED_AGAIN_S`, or when an open
  circuit closes.
- What is found is known from then on. For a fetch it is brought up to memory too; a lookup touches nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from kvstore.client.landed import leading
from kvstore.tiers.object_tier import fits
from kvstore.tiers.packs import pack_blocks

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.tiers.base import Keys
    from kvstore.tiers.object_tier import PackTier

__all__ = ["Prober"]

log = logging.getLogger(__name__)

PROBES_MAX: Final = 8
WAITING_MAX: Final = 256
HOLES_MAX: Final = 65_536
FAILED_AGAIN_S: Final = 1.0  # as long as a circuit's first pause

Hole = tuple[int, int, bytes]  # namespace, shard, key

# Brings blocks of one chain up to memory.
BringUp = Callable[[int, int, "Keys"], object]


class Prober:
    """Lives on one event loop from `start` to `stop`."""

    def __init__(
        self,
        core: native.NodeCore,
        objects: PackTier,
        again_s: float,
        bring_up: BringUp,
        in_force: Callable[[int], Awaitable[bool]],
    ) -> None:
        """in_force: whether a namespace has not been cleared by somebody else."""
        self._in_force = in_force
        self._core = core
        self._objects = objects
        self._again_s = again_s
        self._bring_up = bring_up
        self._turn = asyncio.Semaphore(PROBES_MAX)
        self._under_way: dict[Hole, asyncio.Task[int]] = {}
        self._not_before: OrderedDict[Hole, float] = OrderedDict()  # when a hole may be looked for again
        self._ask_again: asyncio.TimerHandle | None = None
        self._forgetting: asyncio.Task[None] | None = None
        self.dropped = 0

    def start(self) -> None:
        self._forgetting = asyncio.ensure_future(self._forget())

    async def stop(self) -> None:
        tasks = [*self._under_way.values(), *([self._forgetting] if self._forgetting is not None else [])]
        for task in tasks:
            task.cancel()
        if self._ask_again is not None:
            self._ask_again.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ask(self, work: native.Work) -> None:
        """WorkKind.PROBE."""
        task = self._begin(work.ns, work.shard, work.keys, work.position)
        if task is not None and work.wanted_now:
            keys = work.keys
            task.add_done_callback(lambda done: self._wanted(done, work.ns, work.shard, keys))

    async def find(self, ns: int, shard: int, keys: Keys, position: int, wait_s: float) -> int:
        """How many of the chain's blocks, from keys[0] on, lie in packs, as far as was seen within `wait_s`."""
        task = self._begin(ns, shard, keys, position)
        if task is not None:
            await asyncio.wait({task}, timeout=wait_s)
        known = self._objects.index.knows(ns, shard, keys)
        return leading(known)

    def _wanted(self, done: asyncio.Task[int], ns: int, shard: int, keys: Keys) -> None:
        if not done.cancelled() and done.exception() is None and done.result() > 0:
            self._bring_up(ns, shard, keys[: done.result()])

    def _begin(self, ns: int, shard: int, keys: Keys, position: int) -> asyncio.Task[int] | None:
        hole = (ns, shard, keys[0].tobytes())
        running = self._under_way.get(hole)
        if running is not None:
            return running
        now = asyncio.get_running_loop().time()
        if self._not_before.get(hole, 0.0) > now or self._objects.store.circuit.is_open:
            return None
        if len(self._under_way) >= PROBES_MAX + WAITING_MAX:
            self.dropped += 1
            return None
        task = asyncio.ensure_future(self._probe(hole, keys, position))
        self._under_way[hole] = task
        task.add_done_callback(lambda done: self._ended(hole, done))
        return task

    def _ended(self, hole: Hole, done: asyncio.Task[int]) -> None:
        del self._under_way[hole]
        if done.cancelled():
            return
        error = done.exception()
        if error is not None:
            log.error("object tier: a probe failed", exc_info=error)

    async def _probe(self, hole: Hole, keys: Keys, position: int) -> int:
        """How many blocks from keys[0] on are known to lie in packs afterwards."""
        ns, shard, _ = hole
        index, store = self._objects.index, self._objects.store
        async with self._turn:
            known = index.stretches(ns, shard, keys, len(keys))
            for one in known:  # the core has forgotten what we have not
                index.add(ns, one.head)
            at = sum(one.count for one in known)
            shape = self._objects.shapes.shape(ns, shard)
            if at == len(keys) or shape is None:
                return at
            if not await self._in_force(ns):
                self._failed(hole)
                return 0
            found = await store.find(shape.digest, shard, keys[at:], pack_blocks(shape.bytes), position + at)
            for head in found.packs:
                if self._objects.shapes.shape(ns, shard) is None or not fits(head, shape, keys, position):
                    break
                index.add(ns, head)
                at = head.position + head.blocks - position
            if not found.sure:
                self._failed(hole)
            elif at == 0:
                self._leave_alone(hole, self._again_s)
            return min(at, len(keys))

    def _leave_alone(self, hole: Hole, for_s: float) -> None:
        self._not_before[hole] = asyncio.get_running_loop().time() + for_s
        self._not_before.move_to_end(hole)
        if len(self._not_before) > HOLES_MAX:
            self._not_before.popitem(last=False)

    def _failed(self, hole: Hole) -> None:
        """Not asked again at once, or a store in trouble would be asked by every lookup; but the core tells of a hole
        only once, so it is made to tell again. Where the circuit is open its pause is enough; who sees it close makes
        the core tell again (object_store.py).
        """
        if self._objects.store.circuit.is_open:
            return
        again_s = min(FAILED_AGAIN_S, self._again_s)
        self._leave_alone(hole, again_s)
        if self._ask_again is None:
            self._ask_again = asyncio.get_running_loop().call_later(again_s, self._tell_again)

    def _tell_again(self) -> None:
        self._ask_again = None
        self._core.forget_probes()

    async def _forget(self) -> None:
        """The core tells of a hole once; from time to time it may again."""
        while True:
            await asyncio.sleep(self._again_s)
            self._core.forget_probes()
            now = asyncio.get_running_loop().time()
            while self._not_before and next(iter(self._not_before.values())) <= now:
                self._not_before.popitem(last=False)
