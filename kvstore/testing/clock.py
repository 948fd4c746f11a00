"""A clock that moves only when it is told to."""

__all__ = ["VirtualClock"]


class VirtualClock:
    """Starts at `now_ns` and never moves by itself."""

    def __init__(self, now_ns: int = 0) -> None:
        self._now_ns = now_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance_ns(self, duration_ns: int) -> int:
        """Moves on by `duration_ns` and returns the new reading."""
        if duration_ns < 0:
            raise ValueError(f"duration_ns must not be negative: a monotonic clock never goes back (got {duration_ns})")
        self._now_ns += duration_ns
        return self._now_ns

    def advance_to_ns(self, now_ns: int) -> int:
        """Moves on to `now_ns`, which must not lie in the past."""
        return self.advance_ns(now_ns - self._now_ns)
