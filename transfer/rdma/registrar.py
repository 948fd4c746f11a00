"""Memory as devices know it: registered and let go off the event loop, never more of it than `mrs_max`.

Rules
- What is registered is exactly the range asked for, with exactly the rights asked for: a device checks byte by byte.
- When `release` has returned, the keys open nothing.
- A registration that fails half-way leaves nothing behind.
- One that a device will not let go stands in nobody's way: the others are let go all the same, and it alone stays
  counted, since the device still has it.
- What is held for later use only (transfer.rdma.kept) is let go before anything is refused for want of room.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass

from transfer.errors import LimitReached

__all__ = ["Asked", "Mended", "NotLetGo", "Registered", "Registrar", "as_asked"]


@dataclass(frozen=True, slots=True)
class Asked:
    """`bytes` from `address` on, in a protection domain, known to the device as `device_address`. `dma_buf`: a
    descriptor, and `address` is an offset in that buffer.
    """

    pd: int
    address: int
    bytes: int
    device_address: int
    write_here: bool = False
    peer_reads: bool = False
    peer_writes: bool = False
    dma_buf: int = -1


Mended = Callable[[Asked], Asked]


@contextlib.contextmanager
def as_asked() -> Iterator[Mended]:
    """Host memory is registered as it is."""
    yield lambda one: one


@dataclass(frozen=True, slots=True)
class Registered:
    handle: int
    local_key: int
    remote_key: int


class NotLetGo(OSError):
    """The device still has what is `left`."""

    def __init__(self, cause: OSError, left: Sequence[Registered]) -> None:
        super().__init__(cause.errno or errno.EIO, cause.strerror or str(cause))
        self.left = list(left)


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
        self._room: Callable[[], Awaitable[bool]] | None = None

    def when_full(self, room: Callable[[], Awaitable[bool]]) -> None:
        """room: makes some, and says whether that could be."""
        self._room = room

    @property
    def held(self) -> int:
        return self._held

    async def acquire(
        self, asked: Sequence[Asked], source: Callable[[], contextlib.AbstractContextManager[Mended]] = as_asked
    ) -> list[Registered]:
        """All or nothing, in order, also when cancelled. source: entered while they are registered; it mends what is
        asked. Raises LimitReached (mrs_max, or memlock), ValueError.
        """
        return await self.taken(len(asked), lambda: self._all_of(asked, source))

    async def taken(self, most: int, work: Callable[[], list[Registered]]) -> list[Registered]:
        """As `acquire`, for registrations that `work` makes in another thread: `most` at most, all that it has made or
        none. Where there is no room for them it may be done twice.
        """
        try:
            return await self._taken(most, work)
        except LimitReached:
            if self._room is None or not await self._room():
                raise
        return await self._taken(most, work)

    async def _taken(self, most: int, work: Callable[[], list[Registered]]) -> list[Registered]:
        if self._held + most > self._mrs_max:
            raise LimitReached(f"{self._held} memory regions are registered", limit="mrs_max")
        self._held += most
        working = asyncio.ensure_future(self._run(work))
        try:
            made = await asyncio.shield(working)
        except OSError as error:
            self._held -= most - _left(error)
            if error.errno == errno.ENOMEM:
                raise LimitReached(f"the device takes no more memory: {error.strerror}", limit="memlock") from error
            raise ValueError(f"memory cannot be registered with the device: {error.strerror}") from error
        except asyncio.CancelledError:
            working.add_done_callback(lambda done: self._abandoned(done, most))
            raise
        except BaseException:
            self._held -= most
            raise
        self._held -= most - len(made)
        return made

    async def release(self, registered: Sequence[Registered]) -> None:
        """Raises NotLetGo, when all others are."""
        await asyncio.shield(asyncio.ensure_future(self._release(list(registered))))

    async def _release(self, registered: list[Registered]) -> None:
        def work() -> list[Registered]:
            self._let_go(registered)
            return []

        try:
            await self._run(work)
        except NotLetGo as error:
            self._held -= len(registered) - len(error.left)
            raise
        self._held -= len(registered)

    def _let_go(self, registered: Sequence[Registered]) -> None:
        """Of another thread. Raises NotLetGo."""
        left: list[Registered] = []
        cause = OSError()
        for one in registered:
            try:
                self._deregister(one.handle)
            except OSError as error:
                left.append(one)
                cause = error
        if left:
            raise NotLetGo(cause, left)

    def _all_of(
        self, asked: Sequence[Asked], source: Callable[[], contextlib.AbstractContextManager[Mended]]
    ) -> list[Registered]:
        made: list[Registered] = []
        try:
            with source() as mended:
                for one in asked:
                    made += [self._register(mended(one))]  # what is made so far is let go if the next one fails
        except Exception as error:
            try:
                self._let_go(made)
            except NotLetGo as stuck:
                cause = error if isinstance(error, OSError) else stuck
                raise NotLetGo(cause, stuck.left) from error
            raise
        return made

    def _abandoned(self, work: asyncio.Future[list[Registered]], most: int) -> None:
        """Nobody waits for what has been registered."""
        error = None if work.cancelled() else work.exception()
        if work.cancelled() or error is not None:
            self._held -= most - _left(error)
            return
        self._held -= most - len(work.result())
        task = asyncio.get_running_loop().create_task(self.release(work.result()))
        self._last = task  # a task that nobody holds may be collected


def _left(error: BaseException | None) -> int:
    return len(error.left) if isinstance(error, NotLetGo) else 0
