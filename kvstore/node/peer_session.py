"""One connection to another node's framed door, on an event loop: calls in flight, each with its deadline.

The session is native, and the client's; its threads read and write, its eventfd says what has come.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import threading
import time
from concurrent.futures import Executor, Future
from functools import partial
from typing import Final

from kvstore import native
from kvstore.client.address import TcpAddress
from kvstore.client.calls import body_of
from kvstore.errors import KvStoreError, Rejected, Unavailable
from kvstore.wire import store

__all__ = ["CALLS_MAX", "NotLetIn", "NotListening", "PeerSession"]

CALLS_MAX: Final = 240  # under way; fewer than the door lets wait (door.py), so that there is room for what is VITAL
VITAL: Final = frozenset({store.METHOD_PEER_PING, store.METHOD_PEER_GENERATIONS})


class NotListening(Unavailable):
    """The machine answers, and refuses the connection: no process listens there."""


class NotLetIn(Unavailable):
    """The door does not know what was shown to it."""


class PeerSession:
    """From `open` to `close`."""

    def __init__(self, session: native.Session) -> None:
        self._session = session
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(session.completion_fd, self._complete)

    @staticmethod
    async def open(
        at: TcpAddress, token: bytes, tls: native.Tls | None, connect_s: float, executor: Executor
    ) -> PeerSession:
        """Raises NotListening, NotLetIn, Unavailable."""
        until = time.monotonic() + connect_s

        def connect() -> native.Session:
            left_s = max(0.001, until - time.monotonic())  # where many hosts are silent its turn comes late
            return native.Session("", token, left_s, 1, True, host=at.host, port=at.port, tls=tls)

        connecting = executor.submit(connect)
        try:
            session = await asyncio.wrap_future(connecting)
        except asyncio.CancelledError:  # one that has not begun never will
            connecting.add_done_callback(_let_go)
            raise
        except PermissionError as error:
            raise NotLetIn(f"{at}: {error}") from error
        except OSError as error:
            kind = NotListening if str(error).endswith(os.strerror(errno.ECONNREFUSED)) else Unavailable
            raise kind(f"{at}: {error}") from error
        except ValueError as error:  # another version of the frames
            raise Unavailable(f"{at}: {error}") from error
        return PeerSession(session)

    @property
    def closed(self) -> bool:
        return self._session.closed

    def _complete(self) -> None:
        for result in self._session.take_completions():
            future = self._waiting.pop(result.token, None)
            if future is None or future.done():
                continue
            try:
                future.set_result(body_of(result))
            except (KvStoreError, ValueError) as error:
                future.set_exception(error)

    def begin(self, method: int, body: bytes, deadline_s: float) -> asyncio.Future[bytes]:
        """What call() returns or raises, to come; cancelled, the call is given up. It may come a moment too late."""
        token, future = next(self._tokens), self._loop.create_future()
        if len(self._waiting) >= CALLS_MAX and method not in VITAL:
            reason = f"peer_calls_max: {CALLS_MAX} calls to that node are under way"
            future.set_exception(Rejected(reason, limit="peer_calls_max"))
            future.exception()  # looked at, as in _over
            return future
        self._waiting[token] = future
        future.add_done_callback(partial(self._over, token))
        self._session.submit_call(token, method, body, deadline_s)
        return future

    def _over(self, token: int, future: asyncio.Future[bytes]) -> None:
        if not future.cancelled():
            future.exception()  # looked at: whoever waited may have been cancelled meanwhile, and asyncio would log it
        elif self._waiting.pop(token, None) is not None:
            self._session.cancel(token)

    async def call(self, method: int, body: bytes, deadline_s: float) -> bytes:
        """Raises what the answer says: Unavailable where none comes in time, Rejected, ValueError."""
        return await self.begin(method, body, deadline_s)

    def close(self, executor: Executor) -> None:
        """Calls in flight end Unavailable. Its threads end beside the loop."""
        self._loop.remove_reader(self._session.completion_fd)
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Unavailable("peer: the connection was closed"))
        try:
            executor.submit(self._session.close)
        except RuntimeError:  # it has ended, and this connection was being made meanwhile
            threading.Thread(target=self._session.close, name="kvstore-peer-end").start()


def _let_go(connecting: Future[native.Session]) -> None:
    """Of a connection that nobody waits for any more, mostly in the thread that made it."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().close()
