"""Drives the steps of kvstore.client.moving for both faces: who waits where, and what a close waits for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kvstore.client.calls import times_of
from kvstore.client.conducts import Awaited, Beside, Called, Conduct, Movable, Mover, Run, drive, drive_async
from kvstore.client.loop_thread import LoopThread, run_on
from kvstore.client.moving import conduct_of
from kvstore.client.placing import placing
from kvstore.client.ways import Ways
from kvstore.quiet import quietly

if TYPE_CHECKING:
    from kvstore.client.buffers import Places
    from kvstore.client.calls import Line, Times
    from kvstore.client.space import Space
    from kvstore.client.steps import Answer, Reservation
    from kvstore.client.tls import Tls
    from kvstore.client.views import Filler
    from kvstore.config import TransferConfig
    from kvstore.native import Result

__all__ = ["Away", "AwayAsync"]

T = TypeVar("T")
CLOSE_S: Final = 30.0  # transports end what is under way well within it
Submit = Callable[[int, bytes, float], Awaitable["Result"]]


class Away:
    """Of a sync client: transports on a thread of their own, control in the calling thread."""

    def __init__(self, tls: Tls | None, config: TransferConfig, *, verify: bool) -> None:
        self._verify = verify
        self._thread = LoopThread("kvstore-transfers")
        self._ways = Ways(tls, config)
        self._changed = threading.Condition()
        self._under_way = 0
        self._used = False

    def perform(self, line: Line, space: Space, step: Movable, times: Times) -> Answer:
        mover = Mover(self._ways, line, self._verify)
        return self._run(mover, conduct_of(mover, space, step, times, partial(self._run, mover)), times.left)

    def _run(self, mover: Mover, conduct: Conduct[T], left: Callable[[], float]) -> T:
        with self._changed:
            self._under_way += 1
            self._used = True
        try:
            return drive(conduct, _caller(mover, left), self._wait)
        finally:
            with self._changed:
                self._under_way -= 1
                self._changed.notify_all()

    def filler(self, line: Line, space: Space, shard: int) -> Filler:
        """For slots of this line's segment: fills parts of them from device memory, in the calling thread."""
        mover = Mover(self._ways, line, self._verify)
        return partial(_fill, mover, partial(self._run, mover), space.part_bytes[shard])

    def _wait(self, asked: Awaited | Beside) -> Any:
        told = asked.at_once() if isinstance(asked, Awaited) and asked.at_once is not None else None
        return told if told is not None else _here(self._thread.loop, asked)

    def close(self) -> None:
        """After the session has ended. Waits for what still touches callers' memory."""
        if not self._used:
            return
        run_on(self._thread.loop, self._ways.close, whole=True)
        with self._changed:
            self._changed.wait_for(lambda: self._under_way == 0, CLOSE_S)
        self._thread.close()


class AwayAsync:
    """Of an async client: transports on its own event loop."""

    def __init__(self, tls: Tls | None, config: TransferConfig, *, verify: bool) -> None:
        self._verify = verify
        self._ways = Ways(tls, config)

    async def perform(self, line: Line, space: Space, step: Movable, times: Times, submit: Submit) -> Answer:
        """submit: a rare verb, with the seconds that it may take."""
        mover = Mover(self._ways, line, self._verify)
        loop = asyncio.get_running_loop()

        run = partial(_beside, loop, mover)
        conduct = conduct_of(mover, space, step, times, run)
        return await drive_async(conduct, lambda asked: submit(asked.method, asked.body, times.left()), _awaited)

    def filler(self, line: Line, space: Space, shard: int) -> Filler:
        """As Away's, to be called in a thread beside the event loop."""
        mover = Mover(self._ways, line, self._verify)
        run = partial(_beside, asyncio.get_running_loop(), mover)
        return partial(_fill, mover, run, space.part_bytes[shard])

    async def close(self) -> None:
        await self._ways.close()


def _fill(
    mover: Mover,
    run: Run,
    part_bytes: list[int],
    held: Reservation,
    part: int,
    places: Places,
    deadline_s: float,
) -> Answer:
    times, begin = times_of(deadline_s, None), sum(part_bytes[:part])
    filling = placing(mover, held, places, times, name="sources", begin=begin, count=part_bytes[part])
    return run(filling, times.left)


def _here(loop: asyncio.AbstractEventLoop, asked: Awaited | Beside) -> object:
    """In a thread that is not the loop's."""
    return asked.work() if isinstance(asked, Beside) else run_on(loop, asked.work, whole=asked.whole)


def _beside(loop: asyncio.AbstractEventLoop, mover: Mover, conduct: Conduct[T], left: Callable[[], float]) -> T:
    return drive(conduct, _caller(mover, left), partial(_here, loop))


def _caller(mover: Mover, left: Callable[[], float]) -> Callable[[Called], Result]:
    return lambda asked: mover.line.session.call(asked.method, asked.body, left())


async def _awaited(asked: Awaited | Beside) -> Any:
    if isinstance(asked, Beside):
        return await quietly(asyncio.get_running_loop().run_in_executor(None, asked.work))
    task = asyncio.ensure_future(asked.work())
    task.add_done_callback(_looked_at)

    def interrupt() -> None:
        task.cancel()

    return await quietly(task, None if asked.whole else interrupt)


def _looked_at(task: asyncio.Task[object]) -> None:
    """A cancelled waiter does not ask what came of it."""
    if not task.cancelled():
        task.exception()
