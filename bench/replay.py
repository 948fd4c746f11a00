"""Replays of block traces through the store's own eviction policies, and through the best that could have been done.

Blocks are units; a hit is the longest cached leading run of a request; every block of a request is cached afterwards,
as far as it fits without evicting the request's own blocks. Pure: a trace and a seed give the same figures everywhere.
"""

from __future__ import annotations

import heapq
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvstore.eviction import NO_PARENT, POLICIES, Hint

__all__ = ["CONVERSATION", "Trace", "belady", "infinite", "load", "published", "replay", "session_ends", "synthetic"]

CONVERSATION = "mooncake_conversation.jsonl"

NEVER = 1 << 60


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests as arrays of dense block numbers, in chain order; a number has one parent for good."""

    requests: list[npt.NDArray[np.uint32]]
    unique: int

    @property
    def references(self) -> int:
        return sum(len(r) for r in self.requests)


def _dense(chains: Sequence[Sequence[int]]) -> Trace:
    numbers: dict[int, int] = {}
    requests = [np.array([numbers.setdefault(h, len(numbers)) for h in chain], np.uint32) for chain in chains]
    return Trace(requests, len(numbers))


def load(path: Path) -> Trace:
    """Mooncake's published form: a JSON object a line, with `hash_ids`. Partial last blocks count as in its ids."""
    chains = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            ids = json.loads(line).get("hash_ids")
            if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
                raise ValueError(f"{path}:{number}: hash_ids must be a list of integers")
            chains.append(list(dict.fromkeys(ids)))
    return _dense(chains)


def published() -> Path | None:
    """Mooncake's conversations, where TRACES names a folder that has them: they are not of the repository."""
    path = Path(os.environ.get("TRACES", "")) / CONVERSATION
    return path if path.is_file() else None


def synthetic(seed: int, sessions: int = 400) -> Trace:
    """Conversations of one to eight turns over a few shared system prompts, interleaved."""
    rng = random.Random(seed)
    fresh = iter(range(1 << 40))
    prompts = [[next(fresh) for _ in range(rng.randrange(2, 12))] for _ in range(5)]
    turns: list[tuple[float, list[int]]] = []
    for _ in range(sessions):
        when = rng.uniform(0, sessions)
        chain = list(rng.choice(prompts))
        while True:
            chain = chain + [next(fresh) for _ in range(rng.randrange(1, 20))]
            turns.append((when, chain))
            when += rng.expovariate(1 / 15)
            if rng.random() < 0.45:
                break
    return _dense([chain for _, chain in sorted(turns, key=lambda turn: turn[0])])


def infinite(trace: Trace) -> float:
    """The hit rate of a cache that never evicts."""
    return 1 - trace.unique / trace.references


def session_ends(trace: Trace, wrong: float = 0.0, seed: int = 0) -> list[bool]:
    """Whether each request is its session's last: none of the blocks that it brought is asked for again. `wrong` of the
    answers, drawn by seed, are turned round.
    """
    first = np.full(trace.unique, -1)
    last = np.zeros(trace.unique, np.int64)
    for at, request in enumerate(trace.requests):
        last[request] = at
        new = request[first[request] < 0]
        first[new] = at
    rng = random.Random(seed)
    ends = []
    for at, request in enumerate(trace.requests):
        mine = request[first[request] == at]
        end = bool((last[mine] == at).all()) if len(mine) else bool(last[request[-1]] == at)
        ends.append(end != (rng.random() < wrong))
    return ends


def replay(
    trace: Trace, policy_name: str, capacity: int, ends: Sequence[bool] | None = None, return_touches: int = 0
) -> float:
    """The share of references that hit, in a cache of `capacity` blocks in that policy's order. With `ends`, each
    request tells whether its session ends with it, and if not, after how many touches it is to be back (0: not told).
    """
    policy = POLICIES[policy_name](trace.unique)
    here = np.zeros(trace.unique, np.bool_)
    ghosts = np.arange(trace.unique, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hits = count = 0
    for at, request in enumerate(trace.requests):
        hint = Hint()
        if ends is not None:
            hint = Hint(end=True) if ends[at] else Hint(return_touches=return_touches)
        cached = here[request]
        hits += len(request) if cached.all() else int(cached.argmin())
        policy.touched(request[cached], hint)
        parents = np.concatenate(([NO_PARENT], request[:-1])).astype(np.uint32)
        wanted = np.flatnonzero(~cached)
        short = count + len(wanted) - capacity
        if short > 0:
            gone = policy.victims(short, request)
            policy.removed(gone)
            policy.released(request)
            here[gone] = False
            count -= len(gone)
        wanted = wanted[: capacity - count]
        new = request[wanted]
        here[new] = True
        count += len(new)
        above = parents[wanted]
        linked = (above != NO_PARENT) & here[np.where(above == NO_PARENT, 0, above)]
        policy.added(new, np.where(linked, above, NO_PARENT).astype(np.uint32), ghosts[new], hint)
        # Holes that were filled: what lay behind them gets its parent back.
        behind = wanted[wanted + 1 < len(request)] + 1
        behind = behind[cached[behind]]
        if len(behind):
            policy.added(request[behind], request[behind - 1], ghosts[request[behind]], hint)
    return hits / trace.references


def belady(trace: Trace, capacity: int) -> float:
    """The most that any order could hit: the blocks with the nearest next use are kept. A parent is never used later
    than its child, so what is kept is closed under prefixes and this is a true bound.
    """
    next_use: list[npt.NDArray[np.int64]] = [np.empty(0, np.int64)] * len(trace.requests)
    coming = np.full(trace.unique, NEVER, np.int64)
    for at in range(len(trace.requests) - 1, -1, -1):
        request = trace.requests[at]
        next_use[at] = coming[request]
        coming[request] = at
    kept: dict[int, int] = {}  # block -> its next use
    furthest: list[tuple[int, int, int]] = []  # (-next use, -depth, block), with stale entries
    hits = 0
    for at, request in enumerate(trace.requests):
        leading = True
        for depth, (block, use) in enumerate(zip(request.tolist(), next_use[at].tolist(), strict=True)):
            leading = leading and block in kept
            hits += leading
            if use == NEVER:
                kept.pop(block, None)
            else:
                kept[block] = use
                heapq.heappush(furthest, (-use, -depth, block))
        while len(kept) > capacity:
            use, _, block = heapq.heappop(furthest)
            if kept.get(block) == -use:
                del kept[block]
    return hits / trace.references
