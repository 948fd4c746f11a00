"""An event loop in a thread of its own, for the sync face: transports need one, and its callers have none."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["LoopThread", "run_on"]

T = TypeVar("T")
_JOIN_S = 5.0


def run_on(loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]], *, whole: bool = False) -> T:
    """The coroutine's result, waited for by another thread than the loop's. A KeyboardInterrupt cancels it (whole: not
    even that), and goes through when it has ended: until then it may touch its caller's memory.
    """
    ended = threading.Event()
    made: list[asyncio.Task[T]] = []

    def begin() -> None:
        task = loop.create_task(work())
        made.append(task)
        task.add_done_callback(lambda _: ended.set())

    loop.call_soon_threadsafe(begin)
    interrupted: KeyboardInterrupt | None = None
    while True:
        try:
            ended.wait()
            break
        except KeyboardInterrupt as error:
            interrupted = interrupted or error
            if not whole:
                loop.call_soon_threadsafe(lambda: made and made[0].cancel())
    if interrupted is not None:
        if not made[0].cancelled():
            made[0].exception()  # looked at
        raise interrupted
    return made[0].result()


class LoopThread:
    """Started with the first `loop`, ended by `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name=self._name, daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join(_JOIN_S)
            if not self._thread.is_alive():
                loop.close()
