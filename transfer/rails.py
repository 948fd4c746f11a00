"""Which of a peer's rails carry bytes now: a rail that fails is set aside, and tried again later. Pure.

  OK --`failures_max` failures within `window_s`, or a severe one--> PAUSED --a trial worked--> OK
  any --down()--> DOWN --up()--> PAUSED

Rules
- Bytes go over rails that are OK, and over no others. A paused rail comes back by a trial: whoever owns the rail opens
  it anew and moves a few bytes over it, apart from anybody's batch.
- A failure is an event (a queue pair or a connection lost, a retry counter run out), not a slice: count it once. Where
  it fell on a rail that is paused or down already, it is an echo and changes nothing.
- Each pause is twice the one before, up to `pause_s_max`; a rail that has then been OK for `pause_s_max` begins anew.
- A port that is up again gets a pause first: its addresses come back later than its link.
- What lay on a rail that failed goes to the others at once (`deal`); nothing waits for a trial.

The owner's part:

  event:  if rails.failed(rail, now): all slices of this rail -> rails.deal(lengths), [] means that none is left
          else:                       the slices of the event -> rails.deal(lengths, away_from=rail)
  timer:  for rail in rails.due(now): open anew, move a few bytes, then rails.tried(rail, worked, now)
  batch:  plan(batch, rails=rails.weights()); the plan's rail i is rails.usable()[i]
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import accumulate

__all__ = ["RailConfig", "RailReport", "RailState", "Rails"]


class RailState(Enum):
    OK = "ok"
    PAUSED = "paused"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class RailConfig:
    failures_max: int = 3
    window_s: float = 5.0
    pause_s: float = 0.5
    pause_s_max: float = 30.0

    def __post_init__(self) -> None:
        if self.failures_max < 1:
            raise ValueError(f"failures_max must be at least 1, not {self.failures_max}")
        if self.window_s <= 0:
            raise ValueError(f"window_s must be positive, not {self.window_s}")
        if not 0 < self.pause_s <= self.pause_s_max:
            raise ValueError(f"pause_s must be within (0, pause_s_max], not {self.pause_s}")


@dataclass(frozen=True, slots=True)
class RailReport:
    """A rail for people and metrics. `failures` and `pauses` count since the beginning."""

    state: RailState
    weight: int
    failures: int
    pauses: int


@dataclass(slots=True)
class _Rail:
    weight: int
    state: RailState = RailState.OK
    recent: deque[float] = field(default_factory=deque)  # failures, not older than the window
    pause_s: float = 0.0  # the last one; 0: none yet
    again: float = 0.0  # while paused: when it is tried
    ok_since: float | None = None  # None: from the beginning
    failures: int = 0
    pauses: int = 0


class Rails:
    """The rails to one peer, numbered from 0, with positive weights. `now` is any clock in seconds that only grows."""

    def __init__(self, weights: Sequence[int], config: RailConfig | None = None) -> None:
        if not weights or min(weights) <= 0:
            raise ValueError("weights must be positive, at least one")
        self._config = config or RailConfig()
        self._rails = [_Rail(weight) for weight in weights]

    def __len__(self) -> int:
        return len(self._rails)

    # -- what carries bytes

    def usable(self, near: Collection[int] = ()) -> tuple[int, ...]:
        """The rails that carry bytes now; none: the peer cannot be reached over any.

        near: those to prefer, since they lie near the memory; the others are spare, for when none of these is OK.
        """
        ok = tuple(number for number, rail in enumerate(self._rails) if rail.state is RailState.OK)
        return tuple(number for number in ok if number in near) or ok

    def weights(self, near: Collection[int] = ()) -> tuple[int, ...]:
        """Of the usable rails, in their order: what transfer.plan takes."""
        return tuple(self._rails[number].weight for number in self.usable(near))

    def deal(self, lengths: Sequence[int], *, away_from: int | None = None, near: Collection[int] = ()) -> list[int]:
        """A usable rail for each slice of these lengths, as many bytes each as the weights say; [] where none is left.

        away_from: a rail to avoid, unless it is the only one; rather a spare one than this.
        """
        choices = (self.usable(near), self.usable())
        others = [[number for number in choice if number != away_from] for choice in choices]
        numbers = others[0] or others[1] or list(choices[1])
        if not numbers:
            return []
        borders = list(accumulate(self._rails[number].weight for number in numbers))
        total = max(1, sum(lengths))
        ends = accumulate(lengths)
        # By the middle of each slice, so that a single one goes by weight too.
        middles = (end - length / 2 for end, length in zip(ends, lengths, strict=True))
        last = len(numbers) - 1
        return [numbers[min(last, bisect_right(borders, middle * borders[-1] / total))] for middle in middles]

    # -- what is seen of them

    def failed(self, number: int, now: float, *, severe: bool = False) -> bool:
        """Whether the rail is out of use, from now on or already. severe: what cannot be worth another try at once, as
        a local fault of the NIC.
        """
        rail = self._rails[number]
        rail.failures += 1
        if rail.state is not RailState.OK:
            return True
        rail.recent.append(now)
        while rail.recent[0] < now - self._config.window_s:
            rail.recent.popleft()
        if severe or len(rail.recent) >= self._config.failures_max:
            held = rail.ok_since is None or now - rail.ok_since >= self._config.pause_s_max
            self._pause(rail, now, anew=held)
        return rail.state is not RailState.OK

    def down(self, number: int) -> None:
        """Its port is not active."""
        self._rails[number].state = RailState.DOWN

    def up(self, number: int, now: float) -> None:
        """Its port is active. Only a rail that was down changes: it will be tried."""
        rail = self._rails[number]
        if rail.state is RailState.DOWN:
            rail.state = RailState.PAUSED
            rail.pauses += 1
            rail.pause_s = max(rail.pause_s, self._config.pause_s)
            rail.again = now + self._config.pause_s

    # -- trials

    def due(self, now: float) -> tuple[int, ...]:
        """Paused rails to be tried now. Each is told once a pause: a trial that nobody concludes is followed by
        another.
        """
        found = []
        for number, rail in enumerate(self._rails):
            if rail.state is RailState.PAUSED and rail.again <= now:
                rail.again = now + rail.pause_s
                found.append(number)
        return tuple(found)

    def next_due(self) -> float | None:
        """When `due` will next have something to tell, as things are."""
        return min((rail.again for rail in self._rails if rail.state is RailState.PAUSED), default=None)

    def tried(self, number: int, worked: bool, now: float) -> None:
        """What came of a trial. Of a rail that is not paused any more it says nothing."""
        rail = self._rails[number]
        if rail.state is not RailState.PAUSED:
            return
        if not worked:
            self._pause(rail, now, anew=False)
            return
        rail.state = RailState.OK
        rail.ok_since = now
        rail.recent.clear()

    def reports(self) -> tuple[RailReport, ...]:
        return tuple(RailReport(rail.state, rail.weight, rail.failures, rail.pauses) for rail in self._rails)

    def _pause(self, rail: _Rail, now: float, *, anew: bool) -> None:
        first = anew or rail.pause_s == 0
        rail.pause_s = self._config.pause_s if first else min(2 * rail.pause_s, self._config.pause_s_max)
        rail.state = RailState.PAUSED
        rail.again = now + rail.pause_s
        rail.pauses += 1
