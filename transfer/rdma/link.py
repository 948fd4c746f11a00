"""A control connection, whichever side made it: it hears, has questions answered, and hands on the rest.

  they ask  JOIN, PRESENT        -> questions -> Guest -> JOINED, SHOWN
  we ask    lanes, endpoint      <- JOINED, SHOWN, ENDED

Rules
- Both sides may ask, each with queue pairs of its own. A queue pair has one protection domain: that of who asks knows
  all of its memory, that of who answers only what this one peer was granted. One pair for both would mix the two.
- Hearing never waits for answering, or two sides that ask much at once would wait for each other. So questions wait in
  a queue, at most QUESTIONS_MAX; a peer that asks more than it may costs its connection.
- The connection's end ends the lanes that were joined over it, and all that the peer was shown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from transfer.errors import PeerUnreachable
from transfer.rdma.control import QUESTIONS_MAX, Control
from transfer.rdma.frames import Ended, FrameInvalid, Hello, Join, Joined, Present, Shown
from transfer.rdma.serving import Guest
from transfer.rdma.verbs import RdmaUnavailable

if TYPE_CHECKING:
    from transfer.rdma.lanes import Lanes
    from transfer.rdma.transport import RdmaTransport

__all__ = ["Link"]


class Asker(Protocol):
    """The endpoint that asks over a connection."""

    def grant_ended(self, told: Ended) -> None: ...

    def link_lost(self, link: Link) -> None: ...


class Link:
    """Lives from its making to its `close`, or to the connection's end. `lanes`, `asker`: of who asks over it here."""

    def __init__(self, host: RdmaTransport, control: Control, theirs: Hello) -> None:
        self.control = control
        self.theirs = theirs
        self.lanes: Lanes | None = None
        self.asker: Asker | None = None
        self.open = True
        self._host = host
        self._guest = Guest(host, control)
        self._questions: asyncio.Queue[tuple[Join | Present, int]] = asyncio.Queue(QUESTIONS_MAX)
        self._living = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        answering = asyncio.get_running_loop().create_task(self._answer())
        why = "this side has closed"
        try:
            await self._hear()
        except (PeerUnreachable, FrameInvalid) as error:
            why = str(error)
        finally:
            self._over(why)
            answering.cancel()
            await asyncio.shield(asyncio.ensure_future(self._quiet(answering)))

    async def _hear(self) -> None:
        while True:
            message, request = await self.control.next()
            match message:
                case Joined() | Shown():
                    self.control.answered(message, request)
                case Ended():
                    if self.asker is not None:
                        self.asker.grant_ended(message)
                case Join() | Present():
                    if self.control.version == 1:  # its sides only asked or only answered, and asked without bound
                        await self._questions.put((message, request))
                    elif self._questions.full():
                        raise FrameInvalid(f"more than {QUESTIONS_MAX} questions at once")
                    else:
                        self._questions.put_nowait((message, request))
                case Hello():
                    raise FrameInvalid("a second greeting")

    async def _answer(self) -> None:
        try:
            while True:
                question, request = await self._questions.get()
                self.control.tell(await self._guest.answer(question, self.theirs), request)
                await self.control.drain()
        except (RdmaUnavailable, OSError) as error:
            self.control.lose(str(error))  # so hearing ends

    def _over(self, why: str) -> None:
        self.open = False
        self.control.lose(why)
        if self.lanes is not None:
            self.lanes.stop(why)
            self._host.engine.give_up(self.lanes.peer, True)
        self._host.link_ended(self)
        if self.asker is not None:
            self.asker.link_lost(self)

    async def _quiet(self, answering: asyncio.Task[None]) -> None:
        await asyncio.wait([answering])
        await self._guest.end()

    async def close(self) -> None:
        """Returns when the peer's devices can touch nothing here any more by this connection."""
        if self.open:
            self._living.cancel()
        await asyncio.wait([self._living])
        if self.open:  # it had not begun to live
            self._over("this side has closed")

    def when_over(self, call: Callable[[], object]) -> None:
        """Called when nothing of it is left to close."""
        self._living.add_done_callback(lambda _: call())
