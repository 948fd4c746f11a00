"""A world in one process: virtual time, one seed, processes as generators, and connections between them.

Everything that happens is an event at a time. Of two at one time the earlier made goes first, so one seed is one trace,
in every process and whatever PYTHONHASHSEED.

A process yields how long it sleeps, or a Wait for an answer with a deadline, and is sent the answer, or None. Stopping
one (SIGSTOP) keeps what would have woken it until it goes on; killing one ends it between any two of its steps.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from kvstore.testing.clock import VirtualClock

T = TypeVar("T")


class Broken(AssertionError):
    """An invariant does not hold. Says which, and where it was seen."""


@dataclass(slots=True)
class Wait(Generic[T]):
    """For `fulfil`, until a time. None: nobody answered by then."""

    deadline: int | None
    answer: T | None = None
    done: bool = False
    wake: Callable[[], None] | None = None

    def fulfil(self, answer: T | None) -> None:
        if not self.done:
            self.done, self.answer = True, answer
            if self.wake is not None:
                self.wake()


Steps = Generator["int | Wait[object]", object, None]


class World:
    """`trace` holds the last `trace_max` lines of what happened."""

    def __init__(self, seed: int, trace_max: int = 400) -> None:
        self.clock = VirtualClock()
        self.rng = random.Random(seed)
        self.events = 0
        self.jumped_ns = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._made = 0
        self._trace: list[str] = []
        self._trace_max = trace_max

    @property
    def now(self) -> int:
        return self.clock.now_ns()

    def note(self, who: str, what: str) -> None:
        self._trace.append(f"{self.now:>9} {who:<6} {what}")
        if len(self._trace) > 2 * self._trace_max:
            del self._trace[: self._trace_max]

    def trace(self) -> list[str]:
        return self._trace[-self._trace_max :]

    def at(self, when: int, call: Callable[[], None]) -> None:
        self._made += 1
        heapq.heappush(self._heap, (when, self._made, call))

    def after(self, delay: int, call: Callable[[], None]) -> None:
        self.at(self.now + delay, call)

    def jump(self, by: int) -> None:
        """The machine slept: every clock reading is `by` later, and what was due is late."""
        self.jumped_ns += by
        self.clock.advance_ns(by)

    def run(self, events_max: int, after_each: Callable[[], None]) -> None:
        """Until nothing is left to happen. Broken if that takes more than `events_max` events."""
        heap, clock, pop = self._heap, self.clock, heapq.heappop
        while heap:
            self.events += 1
            if self.events > events_max:
                raise Broken(f"hang: no end after {events_max} events")
            when, _, call = pop(heap)
            if when > clock.now_ns():
                clock.advance_to_ns(when)
            call()
            after_each()


@dataclass(slots=True)
class Process:
    """`stopped_ns`: how long it has been stopped in all."""

    world: World
    name: str
    steps: Steps
    alive: bool = True
    finished: bool = False
    stopped: bool = False
    stopped_ns: int = 0
    _stopped_at: int = 0
    _kept: list[Callable[[], None]] = field(default_factory=list)
    _step: int = 0

    def start(self) -> None:
        self._go(None)

    def kill(self) -> None:
        self.alive = False
        self.steps.close()
        self._kept.clear()

    def stop(self) -> None:
        if not self.stopped:
            self.stopped, self._stopped_at = True, self.world.now

    def wake(self) -> None:
        if not self.stopped:
            return
        self.stopped = False
        self.stopped_ns += self.world.now - self._stopped_at
        kept, self._kept = self._kept, []
        for resume in kept:
            resume()

    @property
    def running(self) -> bool:
        return self.alive and not self.finished

    def deliver(self, call: Callable[[], None]) -> None:
        """What its threads do beside its steps: now, or when it goes on after a stop; never once it has ended."""
        if self.running and self.stopped:
            self._kept.append(lambda: self.deliver(call))
        elif self.running:
            call()

    def _resume(self, step: int, value: Callable[[], object]) -> None:
        if not self.running or step != self._step:
            return
        if self.stopped:
            self._kept.append(lambda: self._resume(step, value))
        else:
            self._go(value())

    def _go(self, value: object) -> None:
        self._step += 1
        step = self._step
        try:
            wanted = self.steps.send(value)
        except StopIteration:
            self.finished = True
            return
        if isinstance(wanted, int):
            self.world.after(wanted, lambda: self._resume(step, _nothing))
            return
        wait = wanted

        def settle() -> None:
            self._resume(step, lambda: wait.answer)

        if wait.done:
            self.world.after(0, settle)
            return
        wait.wake = settle
        if wait.deadline is not None:
            self.world.at(wait.deadline, lambda: wait.fulfil(None))


def _nothing() -> object:
    return None
