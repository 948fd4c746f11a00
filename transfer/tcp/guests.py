"""Connections that came in: how long each may take to say who it is, and the way back to those who did.

A node pulls what a client puts: it asks over the connections that the client made, and the client needs no listener.

Rules
- There is one way back a peer, until it is closed. One whose last connection has ended is closed `reconnect_s` later,
  if none has come by then; whoever asks again has a new one.
- There are at most `connections_max` of them: beyond that, those without a connection go at once, the oldest first.
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
        self._lanes: dict[bytes, dict[int, None]] = {}  # connections by incarnation
        self._back: dict[bytes, TcpEndpoint] = {}
        self._deserted: dict[bytes, asyncio.TimerHandle] = {}  # ways back without a connection, the longest so first
        self._closing: set[asyncio.Task[None]] = set()
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
        self._lanes.setdefault(incarnation, {})[connection] = None
        self._changed.set()
        back = self._back.get(incarnation)
        if back is not None:
            self._join(back, connection)
        return True

    def gone(self, connection: int) -> None:
        timer = self._greeting.pop(connection, None)
        if timer is not None:
            timer.cancel()
        incarnation = self._known.pop(connection, b"")
        lanes = self._lanes.get(incarnation, {})
        lanes.pop(connection, None)
        back = self._back.get(incarnation)
        if back is not None:
            back.lane_lost(connection)
        if not lanes:
            self._lanes.pop(incarnation, None)
            if back is not None and not back.closing:
                wait_s = self._host.config.reconnect_s
                self._deserted[incarnation] = asyncio.get_running_loop().call_later(wait_s, self._retire, incarnation)

    async def back(self, incarnation: bytes, deadline_s: float) -> TcpEndpoint:
        """See TcpTransport.back."""
        try:
            async with asyncio.timeout(deadline_s):
                while incarnation not in self._lanes:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise PeerUnreachable("no connection of that peer is open") from None
        endpoint = self._back.get(incarnation)
        if endpoint is None or endpoint.closing:
            if len(self._back) >= self._host.config.connections_max and self._deserted:
                self._retire(next(iter(self._deserted)))
            endpoint = self._back[incarnation] = TcpEndpoint(self._host, None, incarnation)
            for connection in self._lanes[incarnation]:
                self._join(endpoint, connection)
        return endpoint

    def _retire(self, incarnation: bytes) -> None:
        self._deserted.pop(incarnation).cancel()
        task = asyncio.get_running_loop().create_task(self._back.pop(incarnation).close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def left(self, endpoint: TcpEndpoint) -> None:
        """The way back is closed; the peer's connections stay the peer's."""
        if self._back.get(endpoint.incarnation) is endpoint:
            del self._back[endpoint.incarnation]
            self._wanted(endpoint.incarnation)
            for connection in self._lanes.get(endpoint.incarnation, {}):
                self._host.engine.set_peer(connection, 0)

    def close(self) -> None:
        for timer in (*self._greeting.values(), *self._deserted.values()):
            timer.cancel()

    def _wanted(self, incarnation: bytes) -> None:
        """It is no deserted one, or none any more."""
        timer = self._deserted.pop(incarnation, None)
        if timer is not None:
            timer.cancel()

    def _join(self, endpoint: TcpEndpoint, connection: int) -> None:
        self._wanted(endpoint.incarnation)
        self._host.engine.set_peer(connection, endpoint.peer)
        endpoint.lane_came(connection)
