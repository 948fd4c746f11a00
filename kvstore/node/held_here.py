"""What of a chain this node has itself, nearer than the object tier."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvstore.node.bridge import MEMORY_TIER
from kvstore.tiers.base import TierKind

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from kvstore.native import NodeCore

__all__ = ["held_here"]


def held_here(core: NodeCore, ns: int, shard: int, keys: NDArray[np.uint8], *, has_files: bool) -> NDArray[np.bool_]:
    """Of each block, whether memory or files have it. has_files: whether the node has a tier of them."""
    here = core.find(MEMORY_TIER, ns, shard, keys)
    return here | core.find(int(TierKind.FILE), ns, shard, keys) if has_files else here
