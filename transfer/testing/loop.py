"""An event loop whose time is a number: waiting costs nothing, and one seed gives one run.

Rules
- Time moves only when nothing is ready, and then straight to the next timer. Real descriptors are never ready.
- A run in which nothing can happen any more is an error (`Stalled`), not a hang.
- Tasks that are left over are cancelled in the order in which they were started: asyncio's own order is that of a set.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["Stalled", "VirtualLoop", "run_virtual"]

T = TypeVar("T")


class Stalled(RuntimeError):
    """Something waits, and nothing is left that could ever wake it."""


class _JumpingSelector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise Stalled("nothing is ready and no timer is set: this would wait for ever")
        self.now_s += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Starts at 0 s."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self.tasks: list[asyncio.Task[Any]] = []  # in start order
        self.set_task_factory(self._start)

    def time(self) -> float:
        return self._jumping.now_s

    def _start(
        self, loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T] | Any, **named: Any
    ) -> asyncio.Task[T]:
        task: asyncio.Task[T] = asyncio.Task(coroutine, loop=loop, **named)
        if len(self.tasks) > 10_000:
            self.tasks = [kept for kept in self.tasks if not kept.done()]
        self.tasks.append(task)
        return task


def run_virtual(main: Callable[[], Awaitable[T]]) -> T:
    """Runs to its end in virtual time. Raises Stalled where the run would hang, and whatever a callback raised."""
    loop = VirtualLoop()
    faults: list[BaseException] = []
    loop.set_exception_handler(lambda _, context: faults.append(_fault(context)))

    async def body() -> T:
        return await main()

    try:
        asyncio.set_event_loop(loop)
        try:
            result = loop.run_until_complete(body())
        finally:
            left = [task for task in loop.tasks if not task.done()]
            for task in left:
                task.cancel()
            for task in left:
                if not task.done():
                    loop.run_until_complete(asyncio.wait([task]))
            loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    if faults:
        raise faults[0]
    return result


def _fault(context: dict[str, Any]) -> BaseException:
    error = context.get("exception")
    return error if isinstance(error, BaseException) else RuntimeError(str(context.get("message")))
