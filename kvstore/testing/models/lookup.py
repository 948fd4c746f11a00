"""The longest boundary at which all needs hold: every boundary is tried, the longest first."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple


class NeedKind(IntEnum):
    """Numbered as in native/core/types.hpp."""

    ALL = 0
    LAST = 1
    STATE = 2


class Need(NamedTuple):
    shard: int = 0
    kind: NeedKind = NeedKind.ALL
    blocks: int = 0


def blocks_read(need: Need, boundary: int) -> range:
    """Which blocks of its shard a need reads at a boundary."""
    if need.kind == NeedKind.ALL:
        return range(boundary)
    if need.kind == NeedKind.LAST:
        return range(max(0, boundary - need.blocks), boundary)
    return range(max(0, boundary - 1), boundary)


def longest_boundary(tiers: Sequence[Sequence[int]], needs: Sequence[Need]) -> int:
    """tiers[shard][block]: where it is, 0 for nowhere. No needs: all of shard 0."""
    needs = needs or (Need(),)
    length = len(tiers[0]) if tiers else 0
    for boundary in range(length, 0, -1):
        if all(tiers[need.shard][block] for need in needs for block in blocks_read(need, boundary)):
            return boundary
    return 0


def tiers_read(tiers: Sequence[Sequence[int]], needs: Sequence[Need], boundary: int) -> list[int]:
    """The slowest tier a need must read each block before the boundary from; 0 for a block that nobody reads."""
    slowest = [0] * boundary
    for need in needs or (Need(),):
        for block in blocks_read(need, boundary):
            slowest[block] = max(slowest[block], tiers[need.shard][block])
    return slowest
