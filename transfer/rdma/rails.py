"""Which ways to a peer are good just now. Decides only; time is an argument.

  OK --fails--> PAUSED --due--> (tried) --fails--> PAUSED, twice as long ... DOWN from `down_after` failures on
   ^                                |
   +------------- works ------------+

Rules
- A rail fails when one of its queue pairs breaks by its path's fault, or cannot be connected. A queue pair that this
  side flushed, or that a revoked grant broke, is built anew at once and says nothing about the rail.
- A rail that is DOWN is still tried, as seldom as the backoff has become; the word is for people.
- What has worked for `forgive_s` has a clean sheet: the next failure pauses it shortly again.
"""

from __future__ import annotations

from enum import Enum

__all__ = ["Rail", "RailState"]


class RailState(Enum):
    OK = "ok"
    PAUSED = "paused"
    DOWN = "down"


class Rail:
    def __init__(self, *, backoff_s: float, backoff_s_max: float, forgive_s: float = 5.0, down_after: int = 4) -> None:
        self._backoff_s = backoff_s
        self._backoff_s_max = backoff_s_max
        self._forgive_s = forgive_s
        self._down_after = down_after
        self._failures = 0
        self._failed_at = 0.0
        self._worked_at: float | None = None
        self._due_at = 0.0

    @property
    def state(self) -> RailState:
        if self._failures == 0 or self._worked_at is not None:
            return RailState.OK
        return RailState.DOWN if self._failures >= self._down_after else RailState.PAUSED

    def failed(self, now: float) -> None:
        """Failures of several queue pairs within one pause are one."""
        if self._worked_at is None and self._failures and now < self._due_at:
            return
        if self._worked_at is not None and now - self._worked_at >= self._forgive_s:
            self._failures = 0
        self._failures += 1
        self._worked_at = None
        self._failed_at = now
        self._due_at = now + self.pause_s

    def worked(self, now: float) -> None:
        """A queue pair has been connected."""
        if self._worked_at is None:
            self._worked_at = now

    @property
    def pause_s(self) -> float:
        """How long the pause is that the latest failure has led to."""
        if self._failures == 0:
            return 0.0
        return min(self._backoff_s * 2.0 ** min(self._failures - 1, 30), self._backoff_s_max)

    def due_in(self, now: float) -> float:
        """How long not to try."""
        return 0.0 if self.state is RailState.OK else max(0.0, self._due_at - now)
