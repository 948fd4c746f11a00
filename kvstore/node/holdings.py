"""Which blocks a node holds, for an operator's counts over a cluster: those with the smallest keys.

Keys are SHA-256, so any node's smallest ones are as good as drawn by lot, and all nodes draw the same lots: of two
nodes that hold a block, both tell of it or neither, below the least of their limits. So copies can be counted over
nodes without moving every key, and nothing has to be agreed on before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvstore.native import NodeCore

__all__ = ["Held", "least_keys"]

STEP_SLOTS: Final = 4_096  # looked at under the core's mutex at once
KEY_BYTES: Final = 16
WORD_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Held:
    """blocks: by namespace handle, how many there are in all. keys: (n, 16), ascending; places: of each, its
    namespace's place in `blocks`; shards: bitmaps. below: whatever begins below it, as a big-endian number, is among
    them; 0: all.
    """

    blocks: Mapping[int, int]
    keys: NDArray[np.uint8]
    places: NDArray[np.int64]
    shards: NDArray[np.uint64]
    below: int


async def least_keys(core: NodeCore, most: int, ns: int = -1) -> Held:
    """At most so many, of one namespace or of all."""
    counted: Counter[int] = Counter()
    keys = np.zeros((0, KEY_BYTES), np.uint8)
    handles, shards = np.zeros(0, np.uint32), np.zeros(0, np.uint64)
    after = below = 0
    while True:
        after, found, of, bitmaps, _ = core.scan_held(after, STEP_SLOTS, ns)
        counted.update(of.tolist())
        if below:  # most of what comes is not among the smallest: it is neither kept nor sorted
            low = words_of(found[:, :KEY_BYTES])[:, 0] < below
            found, of, bitmaps = found[low], of[low], bitmaps[low]
        keys = np.concatenate([keys, found[:, :KEY_BYTES]])
        handles, shards = np.concatenate([handles, of]), np.concatenate([shards, bitmaps])
        if len(keys) > 2 * most or not after:
            chosen, below = smallest(keys, most, below)
            keys, handles, shards = keys[chosen], handles[chosen], shards[chosen]
        if not after:
            break
        await asyncio.sleep(0)
    order = sorted(counted)
    places = np.searchsorted(np.array(order, np.int64), handles.astype(np.int64))
    return Held({one: counted[one] for one in order}, keys, places, shards, below)


def smallest(keys: NDArray[np.uint8], most: int, below: int) -> tuple[NDArray[np.intp], int]:
    """Places of the smallest keys, ascending, each key once; and below what nothing is left out (0: nothing is).
    `below`: what was left out of `keys` before.
    """
    words = words_of(keys)
    order = np.lexsort((words[:, 1], words[:, 0])) if len(words) else np.zeros(0, np.intp)
    words = words[order]
    # A block that moves while it is looked for may be met twice.
    first = np.ones(len(order), np.bool_)
    first[1:] = (words[1:] != words[:-1]).any(axis=1)
    order, heads = order[first], words[first, 0]
    limit = below
    if len(order) > most:
        cut = int(heads[most])
        limit = min(cut, below) if below else cut
    if limit:
        order = order[: int(np.searchsorted(heads, np.uint64(limit)))]
    return order, limit


def words_of(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(n, 2): keys as numbers that sort as they do."""
    return np.ascontiguousarray(keys).view(">u8").astype(np.uint64).reshape(-1, KEY_BYTES // WORD_BYTES)
