"""Wakes those who wait for events: one look at the ring for all of them, and none while nobody waits.

The ring is native and wakes nobody: what fills it are the hot verbs, which would have to pay for a system call at
every seal, for readers that are hardly ever there. So it is looked at every TURN_S, as long as somebody waits; news is
so much late at most.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["News"]

TURN_S: Final = 0.02


class News:
    """Lives on one event loop. `sequence`: of the latest event."""

    def __init__(self, sequence: Callable[[], int]) -> None:
        self._sequence = sequence
        self._waiting: set[asyncio.Future[None]] = set()
        self._seen = 0  # when last looked
        self._turn: asyncio.TimerHandle | None = None

    async def after(self, sequence: int, within_s: float | None = None) -> None:
        """Returns when there is an event later than `sequence`, or `within_s` have passed; now and then too early."""
        now = self._sequence()
        if now > sequence:
            await asyncio.sleep(0)  # who is far behind does not keep the loop from everybody else
            return
        loop = asyncio.get_running_loop()
        told: asyncio.Future[None] = loop.create_future()
        self._waiting.add(told)
        if self._turn is None:
            self._seen = now
            self._turn = loop.call_later(TURN_S, self._look, loop)
        try:
            await asyncio.wait((told,), timeout=within_s)
        finally:
            self._waiting.discard(told)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._turn = None
        if not self._waiting:
            return
        now = self._sequence()
        if now > self._seen:
            waiting, self._waiting = self._waiting, set()
            for told in waiting:
                told.set_result(None)
        else:
            self._turn = loop.call_later(TURN_S, self._look, loop)
