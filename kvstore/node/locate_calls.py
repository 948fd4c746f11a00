"""The messages of one lookup among homes: all under way at once, and each answer taken as it comes.

One future a message and one for the whole, and no task: of a lookup that asks several homes, waking tasks was a good
part of the cost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from kvstore.directory.messages import Locate, LocateAnswer
from kvstore.errors import KvStoreError
from kvstore.wire import claims as wire

if TYPE_CHECKING:
    from kvstore.clock import Clock
    from kvstore.directory.locating import Locating

__all__ = ["LocateCalls"]

log = logging.getLogger(__name__)

Asked = list[tuple[bytes, Locate]]
Begin = Callable[[bytes, Locate, float], "asyncio.Future[bytes] | LocateAnswer | None"]


class LocateCalls:
    """begin: sends a message, within a time in seconds; `me`, this node, answers at once; None: there is nobody to
    ask. unanswered: messages that came to nothing.
    """

    def __init__(self, locating: Locating, me: bytes, begin: Begin, clock: Clock) -> None:
        self._locating, self._me, self._begin, self._clock = locating, me, begin, clock
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._under_way: set[asyncio.Future[bytes]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.unanswered = 0

    async def over(self) -> None:
        """Returns when the lookup is done, or has had its time."""
        try:
            self._send(self._locating.start())
            if not self._ended.done():
                self._wait()
                await self._ended
        finally:
            if self._timer is not None:
                self._timer.cancel()
            for future in self._under_way:
                future.cancel()

    def _send(self, asked: Asked) -> None:
        # Taken from its end, so this node's own comes last: others work on theirs meanwhile.
        asked = sorted(asked, key=lambda one: one[0] != self._me)
        while asked:
            to, message = asked.pop()
            left_s = max(0.001, (self._locating.ends_at - self._clock.now_ns()) / 1e9)
            begun = self._begin(to, message, left_s)
            if isinstance(begun, asyncio.Future):
                self._under_way.add(begun)
                begun.add_done_callback(partial(self._came, message))
                continue
            self.unanswered += begun is None
            asked += self._locating.answered(message, begun)
        if self._locating.done or not self._under_way:
            self._end()

    def _came(self, message: Locate, future: asyncio.Future[bytes]) -> None:
        self._under_way.discard(future)
        if future.cancelled():
            return
        if self._ended.done():
            future.exception()  # looked at: it is of no use any more, and asyncio would log it
            return
        answer: LocateAnswer | None = None
        try:
            told = wire.answer_of(message, future.result())
            answer = told if isinstance(told, LocateAnswer) else None
        except (KvStoreError, ValueError) as error:  # pings will tell whether it lives
            log.debug("a home was asked: %s", error)
        except Exception as error:  # ours
            self._ended.set_exception(error)
            return
        self.unanswered += answer is None
        self._send(self._locating.answered(message, answer))

    def _wait(self) -> None:
        """Until the time to hedge, then until the end."""
        now, locating = self._clock.now_ns(), self._locating
        until = locating.hedge_at if now < locating.hedge_at else locating.ends_at
        self._timer = self._loop.call_later(max(0.0, (until - now) / 1e9), self._late)

    def _late(self) -> None:
        self._send(self._locating.timer(self._clock.now_ns()))
        if not self._ended.done():
            self._wait()

    def _end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)
