"""What nodes tell each other of clears: at once to all that live, and page by page where two find that they differ.

- A clear is told to all at once and waits for none longer than TELL_S. Whoever did not answer learns of it by pings:
  answers carry a hash of what is known, and a node counts as living only once the two know the same.
- What was told is in force where it came at once, and on disk there before it is answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvstore.directory.generations import FIRST, Page, after
from kvstore.errors import KvStoreError, Unavailable
from kvstore.wire import generations as wire
from kvstore.wire import store

if TYPE_CHECKING:
    from kvstore.node.namespaces import Namespaces
    from kvstore.node.peers import Peers

__all__ = ["TELL_S", "Clearing", "Doubt"]

log = logging.getLogger(__name__)

TELL_S: Final = 1.0  # for a node to answer that it knows of a clear
DOUBT_S_MAX: Final = 5.0  # that a call waits until this node knows which generations are in force


@dataclass(frozen=True, slots=True)
class Clearing:
    """On the node's event loop."""

    namespaces: Namespaces
    peers: Peers

    @property
    def hash(self) -> int:
        return self.namespaces.generations.hash

    def handle(self, body: bytes) -> bytes:
        """What another node tells. Raises ValueError naming the field, Unavailable."""
        told = wire.page_of(body)
        try:
            if self.namespaces.merge(told.rows):
                log.info("told of clears by another node")
        except Unavailable:
            if told.first == told.last:  # whoever clears counts on those that answer
                raise
        return wire.answer_bytes(self.namespaces.generations.answer(told))

    def settle(self) -> None:
        """What was told while the disk did not take it: nobody tells it again, and a restart would forget it."""
        with contextlib.suppress(Unavailable):  # said in the log
            self.namespaces.settle()

    async def agree(self, address: str, deadline_s: float) -> None:
        """What each knows, the other knows afterwards. Raises KvStoreError, ValueError."""
        until, first = time.monotonic() + deadline_s, FIRST
        while True:
            page = self.namespaces.generations.page(first)
            answer = await self._ask(address, page, until - time.monotonic())
            following = after(answer.last)
            if following is None:
                return
            first = following

    async def tell(self, origin: bytes, addresses: Iterable[str]) -> set[str]:
        """A clear of a moment ago: which of these nodes know of it, and have it on disk."""
        page, those = self.namespaces.generations.one(origin), sorted(addresses)
        told = await asyncio.gather(*(self._tell(address, page) for address in those))
        return {address for address, knows in zip(those, told, strict=True) if knows}

    async def _tell(self, address: str, page: Page) -> bool:
        try:
            await self._ask(address, page, TELL_S)
        except (KvStoreError, ValueError) as error:
            log.warning("%s: not told of a clear yet: %s", address, error)
            return False
        return True

    async def _ask(self, address: str, page: Page, deadline_s: float) -> Page:
        """Told and asked of the page's namespaces; what comes back is in force."""
        body = await self.peers.call(
            address, store.METHOD_PEER_GENERATIONS, wire.page_bytes(page), max(0.001, deadline_s)
        )
        answer = wire.answer_of(page, body)
        with contextlib.suppress(Unavailable):  # it holds; that it is not on disk was said in the log
            self.namespaces.merge(answer.rows)
        return answer


class Doubt:
    """Whether this node may be behind in what was cleared: from its start, and from a pause, until it has met others or
    knows that there are none. What names a namespace waits meanwhile. raised: told of each pause.
    """

    def __init__(self) -> None:
        self._sure = asyncio.Event()
        self.raised: Callable[[], object] = lambda: None

    def raise_(self) -> None:
        if self._sure.is_set():
            self._sure.clear()
            self.raised()

    def end(self) -> None:
        self._sure.set()

    async def over(self) -> None:
        """Raises Unavailable."""
        try:
            async with asyncio.timeout(DOUBT_S_MAX):
                await self._sure.wait()
        except TimeoutError:
            raise Unavailable("this node does not know yet what other nodes have cleared; ask again") from None
