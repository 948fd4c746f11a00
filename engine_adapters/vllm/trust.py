"""Whether what the engine keeps and what the store has are of the same weights.

A clear says that weights have changed. Trust ends with it, and is back once

- the store was cleared: at once, or as soon as it can be reached and blocks are known;
- and the engine's own prefix cache was empty since. vLLM empties it before it asks for a clear, and cannot while a
  request holds blocks. Then it goes on serving blocks of the old weights, and computing on them, and nothing shows
  which they are: under the store's new keys they would be a lie.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool

__all__ = ["Trust"]

log = logging.getLogger(__name__)


class Trust:
    """Of the engine's scheduling thread, but for `cleared`. whole: nothing is amiss; else `regained` is to be asked."""

    def __init__(self) -> None:
        self.whole = True
        self.asked = 0  # clears
        self._done = 0
        self._emptied = True
        self._kept: object | None = None  # the engine's cache that outlived a clear

    @property
    def owed(self) -> bool:
        """Whether the store is yet to be cleared."""
        return self._done < self.asked

    def end(self, pool: BlockPool) -> None:
        """A clear was asked for; vLLM has tried to empty its own cache just before."""
        self.whole = False
        self.asked += 1
        # One block is always taken. Where nobody holds another, it could; where nothing is kept, it need not.
        self._emptied = not pool.enable_caching or pool.num_gpu_blocks - pool.get_num_free_blocks() <= 1
        self._kept = None
        if not self._emptied:
            self._kept = getattr(pool, "cached_block_hash_to_block", None)
            log.warning(
                "the engine's own prefix cache outlived a clear: nothing is loaded or saved until it was reset, too"
                " (reset_prefix_cache, once nothing runs)"
            )

    def cleared(self, asked: int) -> None:
        """The store was cleared, for the clears up to this one."""
        self._done = max(self._done, asked)

    def regained(self, pool: BlockPool) -> bool:
        if self._kept is not None and pool.cached_block_hash_to_block is not self._kept:
            self._emptied, self._kept = True, None  # a reset makes a new one
            log.info("the engine's own prefix cache was reset after a clear")
        self.whole = self._emptied and not self.owed
        return self.whole
