"""Which tier a hit came from, in vLLM's words."""

from __future__ import annotations

from collections.abc import Sequence

from vllm.v1.metrics.cache_hit_source import CacheHitSource  # only releases that have it ask for this

__all__ = ["by_source"]

_OF_TIER = (
    CacheHitSource.EXTERNAL_UNSPECIFIED,
    CacheHitSource.HOST,
    CacheHitSource.DISK,
    CacheHitSource.EXTERNAL_UNSPECIFIED,
)


def by_source(blocks: Sequence[int], tokens: int) -> dict[CacheHitSource, int]:
    """blocks: how many came from each tier, by its number. The counts of the answer add up to `tokens`."""
    every = sum(blocks)
    if every == 0 or tokens % every:
        return {CacheHitSource.EXTERNAL_UNSPECIFIED: tokens}
    counts: dict[CacheHitSource, int] = {}
    for source, count in zip(_OF_TIER, blocks, strict=False):
        if count:
            counts[source] = counts.get(source, 0) + count * (tokens // every)
    return counts
