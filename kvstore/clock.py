"""Time, as an argument. Decisions take `now` as nanoseconds of a monotonic clock; only composition roots own a
clock.
"""

import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    """A monotonic clock. Its readings mean nothing outside the process: durations travel, clock times do not."""

    def now_ns(self) -> int:
        """Nanoseconds since some fixed moment; never less than before."""
        ...


class SystemClock:
    """CLOCK_MONOTONIC: the clock that the native core and every process of one machine share."""

    def now_ns(self) -> int:
        return time.monotonic_ns()
