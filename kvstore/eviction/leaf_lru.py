"""Least recently used, leaves first: the default. Rules: native/core/policy_leaf_lru.cpp."""

from kvstore.eviction.base import NativePolicy


class LeafLru(NativePolicy):
    """Only ids without children are candidates, so what is held of a chain is always a prefix of it."""

    name = "leaf_lru"
