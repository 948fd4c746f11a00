"""A few threads with one queue that has a limit: where an adapter waits, so that its engine never does."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

__all__ = ["Workers"]

log = logging.getLogger(__name__)


class Workers:
    """From the first `submit` to `close`. Work is called in order, by `threads` threads at once; what it raises is
    logged and costs nobody else anything. Threads are daemons: an engine that exits is not kept waiting.
    """

    def __init__(self, name: str, threads: int, queued_max: int) -> None:
        self._name, self._count, self._queued_max = name, threads, queued_max
        self._queue: deque[Callable[[], None]] = deque()
        self._more = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, work: Callable[[], None]) -> bool:
        """False where the queue is full, or closed: then nothing was taken."""
        with self._more:
            if self._closed or len(self._queue) >= self._queued_max:
                return False
            self._queue.append(work)
            if len(self._threads) < self._count:
                thread = threading.Thread(target=self._run, name=f"kvstore-{self._name}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._more.notify()
        return True

    def close(self, timeout_s: float) -> bool:
        """Takes nothing more, and waits for what was taken. Whether all of it was over in time."""
        with self._more:
            self._closed = True
            self._more.notify_all()
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while True:
            with self._more:
                while not self._queue and not self._closed:
                    self._more.wait()
                if not self._queue:
                    return
                work = self._queue.popleft()
            try:
                work()
            except Exception:
                log.exception("%s: a piece of work failed", self._name)
