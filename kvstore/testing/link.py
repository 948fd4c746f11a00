"""A connection between a client and a node: in order, late, and sometimes cut.

A Unix socket ends when its client closes it or dies, and the node is told so; until then that client may write where it
maps. A connection over a network may also go silent: both ends find out by their own deadlines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from kvstore.testing.world import Wait, World

if TYPE_CHECKING:
    from kvstore.testing.models.transfers import Way


class Server(Protocol):
    """The node's end."""

    def handle(self, link: Link, request: int, message: Any) -> None: ...

    def gone(self, link: Link) -> None: ...


@dataclass(slots=True, eq=False)
class Link:
    world: World
    server: Server
    owner: int
    local: bool
    delay_max: int
    open: bool = True  # as the client sees it
    told: bool = False  # the server knows that it has ended
    silent: bool = False  # nothing arrives any more, and nobody is told
    cut_by_node: bool = False
    way: Way | None = None  # by which bytes move, where the client maps nothing
    waits: dict[int, Wait[object]] = field(default_factory=dict)
    _last: int = 0
    _to_server: int = 0
    _to_client: int = 0

    def ask(self, message: object, deadline: int | None) -> Wait[object]:
        """A wait for the answer; fulfilled with None at once if the connection has ended."""
        self._last += 1
        number = self._last
        wait: Wait[object] = Wait(deadline)
        if not self.open:
            wait.fulfil(None)
            return wait
        self.waits[number] = wait
        self._to_server = self._send(self._to_server, lambda: self._arrive(number, message))
        return wait

    def tell(self, message: object) -> None:
        """Nobody answers."""
        if self.open:
            self._to_server = self._send(self._to_server, lambda: self._arrive(0, message))

    def answer(self, number: int, message: object) -> None:
        self._to_client = self._send(self._to_client, lambda: self._answered(number, message))

    def close(self) -> None:
        """By the client, or by its end. The kernel tells the other end; a silent network does not."""
        if self.open:
            self.open = False
            self._to_server = self._send(self._to_server, self._end_at_server, lost=self.silent)
            self._fail_waits()

    def end_from_node(self) -> None:
        """The node's end is closed, or its process gone: the client learns of it when it looks."""
        self.cut_by_node = True
        self._to_client = self._send(self._to_client, self._end_at_client, lost=self.silent)

    def _send(self, last: int, arrive: Callable[[], None], *, lost: bool | None = None) -> int:
        at = max(last, self.world.now + self.world.rng.randint(1, self.delay_max))
        if not (self.silent if lost is None else lost):
            self.world.at(at, arrive)
        return at

    def _arrive(self, number: int, message: object) -> None:
        if not (self.silent or self.told or self.cut_by_node):
            self.server.handle(self, number, message)

    def _answered(self, number: int, message: object) -> None:
        wait = self.waits.pop(number, None)
        if wait is not None and self.open and not self.silent:
            wait.fulfil(message)

    def _end_at_server(self) -> None:
        if not self.told:
            self.told = True
            self.server.gone(self)

    def _end_at_client(self) -> None:
        if self.open:
            self._fail_waits()

    def _fail_waits(self) -> None:
        waits, self.waits = self.waits, {}
        for wait in waits.values():
            wait.fulfil(None)
