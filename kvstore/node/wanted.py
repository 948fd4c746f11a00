"""Which chains are asked of other nodes again and again, so that a copy in this node's memory is worth it.

Rules
- The second get of a family that finds its blocks at other nodes within `replica_window_s` is the reason for a copy; so
  is a holder that is busy, at once.
- No get waits for a copy: it is begun when the get has released what it read. At most COPIES_MAX at once, what comes
  beyond that is left out and counted; each has its end.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvstore.node.namespaces import NotOpen

if TYPE_CHECKING:
    from kvstore.node.far import FarCounts
    from kvstore.node.streams import Prefix

__all__ = ["Copier", "Wanted", "family_of"]

FAMILIES_MAX: Final = 4_096  # remembered; of those not asked for lately nothing is known
COPIES_MAX: Final = 2
COPY_S: Final = 30.0

Family = tuple[int, int, int]  # namespace handle, shard, family


def family_of(prefix: Prefix) -> int:
    """What a chain is remembered by: its family, or where the caller named none and it begins no prompt, its start."""
    return prefix.hint(0).family or int.from_bytes(prefix.keys[0, :8].tobytes(), "little")


@dataclass(slots=True)
class Wanted:
    """Pure: `now` is in seconds. window_s 0: nothing is ever worth it."""

    window_s: float = 0.0
    _seen: OrderedDict[Family, tuple[int, float]] = field(default_factory=OrderedDict)  # position, when
    _crowded: set[Family] = field(default_factory=set)

    def crowded(self, ns: int, shard: int, family: int) -> None:
        """Its holder had too many readers."""
        if self.window_s > 0 and len(self._crowded) < FAMILIES_MAX:
            self._crowded.add((ns, shard, family))

    def asked(self, ns: int, shard: int, family: int, position: int, now: float) -> bool:
        """A window of a get was found at others; whether its chain is to be copied. A get goes on from window to
        window: one that does not begin behind the last is another get.
        """
        if self.window_s <= 0:
            return False
        name = ns, shard, family
        known = self._seen.pop(name, None)
        again = known is not None and now - known[1] < self.window_s and position <= known[0]
        if again or name in self._crowded:
            self._crowded.discard(name)
            return True
        fresh = known is None or now - known[1] >= self.window_s
        self._seen[name] = (position, now) if fresh or known is None else (known[0], now)
        if len(self._seen) > FAMILIES_MAX:
            self._seen.popitem(last=False)
        return False


@dataclass(slots=True)
class Copier:
    """Copies in the background, on the node's event loop, until `close`."""

    counts: FarCounts
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def begin(self, copy: Callable[[float], Awaitable[int]]) -> None:
        """copy: given how long it may take; how many blocks are there then."""
        if len(self._tasks) >= COPIES_MAX:
            self.counts.unwanted += 1
            return
        task = asyncio.ensure_future(self._run(copy))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, copy: Callable[[float], Awaitable[int]]) -> None:
        try:
            blocks = await copy(COPY_S)
        except NotOpen:  # cleared meanwhile
            blocks = 0
        self.counts.wanted += blocks > 0
        self.counts.unwanted += blocks == 0

    async def close(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
