"""What the scheduler's half knows of a request, from its arrival to its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from engine_adapters.base.promises import Finding, Promise
    from engine_adapters.vllm.chains import Chain

__all__ = ["Tracked"]


@dataclass(slots=True)
class Tracked:
    """due: how many of its tokens must be computed before anything is saved; 0: that is to be found out."""

    request: Request
    chain: Chain
    expect: int = 0  # blocks that somebody said are coming
    saved: int = 0  # blocks that are in the store, as far as is known
    due: int = 0
    finding: Finding | None = None
    asked_at: float = 0.0  # when the engine first wanted an answer; 0: not yet
    late_at: float = 0.0  # when it gets one, whatever is known by then
    promise: Promise | None = None  # of a load under way
    loading: int = 0  # ranks that still load it
    first: int = 0  # of the load's blocks
    holed: bool = False  # a block of it found no room in the store, or may not go there
    failed: bool = False  # a load of it failed: it is computed, or it would be loaded and fail for ever

    def has(self, saved: int) -> None:
        """So many blocks are in the store."""
        self.saved, self.due = saved, 0
