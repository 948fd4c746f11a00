"""What the store holds of a prompt: found, held in the node's memory, and only then told to an engine.

An engine that is promised tokens makes room for them and lets the request wait; it must not be promised what is merely
known to lie somewhere. So a promise is a set of holds, one for each shard that a rank will read, all of one boundary.
It is bounded in bytes, and ends when its request does.

Rules
- `find` waits for the store and runs in a thread of its own; nothing else here waits.
- A promise has one owner, and is closed by it. Closing never waits.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kvstore.errors import KvStoreError
from kvstore.layout import KVLayout, Need, NeedKind

if TYPE_CHECKING:
    from engine_adapters.base.link import Link
    from kvstore import Found, Namespace

__all__ = ["Budget", "Crowded", "Finding", "Promise", "find", "needed", "needs_of"]

Keys = npt.NDArray[np.uint8]
NO_TIERS: Final = np.empty(0, np.uint8)
TRIES: Final = 3  # a boundary that went away between being found and being held is looked for again
MEMORY: Final = 1  # the tier that a hold costs nothing to take from


class Hold(Protocol):
    """As kvstore.client.Held."""

    blocks: int
    tiers: npt.NDArray[np.uint8]
    expires_s: float

    def close(self) -> None: ...


def needs_of(layout: KVLayout) -> tuple[Need, ...]:
    """What all ranks together need of a boundary: each shard once."""
    needs = {need.shard: need for rank in range(layout.tensor_parallel) for need in layout.needs(rank)}
    return tuple(needs[shard] for shard in sorted(needs))


def needed(need: Need, first: int, end: int) -> int:
    """The first of the blocks first..end that this need asks for, of a prompt of which `first` blocks are there."""
    if need.kind == NeedKind.ALL:
        return first
    return max(first, end - (need.blocks if need.kind == NeedKind.LAST else 1))


class Budget:
    """Bytes that all promises together may hold. Thread-safe."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._left = most
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        with self._lock:
            self._left += size


@dataclass(slots=True)
class Promise:
    """Blocks first..end of a prompt, held. tiers: of each, the slowest that a shard of it came from. expires_s: in
    time.monotonic()'s seconds; inf where the holds live as long as the connection. seen: how many blocks of the prompt
    the store was seen to have, where that is not beyond `first` and so nothing is held.
    """

    first: int
    end: int
    tiers: npt.NDArray[np.uint8] = field(default_factory=lambda: NO_TIERS)
    expires_s: float = math.inf
    give_back: Callable[[], None] | None = None
    seen: int = 0

    @property
    def blocks(self) -> int:
        return self.end - self.first

    @property
    def stored(self) -> int:
        """Blocks, from the prompt's first on, that need not be put into the store."""
        return self.end if self.blocks else self.seen

    def close(self) -> None:
        """May be called twice."""
        give_back, self.give_back = self.give_back, None
        if give_back is not None:
            give_back()


NOTHING: Final = Promise(0, 0)  # of whoever has not found anything yet


class Crowded(Exception):
    """Other promises hold what this one would need; ask again when they have ended."""


class _Want(NamedTuple):
    needs: tuple[Need, ...]
    shard_bytes: tuple[int, ...]
    budget: Budget
    until: float
    position: int


def find(
    namespace: Namespace,
    chain: Keys,
    first: int,
    layout: KVLayout,
    budget: Budget,
    until: float,
    known: Found | None = None,
    *,
    needs: tuple[Need, ...] | None = None,
    position: int = 0,
) -> Promise:
    """The longest boundary of the chain that could be held, from block `first` on; an empty promise where there is
    none. until: time.monotonic() seconds. known: what a lookup has just said of the whole chain. needs: None, for what
    all ranks need. position: how many blocks come before the chain's first, where it was cut out of a longer one.
    Raises KvStoreError, and Crowded where the budget is used up for now.
    """
    want = _Want(needs_of(layout) if needs is None else needs, namespace.shard_bytes, budget, until, position)
    end = _affordable(want, first, chain.shape[0])
    seen = 0
    for _ in range(TRIES):
        left = until - time.monotonic()
        if end <= first or left <= 0:
            break
        found, known = known, None
        if found is None or found.blocks > end:
            found = namespace.lookup(chain[:end], want.needs, deadline_s=left)
        if found.blocks <= first:
            seen = found.blocks
            break
        promise = _held(namespace, chain, first, found, want)
        if promise.end == found.blocks:
            return promise
        end = promise.end
        promise.close()
    return Promise(first, first, seen=seen)


def _bytes(want: _Want, first: int, end: int) -> int:
    return sum((end - needed(need, first, end)) * want.shard_bytes[need.shard] for need in want.needs)


def _affordable(want: _Want, first: int, end: int) -> int:
    """How far a promise may go at all."""
    if _bytes(want, first, end) <= want.budget.most:
        return end
    low, high = first, end
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _bytes(want, first, middle) <= want.budget.most else (low, middle - 1)
    return low


def _held(namespace: Namespace, chain: Keys, first: int, found: Found, want: _Want) -> Promise:
    """Holds every need of the boundary found. A promise that ends before it says where to look again."""
    end = found.blocks
    size = _bytes(want, first, end)
    if not want.budget.take(size):
        raise Crowded
    holds: list[Hold] = []

    def give_back() -> None:
        for hold in holds:
            hold.close()
        want.budget.give(size)

    promise = Promise(first, end, np.zeros(end - first, np.uint8), math.inf, give_back)
    try:
        for need in want.needs:
            at, left = needed(need, first, end), want.until - time.monotonic()
            if left <= 0:
                promise.end = first
                break
            hold = namespace.hold(
                chain[at:end], shard=need.shard, position=want.position + at, wait_s=left, deadline_s=left
            )
            holds.append(hold)
            promise.expires_s = min(promise.expires_s, hold.expires_s)
            if hold.blocks < end - at:
                promise.end = at + hold.blocks if need.kind == NeedKind.ALL else end - 1
                break
            tiers = promise.tiers[at - first :]
            np.maximum(tiers, hold.tiers[: tiers.shape[0]], out=tiers)
    except BaseException:
        promise.close()
        raise
    return promise


class Finding:
    """One search in a thread, up to `until`. `done` is set last; until then nothing else here may be looked at.

    keys: gives the chain, in the thread: an engine's own has better things to do than to hash. eager: take from memory
    only what is there, and have the rest brought up (the request may wait long for its turn); the caller looks again
    when its turn comes.
    """

    __slots__ = (
        "_budget",
        "_keys",
        "_left",
        "_link",
        "_lock",
        "again",
        "crowded",
        "done",
        "eager",
        "first",
        "promise",
        "until",
    )

    def __init__(
        self,
        link: Link,
        budget: Budget,
        keys: Callable[[Namespace], Keys],
        first: int,
        until: float,
        *,
        eager: bool = False,
    ) -> None:
        self._link, self._budget, self._keys = link, budget, keys
        self.first, self.until, self.eager = first, until, eager
        self.done = False
        self.crowded = False
        self.again = False  # what was found is not held yet: look again, not eagerly
        self.promise = NOTHING
        self._left = False
        self._lock = threading.Lock()

    @property
    def holds(self) -> bool:
        """Whether there may be something to give back."""
        return not self.done or self.promise.give_back is not None

    def leave(self) -> None:
        """Nobody waits for it any more: what it holds, or comes to hold, is given back."""
        with self._lock:
            self._left, promise = True, self.promise
        promise.close()

    def take(self) -> Promise:
        """The promise, which is the caller's from here on."""
        promise, self.promise = self.promise, NOTHING
        return promise

    def run(self) -> None:
        """The search: what Workers are given."""
        link = self._link
        try:
            namespace = None if self._left else link.namespace()
            if namespace is not None:
                promise = self._found(namespace)
                with self._lock:
                    self.promise, late = promise, self._left
                if late:
                    promise.close()
                link.worked()
        except Crowded:
            self.crowded = True
        except KvStoreError as error:
            link.failed(error)
        finally:
            self.done = True

    def _found(self, namespace: Namespace) -> Promise:
        chain, found, layout = self._keys(namespace), None, self._link.layout
        if self.eager:
            found = namespace.lookup(chain, needs_of(layout), deadline_s=max(0.001, self.until - time.monotonic()))
            if found.blocks and (found.tiers > MEMORY).any():
                self.again = True
                namespace.prefetch(chain[: found.blocks], deadline_s=max(0.001, self.until - time.monotonic()))
                return NOTHING
        return find(namespace, chain, self.first, layout, self._budget, self.until, found)
