"""Memory as devices know it: registered and let go off the event loop, never more of it than `mrs_max`.

Rules
- What is registered is exactly the range asked for, with exactly the rights asked for: a device checks byte by byte.
- When `release` has returned, the keys open nothing.
- A registration that fails half-way leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from transfer.errors import LimitReached

__all__ = ["Asked", "Registered", "Registrar"]


@dataclass(frozen=True, slots=True)
class Asked:
    """`bytes` from `address` on, in a protection domain, known to the device as `device_address`."""

    pd: int
    address: int
    bytes: int
    device_address: int
    write_here: bool = False
    peer_reads: bool = False
    peer_writes: bool = False


@dataclass(frozen=True, slots=True)
class Registered:
    handle: int
    local_key: int
    remote_key: int


class Registrar:
    """`register` and `deregister` may wait and raise OSError; `run` has something done in another thread."""

    def __init__(
        self,
        mrs_max: int,
        *,
        register: Callable[[Asked], Registered],
        deregister: Callable[[int], None],
        run: Callable[[Callable[[], list[Registered]]], Awaitable[list[Registered]]],
    ) -> None:
        self._mrs_max = mrs_max
        self._register = register
        self._deregister = deregister
        self._run = run
        self._held = 0
        self._last: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        return self._held

    async def acquire(self, asked: Sequence[Asked]) -> list[Registered]:
        """All or nothing, in order, also when cancelled. Raises LimitReached (mrs_max, or memlock), ValueError."""
        if self._held + len(asked) > self._mrs_max:
            raise LimitReached(f"{self._held} memory regions are registered", limit="mrs_max")
        self._held += len(asked)
        work = asyncio.ensure_future(self._run(lambda: self._all_of(asked)))
        try:
            return await asyncio.shield(work)
        except OSError as error:
            self._held -= len(asked)
            if error.errno == errno.ENOMEM:
                raise LimitReached(f"the device takes no more memory: {error.strerror}", limit="memlock") from error
            raise ValueError(f"memory cannot be registered with the device: {error.strerror}") from error
        except asyncio.CancelledError:
            work.add_done_callback(lambda done: self._abandoned(done, len(asked)))
            raise

    async def release(self, registered: Sequence[Registered]) -> None:
        """Raises OSError where a device will not let go."""
        kept = list(registered)

        def work() -> list[Registered]:
            for one in kept:
                self._deregister(one.handle)
            return []

        await asyncio.shield(asyncio.ensure_future(self._run(work)))
        self._held -= len(kept)

    def _all_of(self, asked: Sequence[Asked]) -> list[Registered]:
        made: list[Registered] = []
        try:
            for one in asked:
                made += [self._register(one)]  # what is made so far is let go if the next one fails
        except OSError:
            for one_made in made:
                self._deregister(one_made.handle)
            raise
        return made

    def _abandoned(self, work: asyncio.Future[list[Registered]], count: int) -> None:
        """Nobody waits for what has been registered."""
        if work.cancelled() or work.exception() is not None:
            self._held -= count
            return
        task = asyncio.get_running_loop().create_task(self.release(work.result()))
        self._last = task  # a task that nobody holds may be collected
