"""A network between nodes: calls that are late, lost, doubled, out of order, or cut off, in one direction or both.

A message is for whatever process has the address when it arrives, and what was sent by one that has ended still
arrives. Each call is answered once: with its answer, or with None at its deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from kvstore.testing.world import World

__all__ = ["Network", "Party", "Weather"]


class Party(Protocol):
    @property
    def running(self) -> bool: ...

    def deliver(self, call: Callable[[], None]) -> None:
        """Now, or when it goes on after a stop; never once it has ended."""
        ...

    def receive(self, sender: bytes, message: object) -> object: ...


@dataclass(slots=True)
class Weather:
    """Delays in nanoseconds; `loss`, `doubled`, `straggling`: shares of messages (a straggler comes very late)."""

    delay_max: int
    loss: float = 0.0
    doubled: float = 0.0
    straggling: float = 0.0
    late_max: int = 0


@dataclass(slots=True)
class Network:
    world: World
    weather: Weather
    parties: dict[bytes, Party] = field(default_factory=dict)
    cut: set[tuple[bytes, bytes]] = field(default_factory=set)
    lost: int = 0
    doubled: int = 0

    def reaches(self, sender: bytes, to: bytes) -> bool:
        return (sender, to) not in self.cut

    def call(self, sender: bytes, to: bytes, message: object, deadline: int, done: Callable[[object], None]) -> None:
        ended = False

        def end(answer: object) -> None:
            nonlocal ended
            if not ended:
                ended = True
                done(answer)

        def arrive() -> None:
            party = self.parties.get(to)
            if party is not None:
                party.deliver(lambda: handle(party))

        def handle(party: Party) -> None:
            answer = party.receive(sender, message)
            self._send(to, sender, lambda: end(answer))

        self._send(sender, to, arrive)
        if self.world.rng.random() < self.weather.doubled:
            self.doubled += 1
            self._send(sender, to, arrive)
        self.world.at(deadline, lambda: end(None))

    def _send(self, sender: bytes, to: bytes, arrive: Callable[[], None]) -> None:
        rng, weather = self.world.rng, self.weather
        if not self.reaches(sender, to) or rng.random() < weather.loss:
            self.lost += 1
            return
        late = rng.random() < weather.straggling
        self.world.after(rng.randint(1, weather.late_max if late else weather.delay_max), arrive)
