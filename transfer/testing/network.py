"""A network made of one random generator and timers: latency, loss, reordering, partitions, dead and stopped nodes.

  weather (always on): latency, single losses, bursts of them, packets delivered twice, slow nodes, outages
  events (by a test): cut, cut_one_way, heal, stop, resume, kill, revive

Rules
- All chance comes from one `random.Random(seed)`, drawn in the order of sends. No set is iterated.
- A packet to or from a dead node, or across a cut, is lost, also when it is already under way.
- A packet to a stopped node waits there and is delivered when the node goes on: that is how landings come very late.
- A packet to a node that was revived may be one that was sent to its former life.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Network", "Weather"]


@dataclass(frozen=True, slots=True)
class Weather:
    """Latency is drawn evenly between its bounds, so packets overtake each other; `loss` and `twice` are a packet's
    chances. `burst`: the chance that a packet is the first of so many lost ones. `slow`: nodes to which packets take so
    much longer. `outage_s`: (every, for): nothing that is sent then arrives; with `outage_from`, nothing of its.
    """

    latency_s: tuple[float, float] = (50e-6, 2e-3)
    loss: float = 0.0
    twice: float = 0.0
    burst: tuple[float, int] = (0.0, 0)
    slow: tuple[tuple[str, float], ...] = ()
    outage_s: tuple[float, float] = (1.0, 0.0)
    outage_from: str = ""


class Network:
    """Delivers what nodes send each other."""

    def __init__(self, seed: int, weather: Weather | None = None) -> None:
        self.weather = weather or Weather()
        self._random = random.Random(seed)
        self._cuts: dict[tuple[str, str], None] = {}
        self._dead: dict[str, None] = {}
        self._stopped: dict[str, list[Callable[[], None]]] = {}
        self._trace = hashlib.sha256()
        self._burst_left = 0
        self.packets = self.lost = self.doubled = 0

    def trace(self) -> str:
        """A digest of every packet's journey: equal seeds must give equal traces."""
        return self._trace.hexdigest()

    def note(self, what: str) -> None:
        self._trace.update(f"{asyncio.get_running_loop().time():.9f} {what}\n".encode())

    def child(self) -> random.Random:
        """A generator for one node, seeded from this one."""
        return random.Random(self._random.getrandbits(64))

    def cut(self, one: str, other: str) -> None:
        self._cuts[one, other] = self._cuts[other, one] = None

    def cut_one_way(self, source: str, target: str) -> None:
        """What `target` sends still arrives."""
        self._cuts[source, target] = None

    def heal(self, one: str, other: str) -> None:
        self._cuts.pop((one, other), None)
        self._cuts.pop((other, one), None)

    def kill(self, address: str) -> None:
        self._dead[address] = None
        self._stopped.pop(address, None)

    def revive(self, address: str) -> None:
        self._dead.pop(address, None)

    def is_dead(self, address: str) -> bool:
        return address in self._dead

    def stop(self, address: str) -> None:
        self._stopped.setdefault(address, [])

    def resume(self, address: str) -> None:
        for deliver in self._stopped.pop(address, []):
            deliver()

    def send(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        """Calls `deliver` at the target some time later, or never."""
        self.packets += 1
        copies = 2 if self._random.random() < self.weather.twice else 1
        lost = self._lost(source)
        self.lost += lost
        self.doubled += copies - 1
        for _ in range(copies):
            delay = self._random.uniform(*self.weather.latency_s) + dict(self.weather.slow).get(target, 0.0)
            self.note(f"{source}>{target} {delay:.9f} {lost}")
            if not lost and self._linked(source, target):
                asyncio.get_running_loop().call_later(delay, self._arrive, source, target, deliver)

    def _lost(self, source: str) -> bool:
        """By the weather alone."""
        weather = self.weather
        chance = self._random.random()
        if self._burst_left:
            self._burst_left -= 1
            return True
        if self._random.random() < weather.burst[0]:
            self._burst_left = weather.burst[1] - 1
            return True
        every, duration = weather.outage_s
        out = asyncio.get_running_loop().time() % every < duration
        return chance < weather.loss or (out and weather.outage_from in ("", source))

    def _linked(self, source: str, target: str) -> bool:
        return not (source in self._dead or target in self._dead or (source, target) in self._cuts)

    def _arrive(self, source: str, target: str, deliver: Callable[[], None]) -> None:
        if not self._linked(source, target):
            return
        waiting = self._stopped.get(target)
        if waiting is not None:
            waiting.append(deliver)
            return
        self.note(f"{source}>{target} arrives")
        deliver()
