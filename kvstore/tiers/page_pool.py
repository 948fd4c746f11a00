"""Pages for headers and for the ends of payloads that do not fill a page: aligned, touched, used again."""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from typing import Final

PAGE_BYTES: Final = 4096


class PagePool:
    """At most `pages` are out at once; whoever asks for more waits, in order. Lives on one event loop."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.memory = memoryview(mmap.mmap(-1, pages * PAGE_BYTES))
        self._free = [self.memory[i * PAGE_BYTES : (i + 1) * PAGE_BYTES] for i in range(pages)]
        self._waiting: deque[tuple[int, asyncio.Future[list[memoryview]]]] = deque()

    async def take(self, count: int) -> list[memoryview]:
        """All of them at once, so that nobody waits for a page while holding one."""
        if count > self.pages:
            raise ValueError(f"count: {count} pages of a pool of {self.pages}")
        if not self._waiting and count <= len(self._free):
            return self._cut(count)
        turn: asyncio.Future[list[memoryview]] = asyncio.get_running_loop().create_future()
        self._waiting.append((count, turn))
        try:
            pages = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give(turn.result())  # handed over and cancelled in the same turn of the loop
            else:
                turn.cancel()
                self._hand_over()
            raise
        return pages

    def give(self, pages: list[memoryview]) -> None:
        self._free.extend(pages)
        self._hand_over()

    def _cut(self, count: int) -> list[memoryview]:
        left = len(self._free) - count
        taken = self._free[left:]
        del self._free[left:]
        return taken

    def _hand_over(self) -> None:
        while self._waiting:
            count, turn = self._waiting[0]
            if not turn.cancelled():
                if count > len(self._free):
                    return
                turn.set_result(self._cut(count))
            self._waiting.popleft()
