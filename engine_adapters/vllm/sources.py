"""Which tier a hit came from, in vLLM's words."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.v1.metrics.cache_hit_source import CacheHitSource  # only releases that have it ask for this

__all__ = ["by_source"]

_UNKNOWN = CacheHitSource.EXTERNAL_UNSPECIFIED
_OF_TIER = (_UNKNOWN, CacheHitSource.HOST, CacheHitSource.DISK, _UNKNOWN)


def by_source(blocks: Sequence[int], tokens: int) -> dict[CacheHitSource, int]:
    """blocks: how many came from each tier, by its number. The counts of the answer add up to `tokens`."""
    every = sum(blocks)
    if every == 0 or tokens % every:
        return {_UNKNOWN: tokens}
    each = tokens // every
    counts: dict[CacheHitSource, int] = {}
    for tier, count in enumerate(blocks):
        if count:
            source = _OF_TIER[tier]
            counts[source] = counts.get(source, 0) + count * each
    return counts
