"""Connections that came in: how long each may take to say who it is, and the way back to those who did.

A node pulls what a client puts: it asks over the connections that the client made, and the client needs no listener.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from transfer.errors import PeerUnreachable
from transfer.tcp.endpoint import TcpEndpoint

if TYPE_CHECKING:
    from transfer.tcp.transport import TcpTransport

__all__ = ["Guests"]


class Guests:
    """Of one transport, by connection."""

    def __init__(self, host: TcpTransport) -> None:
        self._host = host
        self._greeting: dict[int, asyncio.TimerHandle] = {}
        self._known: dict[int, bytes] = {}  # incarnations
        self._back: dict[bytes, TcpEndpoint] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._greeting) + len(self._known)

    def came(self, connection: int) -> None:
        engine, limit = self._host.engine, self._host.config.greeting_s
        self._greeting[connection] = asyncio.get_running_loop().call_later(limit, engine.drop, connection)

    def greeted(self, connection: int, incarnation: bytes) -> bool:
        """Whether it is one of these."""
        timer = self._greeting.pop(connection, None)
        if timer is None:
            return False
        timer.cancel()
        self._known[connection] = incarnation
        self._changed.set()
        back = self._back.get(incarnation)
        if back is not None:
            self._join(back, connection)
        return True

    def gone(self, connection: int) -> None:
        timer = self._greeting.pop(connection, None)
        if timer is not None:
            timer.cancel()
        back = self._back.get(self._known.pop(connection, b""))
        if back is not None:
            back.lane_lost(connection)

    async def back(self, incarnation: bytes, deadline_s: float) -> TcpEndpoint:
        """See TcpTransport.back."""
        try:
            async with asyncio.timeout(deadline_s):
                while incarnation not in self._known.values():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise PeerUnreachable("no connection of that peer is open") from None
        endpoint = self._back.get(incarnation)
        if endpoint is None or endpoint.closing:
            lanes = [connection for connection, known in self._known.items() if known == incarnation]
            endpoint = self._back[incarnation] = TcpEndpoint(self._host, None, incarnation)
            for connection in lanes:
                self._join(endpoint, connection)
        return endpoint

    def left(self, endpoint: TcpEndpoint) -> None:
        """The way back is closed; the peer's connections stay the peer's."""
        if self._back.get(endpoint.incarnation) is endpoint:
            del self._back[endpoint.incarnation]
            for connection, incarnation in self._known.items():
                if incarnation == endpoint.incarnation:
                    self._host.engine.set_peer(connection, 0)

    def close(self) -> None:
        for timer in self._greeting.values():
            timer.cancel()

    def _join(self, endpoint: TcpEndpoint, connection: int) -> None:
        self._host.engine.set_peer(connection, endpoint.peer)
        endpoint.lane_came(connection)
