"""What was found for a request and is held until the engine has fetched it, or for a while.

SGLang asks what there is (exists), makes room in host memory, and then fetches; in between nothing may evict what it
was told of. It does not say when it gives a request up, so a promise ends when its last page was fetched from every
shard, or after `keep_s`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine_adapters.base.promises import Promise

__all__ = ["Promised"]


@dataclass(slots=True, eq=False)  # one is another, however alike
class _Kept:
    promise: Promise
    last: str
    shards: set[int]
    until: float


class Promised:
    """Thread-safe; closing a promise waits for nothing. `now` in seconds of a monotonic clock."""

    def __init__(self, keep_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._keep_s, self._now = keep_s, now
        self._more = threading.Condition()
        self._kept: dict[str, list[_Kept]] = {}  # by the hash of the last page
        self._thread: threading.Thread | None = None
        self._closed = False

    def keep(self, promise: Promise, last: str, shards: Iterable[int]) -> None:
        """`last`: the hash of the promise's last page."""
        kept = _Kept(promise, last, set(shards), self._now() + self._keep_s)
        with self._more:
            if not self._closed:
                self._kept.setdefault(last, []).append(kept)
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="kvstore-promised", daemon=True)
                    self._thread.start()
                self._more.notify()
                return
        promise.close()

    def fetched(self, hashes: Sequence[str], shard: int) -> None:
        """These pages were fetched from a shard, or are not to be had. One promise ends by it, not every one that ends
        with the same page: each request fetches for itself.
        """
        over = []
        with self._more:
            for name in hashes:
                for kept in self._kept.get(name, ()):
                    if shard in kept.shards:
                        kept.shards.discard(shard)
                        if not kept.shards:
                            over.append(kept)
                        break
            for kept in over:
                self._forget(kept)
        for kept in over:
            kept.promise.close()

    def sweep(self) -> float | None:
        """Ends what is due. Seconds until the next is; None where there is nothing."""
        with self._more:
            now = self._now()
            every = [kept for same in self._kept.values() for kept in same]
            due = [kept for kept in every if kept.until <= now]
            for kept in due:
                self._forget(kept)
            left = [kept.until - now for kept in every if kept.until > now]
        for kept in due:
            kept.promise.close()
        return min(left, default=None)

    def __len__(self) -> int:
        with self._more:
            return sum(map(len, self._kept.values()))

    def close(self) -> None:
        with self._more:
            self._closed = True
            every = [kept for same in self._kept.values() for kept in same]
            self._kept.clear()
            self._more.notify()
        for kept in every:
            kept.promise.close()

    def _forget(self, kept: _Kept) -> None:
        same = self._kept[kept.last]
        same.remove(kept)
        if not same:
            del self._kept[kept.last]

    def _run(self) -> None:
        while not self._closed:
            left = self.sweep()
            with self._more:
                if self._closed:
                    return
                if left is None and self._kept:
                    continue  # came meanwhile
                self._more.wait(left)
