"""The order in which blocks leave a tier: one policy a module, all thin; the order itself is native."""

from kvstore.eviction.base import NO_HINT, NO_PARENT, EvictionPolicy, Hint, Ids
from kvstore.eviction.leaf_lru import LeafLru
from kvstore.eviction.s3_fifo import S3Fifo

__all__ = ["NO_HINT", "NO_PARENT", "POLICIES", "EvictionPolicy", "Hint", "Ids", "LeafLru", "S3Fifo"]

POLICIES: dict[str, type[LeafLru] | type[S3Fifo]] = {"leaf_lru": LeafLru, "s3_fifo": S3Fifo}
