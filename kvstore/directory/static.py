"""A cluster that is a list of addresses, the same at every node. The list never changes; who of it lives, pings say.

Settings are compared with every node that answers when this one joins; the first of all has nobody to ask, and is met
by those that come after it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Final

from kvstore.directory.agreement import Settings
from kvstore.directory.base import Discovery, Greet, Member, View, duplicate
from kvstore.errors import Misconfigured, Unavailable

__all__ = ["StaticList"]

log = logging.getLogger(__name__)

GREETINGS_AT_ONCE: Final = 16


class StaticList:
    """addresses: HOST:PORT of framed doors; this node's own may be among them."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(dict.fromkeys(addresses))
        self.view = View()
        self.discovery = Discovery("static")

    async def join(self, me: Member, settings: Settings, greet: Greet) -> None:  # noqa: ARG002 - greet compares
        others = tuple(address for address in self._addresses if address != me.address)
        turn = asyncio.Semaphore(GREETINGS_AT_ONCE)

        async def meet(address: str) -> bool:
            async with turn:
                try:
                    found = await greet(address)
                except Unavailable as error:
                    log.info("%s: not there yet: %s", address, error)
                    return False
            if found.id == me.id and found.incarnation != me.incarnation:
                raise Misconfigured(duplicate(me.id, me.address, address))
            return True

        met = await asyncio.gather(*(meet(address) for address in others), return_exceptions=True)
        for one in met:
            if isinstance(one, BaseException):
                raise one
        log.info("%d of %d other nodes of the list are there", sum(1 for one in met if one is True), len(others))
        self.view = View(tuple(Member(address) for address in others), 1)

    async def changed(self, epoch: int) -> View:
        if epoch == self.view.epoch:
            await asyncio.Event().wait()  # for ever: the list is the list
        return self.view

    async def leave(self) -> None:
        """Nothing to take back."""
