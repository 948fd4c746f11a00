"""When to stop asking a store that does not answer. Decides only: `now` is an argument, in nanoseconds.

Rules
- `failures_max` failures in a row open it. While it is open nobody asks, and whatever would have been asked is a miss.
- After a pause one request may try. If it is answered the circuit is closed; if not, the next pause is twice as long,
  up to `pause_max_s`. What is answered "no such object" is an answer.
- Many requests under way when it opens fail together; that is one failure, and no reason for a longer pause.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["Circuit"]

NANOS: Final = 1_000_000_000


@dataclass(slots=True)
class Circuit:
    failures_max: int = 3
    pause_min_s: float = 1.0
    pause_max_s: float = 30.0
    opened: int = 0  # how often, ever
    _failures: int = 0
    _pause_s: float = 0.0
    _until: int = 0
    _on_trial: bool = False

    @property
    def is_open(self) -> bool:
        return self._pause_s > 0

    def may_ask(self, now: int) -> bool:
        """Of an open circuit, True once a pause: whoever is told so is its trial."""
        if not self.is_open:
            return True
        if now < self._until:
            return False
        self._until = now + int(self._pause_s * NANOS)
        self._on_trial = True
        return True

    def answered(self) -> None:
        self._failures, self._pause_s, self._on_trial = 0, 0.0, False

    def failed(self, now: int) -> None:
        self._failures += 1
        if self.is_open and not self._on_trial:
            return
        if self.is_open:
            self._pause_s = min(2 * self._pause_s, self.pause_max_s)
            self._on_trial = False
        elif self._failures >= self.failures_max:
            self._pause_s = self.pause_min_s
            self.opened += 1
        else:
            return
        self._until = now + int(self._pause_s * NANOS)
