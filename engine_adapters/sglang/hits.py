"""How much of a prompt the store has, by what each of the engine's pools needs of a boundary.

    all_pages        every page before the boundary
    trailing_pages   the last n before it: a window, or the state at the boundary (n = 1)
    block_groups     a second form of the pages, in whole groups a block; told beside, gates nothing

The boundary told to the engine is held, every page that a rank will fetch for it, before it is told. What is told of
single pools (how far each of them goes) is what was looked up: the engine learns from it, and fetches nothing by it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine_adapters.base.promises import Budget, Promise, find
from engine_adapters.sglang.keys import Run, run_of
from kvstore.layout import KVLayout, Need, NeedKind

if TYPE_CHECKING:
    from engine_adapters.sglang.layout import Group
    from kvstore import Namespace

__all__ = ["Hit", "Wish", "hit", "wish_of"]

# Boundaries told beside the longest one, for ranks to agree on; each costs a lookup.
LOWER_MAX: Final = 32
KEYS_MAX: Final = 32_768  # of one lookup; a longer prompt is found up to there


class Wish(NamedTuple):
    """What one pool needs. hashes: for groups, their pages; every `group_pages` of them cover `block_pages` pages."""

    pool: str
    need: Need
    hashes: Sequence[str] = ()
    block_pages: int = 0
    group_pages: int = 0

    @property
    def gates(self) -> bool:
        return self.group_pages == 0


class Hit(NamedTuple):
    """promise: of the longest boundary, in pages of the call. pools: how far each goes. lower: other boundaries that
    every pool can serve, in order; all of them where `lower` is None.
    """

    promise: Promise
    pools: dict[str, int]
    lower: list[int] | None


def wish_of(group: Group, transfer: Any, hashes: Sequence[str]) -> Wish:
    """As a PoolTransfer says it. Raises ValueError for a policy that nobody knows."""
    policy = str(getattr(transfer.hit_policy, "value", transfer.hit_policy))
    if policy == "all_pages":
        return Wish(group.name, Need(group.shard))
    if policy == "trailing_pages":
        return Wish(group.name, Need(group.shard, NeedKind.LAST, max(1, len(transfer.keys or ()))))
    if policy == "block_groups":
        block, size = int(transfer.block_pages), int(transfer.group_pages)
        if size < 1 or block < 1:
            raise ValueError(f"groups of {size} pages for blocks of {block}")
        named = list(transfer.keys or ())
        if not named:  # the pages at each block's end stand for it
            whole = len(hashes) // block
            named = [
                name for b in range(whole) for name in hashes[(b + 1) * block - min(size, block) : (b + 1) * block]
            ]
        return Wish(group.name, Need(group.shard), named, block, size)
    raise ValueError(f"hit policy {policy}")


def hit(
    namespace: Namespace,
    layout: KVLayout,
    hashes: Sequence[str],
    before: Sequence[str] | None,
    wishes: Sequence[Wish],
    budget: Budget,
    until: float,
    *,
    several: bool,
) -> Hit:
    """wishes: of all pools, the primary one first where it has memory. until: time.monotonic() seconds. several: ranks
    must agree on a boundary. Raises KvStoreError, and Crowded where the budget is used up for now.
    """
    run = run_of(namespace, hashes[:KEYS_MAX], before)
    needs = tuple(wish.need for wish in wishes if wish.gates)
    pools = {wish.pool: _grouped(namespace, wish, until) for wish in wishes if not wish.gates}
    if not needs:
        return Hit(Promise(0, 0), pools, [])
    end = run.keys.shape[0]
    for wish in wishes:
        if wish.gates and len(needs) > 1:
            pools[wish.pool] = _boundary(namespace, run, end, (wish.need,), until)
            if wish is wishes[0] and wish.need.kind == NeedKind.ALL:
                end = pools[wish.pool]
    promise = find(namespace, run.keys[:end], 0, layout, budget, until, needs=needs, position=run.position)
    if len(needs) == 1:
        pools[next(wish.pool for wish in wishes if wish.gates)] = promise.end
    if all(need.kind == NeedKind.ALL for need in needs):
        return Hit(promise, pools, None)
    return Hit(promise, pools, _lower(namespace, run, promise.end, needs, until) if several else [promise.end])


def _boundary(namespace: Namespace, run: Run, end: int, needs: tuple[Need, ...], until: float) -> int:
    left = until - time.monotonic()
    if not end or left <= 0:
        return 0
    return namespace.lookup(run.keys[:end], needs, deadline_s=left).blocks


def _grouped(namespace: Namespace, wish: Wish, until: float) -> int:
    """Pages that the leading whole groups cover."""
    run = run_of(namespace, wish.hashes[:KEYS_MAX], None)
    found = _boundary(namespace, run, run.keys.shape[0], (wish.need,), until)
    return found // wish.group_pages * wish.block_pages


def _lower(namespace: Namespace, run: Run, end: int, needs: tuple[Need, ...], until: float) -> list[int]:
    boundaries = [end] if end else []
    while end > 1 and len(boundaries) < LOWER_MAX:
        end = _boundary(namespace, run, end - 1, needs, until)
        if end:
            boundaries.insert(0, end)
    return boundaries
