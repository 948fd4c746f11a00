"""The control connection: framed messages over TCP, questions with their answers.

Rules
- A peer that breaks the protocol, or greets too late, costs its own connection and nothing else.
- Questions are bounded by who asks; an answer that nobody waits for any more is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket

from transfer.errors import PeerUnreachable
from transfer.rdma.frames import HEAD_BYTES, Hello, Message, parse_body, parse_head, to_frame
from transfer.sockets import tune

__all__ = ["Control"]

_BUFFER_BYTES = 1 << 18


class Control:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._lost = ""

    @classmethod
    async def over(cls, sock: socket.socket, keepalive_s: float) -> Control:
        """Takes the connected socket over."""
        tune(sock, keepalive_s)
        return cls(*await asyncio.open_connection(sock=sock, limit=_BUFFER_BYTES))

    async def greet(self, mine: Hello) -> Hello:
        """Raises FrameInvalid, PeerUnreachable; OSError."""
        self.tell(mine)
        told, _ = await self.next()
        if not isinstance(told, Hello):
            raise PeerUnreachable("the peer did not say who it is")
        return told

    async def next(self) -> tuple[Message, int]:
        """The next message that comes in. Raises FrameInvalid; PeerUnreachable at the connection's end."""
        try:
            kind, request, size = parse_head(await self._reader.readexactly(HEAD_BYTES))
            return parse_body(kind, await self._reader.readexactly(size)), request
        except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
            raise PeerUnreachable("the connection has ended") from error

    def tell(self, message: Message, request: int = 0) -> None:
        if not self._lost:
            self._writer.write(to_frame(message, request))

    async def drain(self) -> None:
        with contextlib.suppress(ConnectionError):
            await self._writer.drain()

    async def ask(self, message: Message, limit_s: float) -> Message:
        """Raises PeerUnreachable. Somebody else must read `next` and hand answers to `answered`."""
        if self._lost:
            raise PeerUnreachable(self._lost)
        request = next(self._requests) & 0xFFFF_FFFF
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[request] = answer
        try:
            self.tell(message, request)
            async with asyncio.timeout(limit_s):
                return await answer
        except TimeoutError as error:
            raise PeerUnreachable("the peer did not answer in time") from error
        finally:
            self._waiting.pop(request, None)

    def answered(self, message: Message, request: int) -> None:
        answer = self._waiting.get(request)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def lose(self, why: str) -> None:
        """The connection is of no more use: nobody waits for an answer."""
        self._lost = self._lost or why
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(PeerUnreachable(why))
        self._writer.close()
