"""All that a node holds, for whoever must learn the present before he follows the news: parents before children.

Two passes. The first takes down where every sealed slot is and how far from its chain's beginning (13 bytes a slot);
the second tells them in that order, asking the core again, so each is told as it is when it is told and what went
meanwhile is not. Not one moment's picture: who takes news from before the first pass on, in order, ends at the truth.

A walk is an iterator whose steps are short, so that its caller can do other things in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from kvstore.lifecycle import SlotState
from kvstore.tiers.base import TierKind

if TYPE_CHECKING:
    import numpy.typing as npt

    from kvstore import native

__all__ = ["HeldSlot", "HeldSlots"]

TIERS: Final = (int(TierKind.MEMORY), int(TierKind.FILE))
SCAN_SLOTS: Final = 1_024  # of one step


class HeldSlot(NamedTuple):
    tier: int
    ns: int
    shard: int
    key: bytes
    parent: bytes
    meta: bytes


class HeldSlots:
    """wanted: whether a namespace, by its handle, is told of."""

    def __init__(self, core: native.NodeCore, wanted: Callable[[int], bool]) -> None:
        self._core, self._wanted = core, wanted
        self._tiers: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._tickets: npt.NDArray[np.uint64] = np.empty(0, np.uint64)
        self.count = 0  # once scanned; so many at most are told

    def scan(self) -> Iterator[None]:
        """The first pass, step by step."""
        tiers, tickets, positions = [self._tiers], [self._tickets], [np.empty(0, np.uint32)]
        for tier in TIERS:
            after = 0
            while after >= 0:
                rows, after = self._core.scan(tier, after, SCAN_SLOTS)
                mine = self._mine(rows)
                tickets.append(rows.tickets[mine])
                positions.append(rows.positions[mine])
                tiers.append(np.full(int(mine.sum()), tier, np.uint8))
                yield
        order = np.argsort(np.concatenate(positions), kind="stable")
        self._tiers, self._tickets = np.concatenate(tiers)[order], np.concatenate(tickets)[order]
        self.count = len(order)

    def pages(self, slots: int) -> Iterator[list[HeldSlot]]:
        """The second pass: at most so many a page, now and then fewer."""
        for at in range(0, self.count, slots):
            yield self._page(self._tiers[at : at + slots], self._tickets[at : at + slots])

    def _mine(self, rows: native.SlotRows) -> npt.NDArray[np.bool_]:
        wanted = {int(ns): self._wanted(int(ns)) for ns in np.unique(rows.ns)}
        return np.fromiter((wanted[ns] for ns in rows.ns.tolist()), np.bool_, len(rows.ns))

    def _page(self, tiers: npt.NDArray[np.uint8], tickets: npt.NDArray[np.uint64]) -> list[HeldSlot]:
        found: dict[tuple[int, int], HeldSlot] = {}
        for tier in TIERS:
            rows = self._core.info(tier, tickets[tiers == tier])
            live = self._mine(rows) & (rows.states == int(SlotState.SEALED))
            for i in np.flatnonzero(live).tolist():
                found[tier, int(rows.tickets[i])] = HeldSlot(
                    tier,
                    int(rows.ns[i]),
                    int(rows.shards[i]),
                    rows.keys[i].tobytes(),
                    rows.parents[i].tobytes(),
                    bytes(rows.metas[i]),
                )
        order = zip(tiers.tolist(), tickets.tolist(), strict=True)
        return [slot for at in order if (slot := found.get(at)) is not None]
