"""The order of tiers below memory, nearest first. Decides only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.tiers.base import Hold, Keys, Tier, TierKind


@dataclass(frozen=True, slots=True)
class Ladder:
    """Tiers that hold blocks which memory has not."""

    tiers: Sequence[Tier] = ()

    def __post_init__(self) -> None:
        kinds = [tier.kind for tier in self.tiers]
        assert kinds == sorted(set(kinds)), "each kind once, nearest first"

    def hold(self, ns: int, shard: int, keys: Keys, under: TierKind = TierKind.NONE) -> tuple[Tier, Hold] | None:
        """The longest run from the start that the nearest tier with the first block has. under: which could not give
        it; only those below are asked.
        """
        for tier in self.tiers:
            hold = tier.hold(ns, shard, keys) if tier.kind > under else None
            if hold is not None:
                return tier, hold
        return None

    def below(self, tier: Tier) -> Tier | None:
        """Where what leaves `tier` goes."""
        kinds = [each.kind for each in self.tiers]
        lower = [each for each, kind in zip(self.tiers, kinds, strict=True) if kind > tier.kind]
        return lower[0] if lower else None


def stretches(wanted: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open ranges of indices whose flag is set: [1 1 0 1] gives (0, 2), (3, 4)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], wanted.view(np.int8), [0]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
