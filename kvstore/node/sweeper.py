"""Keeps what lies in the object store within `object.bytes_max`, and deletes what was cleared.

Rules
- The limit is for everything under the URL. It is shared between the namespaces that lie there: who needs less than an
  even share keeps all, what is left is shared by the others. In each, the oldest packs go first, those read lately
  last.
- A sweep leaves a tenth of the limit free, so that the next write does not start another.
- Between sweeps what was written is added up; at the limit writers wait for a sweep.
- Deleting is idempotent: several nodes of one bucket may sweep at once.
- A cleared generation is marked as such, so that other nodes of the store and one with an empty disk hear of it, and
  deleted; then looked at again after `CLEAR_AGAIN_S`, since an upload may have been under way. A store that does not
  answer is asked until it does: without the mark, whoever has lost its disk would find what was cleared.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Mapping
from typing import Final

from kvstore.tiers.object import Listed, ObjectTier, doomed

__all__ = ["Sweeper", "shares"]

log = logging.getLogger(__name__)

LOW_WATER: Final = 0.9
CLEAR_AGAIN_S: Final = 15.0
CLEAR_AGAIN_S_MAX: Final = 600.0  # where the store does not answer, it is looked more and more seldom
CLEARS_MAX: Final = 8  # looks at one cleared namespace, where the store answers and packs keep coming
KICKED_PAUSE_S: Final = 1.0  # between sweeps that writers ask for


def shares(sizes: Mapping[bytes, int], bytes_max: int) -> dict[bytes, int]:
    """How much each namespace may have so that all together have at most bytes_max."""
    left, given = bytes_max, {}
    waiting = sorted(sizes, key=lambda digest: sizes[digest])
    while waiting:
        digest = waiting.pop(0)
        given[digest] = min(sizes[digest], left // (len(waiting) + 1))
        left -= given[digest]
    return given


class Sweeper:
    """Lives on one event loop from `start` to `stop`. bytes_max 0: no limit, only clears."""

    def __init__(self, store: ObjectTier, bytes_max: int, period_s: float, read_lately: Callable[[], set[str]]) -> None:
        self._store = store
        self._bytes_max = bytes_max
        self._period_s = period_s
        self._read_lately = read_lately
        self._written_before = 0
        self._kicked = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._seen = 0
        self._refused = 0  # bytes, the most that a writer wanted and could not have since the last sweep
        self.sweeps = 0

    def start(self) -> None:
        if self._bytes_max:
            self._begin(self._run())

    async def stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def bytes_stored(self) -> int:
        """As the last sweep saw it, and what was written since."""
        return self._seen + self._store.counts.bytes_written - self._written_before

    def admit(self, wanted: int) -> bool:
        """Whether so many bytes more may be written now."""
        if not self._bytes_max or self.bytes_stored + wanted <= self._bytes_max:
            return True
        self._refused = max(self._refused, wanted)
        self._kicked.set()
        return False

    def clear(self, digest: bytes) -> None:
        """Deletes a namespace digest's packs in the background."""
        self._begin(self._clear(digest))

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except Exception:
                log.exception("object tier: a sweep failed")
            await asyncio.sleep(min(KICKED_PAUSE_S, self._period_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._period_s):  # wait_for of 3.11 may lose a cancellation, and so a stop
                    await self._kicked.wait()
            self._kicked.clear()

    async def sweep(self) -> None:
        """One look at everything, and what has to go. Where the store does not tell of all, nothing is decided, and
        what was counted stays: what was not seen is not gone.
        """
        written, refused, self._refused = self._store.counts.bytes_written, self._refused, 0
        packs = await self._everything()
        if packs is None:
            self._refused = max(self._refused, refused)
            return
        sizes = {digest: sum(pack.bytes for pack in listed) for digest, listed in packs.items()}
        freed = 0
        if sum(sizes.values()) + refused > self._bytes_max:
            allowed = shares(sizes, max(0, min(int(LOW_WATER * self._bytes_max), self._bytes_max - refused)))
            keep = self._read_lately()
            done = await asyncio.gather(*(self._shrink(packs[one], allowed[one], keep) for one in packs))
            freed = sum(done)
        self._seen, self._written_before = sum(sizes.values()) - freed, written
        self.sweeps += 1

    async def _everything(self) -> dict[bytes, list[Listed]] | None:
        """The packs of each namespace that lies there; None where the store does not tell."""
        digests = await self._store.namespaces()
        if digests is None:
            return None
        listings = await asyncio.gather(*(self._store.listing(digest) for digest in digests))
        told = {digest: listed for digest, listed in zip(digests, listings, strict=True) if listed is not None}
        return told if len(told) == len(digests) else None

    async def _shrink(self, packs: list[Listed], bytes_max: int, keep: set[str]) -> int:
        chosen = doomed(packs, bytes_max, keep)
        if not chosen:
            return 0
        gone = await self._store.delete([pack.name for pack in chosen], swept=True)
        return sum(pack.bytes for pack in chosen if pack.name in gone)

    async def _clear(self, digest: bytes) -> None:
        marked, first, answers, pause_s = False, True, 0, CLEAR_AGAIN_S
        while answers < CLEARS_MAX:
            marked = marked or await self._store.mark_cleared(digest)
            listed = await self._store.listing(digest)
            if listed:
                await self._store.delete([pack.name for pack in listed])
            elif listed is not None and marked and not first:
                return
            first, answered = False, marked and listed is not None
            answers += answered
            pause_s = CLEAR_AGAIN_S if answered else min(2 * pause_s, CLEAR_AGAIN_S_MAX)
            await asyncio.sleep(pause_s)
