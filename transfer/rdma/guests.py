"""Connections that came in, and the way back over them.

A node pulls what a client puts: it asks over the connection that the client made, and the client needs no listener.
"""

from __future__ import annotations

import asyncio
import socket
import weakref
from typing import TYPE_CHECKING

from transfer.errors import PeerUnreachable
from transfer.rdma.control import Control
from transfer.rdma.endpoint import RdmaEndpoint
from transfer.rdma.frames import FrameInvalid
from transfer.rdma.link import Link

if TYPE_CHECKING:
    from transfer.rdma.transport import RdmaTransport

__all__ = ["Guests"]


class Guests:
    """Of one transport."""

    def __init__(self, host: RdmaTransport) -> None:
        self._host = host
        self._greeting: set[asyncio.Task[None]] = set()
        self._links: dict[Link, None] = {}
        self._back: dict[bytes, RdmaEndpoint] = {}
        self._opening: weakref.WeakValueDictionary[bytes, asyncio.Lock] = weakref.WeakValueDictionary()
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._greeting) + len(self._links)

    def came(self, sock: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._greet(sock))
        self._greeting.add(task)
        task.add_done_callback(self._greeting.discard)

    async def _greet(self, sock: socket.socket) -> None:
        control: Control | None = None
        link: Link | None = None
        why = "this side has closed"
        try:
            async with asyncio.timeout(self._host.config.greeting_s):
                control = await Control.accepted(sock, self._host.config.keepalive_s, self._host.accepting_tls)
                theirs = await control.greeted(await self._host.hello())
            link = self._host.linked(control, theirs)
        except (PeerUnreachable, FrameInvalid, OSError, TimeoutError) as error:
            why = str(error) or "no greeting in time"
        finally:
            if control is None:
                sock.close()
            elif link is None:
                control.lose(why)
        if link is not None:
            self._links[link] = None
            self._changed.set()
            back = self._back.get(link.theirs.incarnation)
            if back is not None:
                back.look_again()

    def gone(self, link: Link) -> None:
        self._links.pop(link, None)

    async def _next_link(self, incarnation: bytes) -> Link:
        """One over which that peer can be asked. Waits for it."""
        while True:
            for link in reversed(self._links):
                if link.theirs.incarnation == incarnation and link.lanes is None and link.control.version > 1:
                    return link
            self._changed.clear()
            await self._changed.wait()

    async def back(self, incarnation: bytes, deadline_s: float) -> RdmaEndpoint:
        """See RdmaTransport.back."""
        try:
            async with asyncio.timeout(deadline_s), self._opening.setdefault(incarnation, asyncio.Lock()):
                endpoint = self._back.get(incarnation)
                if endpoint is None or endpoint.closing:
                    endpoint = await self._opened(incarnation)
                await endpoint.reachable()
                return endpoint
        except TimeoutError:
            raise PeerUnreachable("no connection of that peer is open") from None

    async def _opened(self, incarnation: bytes) -> RdmaEndpoint:
        endpoint = RdmaEndpoint(self._host, lambda: self._next_link(incarnation), incarnation, closes_links=False)
        try:
            await endpoint.open()
        except BaseException:
            await endpoint.close()
            raise
        self._back[incarnation] = endpoint
        return endpoint

    def left(self, endpoint: RdmaEndpoint) -> None:
        """The way back is closed; the peer's connections stay the peer's."""
        if self._back.get(endpoint.incarnation) is endpoint:
            del self._back[endpoint.incarnation]

    async def close(self) -> None:
        for task in list(self._greeting):
            task.cancel()
        await asyncio.gather(*self._greeting, return_exceptions=True)
