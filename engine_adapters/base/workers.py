"""A few threads with one queue that has a limit: where an adapter waits, so that its engine never does."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

__all__ = ["Workers"]

log = logging.getLogger(__name__)


class Workers:
    """From the first `submit` to `close`. Work is called in order, by `threads` threads at once; what it raises is
    logged and costs nobody else anything. Threads are daemons: an engine that exits is not kept waiting.
    """

    def __init__(self, name: str, threads: int, queued_max: int) -> None:
        self._name, self._count, self._queued_max = name, threads, queued_max
        # Of the native kind: an engine's thread submits, and waking by threading.Condition takes it five times as long.
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._submitting = threading.Lock()  # never held by the threads that work
        self._threads: list[threading.Thread] = []
        self._closed = False

    def submit(self, work: Callable[[], None]) -> bool:
        """False where the queue is full, or closed: then nothing was taken."""
        with self._submitting:
            if self._closed or self._queue.qsize() >= self._queued_max:
                return False
            self._queue.put(work)
            if len(self._threads) < self._count:
                thread = threading.Thread(target=self._run, name=f"kvstore-{self._name}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return True

    def close(self, timeout_s: float) -> bool:
        """Takes nothing more, and waits for what was taken. Whether all of it was over in time."""
        with self._submitting:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._queue.put(None)
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:
                log.exception("%s: a piece of work failed", self._name)
            del work  # what it refers to is not kept until the next comes
