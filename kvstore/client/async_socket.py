"""The framed socket on an event loop: steps are submitted to the session and completed through its eventfd.

Bytes move on the session's own threads. Cancelling is safe: a step ends only when nothing touches the caller's memory
any more.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from functools import partial

from kvstore import native
from kvstore.client.away import AwayAsync
from kvstore.client.calls import Asked, Line, Times, as_call, body_of, by_transfers, own_loop, report, told
from kvstore.client.socket import DONE, GONE, NOT_OPEN, SocketChannel, as_told, place
from kvstore.client.space import Space
from kvstore.client.steps import Answer, Limits, Reopen, Reopened, Report, Reserve, Step, Taken
from kvstore.client.views import LentSlots
from kvstore.errors import KvStoreError
from kvstore.quiet import quietly
from kvstore.wire import store


class AsyncSocketChannel:
    """Submitted calls of the live session, on one event loop."""

    def __init__(self, connections: SocketChannel, away: AwayAsync) -> None:
        self._connections = connections
        self._away = away
        self._tokens = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[native.Result]] = {}
        self._watched: Line | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def current(self) -> Line | None:
        """The live session whose completions are watched, if there is one."""
        line = self._connections.current
        return line if line is self._watched else None

    async def line(self, deadline: float) -> Line:
        """The live session, its completions watched. Connecting may wait for a stopped node, so a thread does it."""
        self._connections.check()
        line = self._connections.current
        if line is None:
            line = await asyncio.to_thread(self._connections.connect, deadline)
        self._watch(line)
        return line

    async def limits(self, deadline: float) -> Limits:
        """Of the node at the other end; connects if need be."""
        return (await self.line(deadline)).limits

    def _watch(self, line: Line) -> None:
        if line is self._watched:
            return
        self._loop = loop = own_loop(self._loop)
        self._unwatch()
        self._watched = line
        loop.add_reader(line.session.completion_fd, self._complete, line)

    def _unwatch(self) -> None:
        line, self._watched = self._watched, None
        if line is not None and self._loop is not None:
            self._loop.remove_reader(line.session.completion_fd)
            self._complete(line)

    def _complete(self, line: Line) -> None:
        for result in line.session.take_completions():
            future = self._waiting.pop(result.token, None)
            if future is not None and not future.done():
                future.set_result(result)

    async def perform(self, space: Space, step: Step, times: Times) -> Answer:
        if isinstance(step, Reopen):
            return await self._reopen(space, times)
        line = self._connections.current
        if line is None or line is not self._watched:
            return GONE
        handle = space.handle_on(line)
        if handle is None:
            return NOT_OPEN
        if isinstance(step, Report):
            report(line, handle, step, times.elapsed())
            label = line.untold(step)
            if label is not None:  # whatever is answered: without it the family goes by its number
                await self._wait(line, "submit_call", (store.METHOD_LABEL, label, times.left()))
            return DONE
        return await self._asked(line, handle, space, step, times)

    async def _asked(self, line: Line, handle: int, space: Space, step: Asked, times: Times) -> Answer:
        if by_transfers(step, line):
            return await self._away.perform(line, space, step, times, partial(self._call_on, line))
        name, arguments = as_call(line, handle, step, times)
        if isinstance(step, Reserve):
            reserve: Callable[..., native.Reservation] = line.session.reserve
            answer = told(line, step, await asyncio.to_thread(reserve, *arguments), space.shard_bytes)
            if isinstance(answer, Taken) and isinstance(answer.held, LentSlots):
                answer.held.filler = self._away.filler(line, space, step.shard)
            return answer
        return told(line, step, await self._wait(line, "submit_" + name, arguments), space.shard_bytes)

    async def _wait(self, line: Line, name: str, arguments: tuple[object, ...]) -> native.Result:
        assert self._loop is not None
        token, future = next(self._tokens), self._loop.create_future()
        self._waiting[token] = future
        getattr(line.session, name)(token, *arguments)
        try:
            return await quietly(future, lambda: line.session.cancel(token))
        except asyncio.CancelledError:
            if not future.cancelled() and future.result().hold:
                line.session.release([future.result().hold])
            raise

    async def _call_on(self, line: Line, method: int, body: bytes, left_s: float) -> native.Result:
        return await self._wait(line, "submit_call", (method, body, left_s))

    async def call(self, method: int, body: bytes, times: Times) -> bytes:
        """A rare verb. Raises what its answer says."""
        line = await self.line(times.deadline)
        return body_of(await self._wait(line, "submit_call", (method, body, times.left())))

    async def open(self, space: Space, times: Times) -> bool:
        line = await self.line(times.deadline)
        result = await self._wait(line, "submit_call", (store.METHOD_OPEN_NAMESPACE, space.request, times.left()))
        return place(space, line, store.OpenNamespaceResponse.FromString(body_of(result)))

    async def _reopen(self, space: Space, times: Times) -> Answer:
        try:
            return Reopened(same=await self.open(space, times))
        except KvStoreError as error:
            return as_told(error)

    async def close(self) -> None:
        """Waits, off the loop, for copies under way. Calls in flight end Unavailable."""
        line, self._watched = self._watched, None
        if line is not None and self._loop is not None:
            self._loop.remove_reader(line.session.completion_fd)
        await asyncio.to_thread(self._connections.close)
        await self._away.close()
        if line is not None:
            self._complete(line)
        gone, self._waiting = self._waiting, {}
        for future in gone.values():
            future.cancel()
