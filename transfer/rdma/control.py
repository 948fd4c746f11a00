"""The control connection: framed messages over TCP, questions with their answers.

Rules
- A peer that breaks the protocol, or greets too late, costs its own connection and nothing else.
- At most QUESTIONS_MAX of ours are out at once; an answer that nobody waits for any more is dropped.
- Who was connected to greets second, and from then on speaks the version of who connected.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl

from transfer.errors import PeerUnreachable
from transfer.rdma.frames import HEAD_BYTES, VERSION, Hello, Message, parse_body, parse_head, to_frame
from transfer.rdma.sealing import SHUTDOWN_S
from transfer.sockets import tune

__all__ = ["QUESTIONS_MAX", "Control"]

QUESTIONS_MAX = 64
_BUFFER_BYTES = 1 << 18


class Control:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._requests = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._room = asyncio.Semaphore(QUESTIONS_MAX)
        self._lost = ""
        self.version = VERSION

    @classmethod
    async def connected(
        cls, sock: socket.socket, keepalive_s: float, tls: ssl.SSLContext | None = None, host: str = ""
    ) -> Control:
        """Takes the socket over, which we connected to that host. Raises OSError."""
        tune(sock, keepalive_s)
        sealed = tls is not None
        reader, writer = await asyncio.open_connection(
            sock=sock,
            limit=_BUFFER_BYTES,
            ssl=tls,
            server_hostname=host if sealed else None,
            ssl_shutdown_timeout=SHUTDOWN_S if sealed else None,
        )
        return cls(reader, writer)

    @classmethod
    async def accepted(cls, sock: socket.socket, keepalive_s: float, tls: ssl.SSLContext | None = None) -> Control:
        """Takes the socket over, which came in. Raises OSError."""
        tune(sock, keepalive_s)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_BUFFER_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        shutdown_s = SHUTDOWN_S if tls is not None else None
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, sock, ssl=tls, ssl_shutdown_timeout=shutdown_s
        )
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    async def greet(self, mine: Hello) -> Hello:
        """Whom we connected to. Raises FrameInvalid, PeerUnreachable; OSError."""
        self.tell(mine)
        return await self._hello()

    async def greeted(self, mine: Hello) -> Hello:
        """Who connected. Raises as `greet` does."""
        theirs = await self._hello()
        self.tell(mine)
        return theirs

    async def _hello(self) -> Hello:
        try:
            told, _ = await self.next()
        except PeerUnreachable as error:  # also: it does not believe our certificate
            raise PeerUnreachable(f"{error} before the peer said who it is") from error
        if not isinstance(told, Hello):
            raise PeerUnreachable("the peer did not say who it is")
        return told

    async def next(self) -> tuple[Message, int]:
        """The next message that comes in. Raises FrameInvalid; PeerUnreachable at the connection's end."""
        try:
            head = parse_head(await self._reader.readexactly(HEAD_BYTES))
            self.version = min(self.version, head.version)
            return parse_body(head.kind, await self._reader.readexactly(head.size)), head.request
        except asyncio.IncompleteReadError as error:
            raise PeerUnreachable("the connection has ended") from error
        except OSError as error:  # TLS tells here, too, that the peer does not believe us
            raise PeerUnreachable(f"the connection has ended: {error.strerror or error}") from error

    def tell(self, message: Message, request: int = 0) -> None:
        if not self._lost:
            self._writer.write(to_frame(message, request, self.version))

    async def drain(self) -> None:
        with contextlib.suppress(OSError):
            await self._writer.drain()

    async def ask(self, message: Message, limit_s: float) -> Message:
        """Raises PeerUnreachable. Somebody else must read `next` and hand answers to `answered`."""
        try:
            async with asyncio.timeout(limit_s):
                return await self._asked(message)
        except TimeoutError as error:
            raise PeerUnreachable("the peer did not answer in time") from error

    async def _asked(self, message: Message) -> Message:
        await self._room.acquire()  # until the answer is there, whoever still waits for it
        if self._lost:
            self._room.release()
            raise PeerUnreachable(self._lost)
        request = next(self._requests) & 0xFFFF_FFFF
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[request] = answer
        self.tell(message, request)
        return await answer

    def answered(self, message: Message, request: int) -> None:
        answer = self._waiting.pop(request, None)
        if answer is None:
            return
        self._room.release()
        if not answer.done():
            answer.set_result(message)

    def lose(self, why: str) -> None:
        """The connection is of no more use: nobody waits for an answer."""
        self._lost = self._lost or why
        for answer in self._waiting.values():
            self._room.release()
            if not answer.done():
                answer.set_exception(PeerUnreachable(why))
        self._waiting.clear()
        self._writer.close()
