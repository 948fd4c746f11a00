"""Processes on virtual time: each has an event loop of its own, all have one clock, and one seed gives one run.

Rules
- Time moves only when no process has anything left to do, and then straight to whatever comes next.
- A stopped process (SIGSTOP) does nothing, while what is sent to it waits and its timers run out; a killed one never
  does anything again.
- What processes say to each other goes by `World.at`, never straight into another's loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import random
import secrets
import selectors
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, Final

__all__ = ["Broken", "Process", "World"]

NEVER: Final = float("inf")
EPSILON_S: Final = 1e-7
TRACE: Final = 400


class Broken(AssertionError):
    """What did not hold, with the end of the trace."""


class _Idle(Exception):
    """Nothing is ready; the next timer of this loop is then."""


class _Selector(selectors.SelectSelector):
    """Descriptors are never ready; a loop that would wait is left."""

    def __init__(self) -> None:
        super().__init__()
        self.wait_s = NEVER

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout < EPSILON_S:
            return []
        self.wait_s = NEVER if timeout is None else timeout
        raise _Idle


class Process(asyncio.SelectorEventLoop):
    """One of the world's, from its making until `kill`."""

    def __init__(self, world: World, name: str) -> None:
        self._world, self._waits = world, _Selector()
        super().__init__(self._waits)
        self._clock_resolution = 10 * EPSILON_S
        self.name = name
        self.stopped = self.dead = False
        self.ready, self.wakes_at = True, NEVER
        self.set_exception_handler(lambda _, context: world.faulted(self, context))

    def time(self) -> float:
        return self._world.now

    def post(self, call: Callable[[], object]) -> None:
        """From outside. It is done when the process next runs, if ever."""
        if not self.dead:
            self.call_soon(call)
            self.ready = True

    def step(self) -> None:
        """All that it can do now."""
        self.ready = False
        with contextlib.suppress(_Idle):
            self.run_forever()
        self.wakes_at = self._world.now + self._waits.wait_s

    def stop_still(self) -> None:
        self.stopped = True

    def go_on(self) -> None:
        self.stopped, self.ready = False, True

    def kill(self) -> None:
        self.dead = True
        self._world.processes.remove(self)
        self._world.killed.append(self)


class World:
    """All of one run."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.processes: list[Process] = []
        self.killed: list[Process] = []
        self.faults: list[str] = []
        self.steps = 0
        self.kept: list[object] = []  # memory that somebody may touch while anything of this world is left
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._trace: deque[str] = deque(maxlen=TRACE)

    def process(self, name: str) -> Process:
        made = Process(self, name)
        self.processes.append(made)
        return made

    def at(self, when: float, call: Callable[[], object]) -> None:
        heapq.heappush(self._events, (max(when, self.now), next(self._numbers), call))

    def after(self, delay: float, call: Callable[[], object]) -> None:
        self.at(self.now + delay, call)

    def say(self, who: str, what: str) -> None:
        self._trace.append(f"{self.now:10.4f} {who:8} {what}")

    def trace(self) -> list[str]:
        return list(self._trace)

    def faulted(self, process: Process, context: dict[str, Any]) -> None:
        if not process.dead:
            whose = context.get("future") or context.get("task") or context.get("handle") or ""
            self.faults.append(f"{process.name}: {context.get('message')}: {context.get('exception')!r} {whose}")

    def run_until(self, end: float) -> None:
        """Raises Broken where a process's own code failed."""
        while True:
            self._settle()
            if self.faults:
                raise Broken(self.faults[0])
            due = min(
                self._events[0][0] if self._events else NEVER,
                min((one.wakes_at for one in self.processes if not one.stopped), default=NEVER),
            )
            if due >= end:
                self.now = end
                return
            self.now = max(self.now, due)
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()

    def _settle(self) -> None:
        again = True
        while again:
            again = False
            for one in list(self.processes):
                if not one.dead and not one.stopped and (one.ready or one.wakes_at <= self.now):
                    one.step()
                    self.steps += 1
                    again = True

    def close(self) -> None:
        """Everything that still waits is given up first, or it would complain about loops that are gone."""
        everybody = [*self.processes, *self.killed]
        self.processes.clear()
        for one in everybody:
            one.dead = True
            for task in asyncio.all_tasks(one):
                task.cancel()
        for one in everybody:
            one.step()
            one.close()

    @contextlib.contextmanager
    def its_own_time(self) -> Iterator[None]:
        """Whoever asks `time` or `secrets` in the store's own modules is answered by this world."""
        seeded = random.Random(self.rng.getrandbits(64))
        clock = SimpleNamespace(
            monotonic=lambda: self.now,
            monotonic_ns=lambda: round(self.now * 1e9),
            perf_counter=lambda: self.now,
            time=lambda: self.now,
        )
        chance = SimpleNamespace(token_bytes=seeded.randbytes, randbits=seeded.getrandbits)
        changed: list[tuple[object, str, object]] = []
        for name, module in list(sys.modules.items()):
            if not name.startswith(("kvstore.", "transfer.")):
                continue
            for attribute, real, ours in (("time", time, clock), ("secrets", secrets, chance)):
                if getattr(module, attribute, None) is real:
                    changed.append((module, attribute, real))
                    setattr(module, attribute, ours)
        try:
            yield
        finally:
            for module, attribute, real in changed:
                setattr(module, attribute, real)
