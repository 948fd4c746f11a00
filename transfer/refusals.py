"""What is wrong with a batch as it stands, before anything is asked of a peer: bounds, rights. Pure.

The peer checks again what concerns it; this side's look gives the better answer, and sooner.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from transfer.base import Presented
from transfer.batch import Batch
from transfer.errors import Reason
from transfer.grants import Rights
from transfer.regions import Region

__all__ = ["Reasons", "refusals"]

Reasons = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


def refusals(
    batch: Batch, regions: Mapping[int, Region], shown: Mapping[int, Presented | None], *, writing: bool
) -> Reasons | None:
    """A Reason an extent, NONE for what is sound, or None where all of it is.

    regions: every local region of the batch. shown: every remote handle; None for one whose grant is known to be gone.
    """
    table = batch.table
    if len(table) == 1:
        reason = _refused(table[0].tolist(), regions, shown, writing=writing)
        return None if reason is Reason.NONE else np.array([reason], dtype=np.uint8)
    reasons = np.zeros(len(table), dtype=np.uint8)
    for region_id, region in regions.items():
        of = table[:, 0] == region_id
        if not writing and not region.writable:
            reasons[of] = Reason.NOT_ALLOWED
        reasons[of & ~_within(table[:, 1], table[:, 4], [(0, region.bytes)])] = Reason.OUT_OF_BOUNDS
    needed = Rights.WRITE if writing else Rights.READ
    for handle, presented in shown.items():
        of = (table[:, 2] == handle) & (reasons == Reason.NONE)
        if presented is None:
            reasons[of] = Reason.REVOKED
            continue
        if not presented.rights & needed:
            reasons[of] = Reason.NOT_ALLOWED
            continue
        reasons[of & ~_within(table[:, 3], table[:, 4], presented.ranges)] = Reason.OUT_OF_BOUNDS
    return reasons if reasons.any() else None


def _refused(
    row: list[int], regions: Mapping[int, Region], shown: Mapping[int, Presented | None], *, writing: bool
) -> Reason:
    """Of one extent: what arrays would take longer over than a small read takes."""
    local, here, remote, there, length = row
    region, presented = regions[local], shown[remote]
    if not _covered(here, length, [(0, region.bytes)]):
        return Reason.OUT_OF_BOUNDS
    if not writing and not region.writable:
        return Reason.NOT_ALLOWED
    if presented is None:
        return Reason.REVOKED
    if not presented.rights & (Rights.WRITE if writing else Rights.READ):
        return Reason.NOT_ALLOWED
    return Reason.NONE if _covered(there, length, presented.ranges) else Reason.OUT_OF_BOUNDS


def _covered(offset: int, length: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """As _within, of one extent."""
    at = bisect_right(ranges, offset, key=itemgetter(0)) - 1
    return length == 0 or (at >= 0 and offset + length <= ranges[at][0] + ranges[at][1])


def _within(offsets: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], ranges: Sequence[tuple[int, int]]) -> Flags:
    """Which extents lie in one of the ranges, which are sorted and apart. An extent without bytes lies anywhere up to
    its range's end.
    """
    starts = np.array([start for start, _ in ranges], dtype=np.int64)
    sizes = np.array([size for _, size in ranges], dtype=np.int64)
    at = np.searchsorted(starts, offsets, side="right") - 1
    into = offsets - starts[at]
    inside: Flags = (at >= 0) & (into <= sizes[at]) & (lengths <= sizes[at] - into)
    inside |= lengths == 0
    return inside
