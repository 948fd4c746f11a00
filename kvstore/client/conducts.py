"""How steps that move bytes are written: generators that ask for what they need, driven by both faces.

Asked for: a rare verb of the node, something awaited on the event loop of the client's transports, a call of the native
session. What is awaited may be interrupted; what gives memory back may not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kvstore.client.steps import Answer, Fetch, Follow, Hold, Look, Put, Reserve, Status, Told
from kvstore.client.ways import NotTaken, TooLate
from kvstore.errors import Rejected, Unavailable

if TYPE_CHECKING:
    from kvstore.client.calls import Line
    from kvstore.client.ways import Ways

__all__ = [
    "STOPPED",
    "Awaited",
    "Beside",
    "Called",
    "Conduct",
    "Movable",
    "Mover",
    "Run",
    "drive",
    "drive_async",
    "ended_by",
    "failed",
]


@dataclass(frozen=True, slots=True)
class Called:
    """A rare verb, answered by its Result."""

    method: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Awaited:
    """Answered by what it returns. whole: not to be interrupted. at_once: the same in the calling thread, for who has
    one to spare; it answers None where it cannot, and `work` is to be done.
    """

    work: Callable[[], Coroutine[Any, Any, Any]]
    whole: bool = False
    at_once: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True)
class Beside:
    """Answered by what it returns, in the calling thread, or in one beside the event loop. It waits for the node alone,
    and is not interrupted.
    """

    work: Callable[[], Any]


STOPPED: Final = (NotTaken, Unavailable, Rejected)  # of which `ended_by` makes an answer
T = TypeVar("T")
Asked = Called | Awaited | Beside
Conduct = Generator[Asked, Any, T]
Run = Callable[[Conduct[Answer], Callable[[], float]], Answer]
Movable = Fetch | Hold | Put | Reserve | Look | Follow


@dataclass(frozen=True, slots=True)
class Mover:
    """What a step has at hand. verify: off only to show why it is on."""

    ways: Ways
    line: Line
    verify: bool


def drive(conduct: Conduct[T], call: Callable[[Called], object], wait: Callable[[Awaited | Beside], object]) -> T:
    """In the calling thread. What interrupts a step is told to the conduct: which gives memory back."""
    try:
        asked = next(conduct)
        while True:
            try:
                answer = call(asked) if isinstance(asked, Called) else wait(asked)
            except BaseException as error:
                asked = conduct.throw(error)
            else:
                asked = conduct.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def drive_async(
    conduct: Conduct[T],
    call: Callable[[Called], Awaitable[object]],
    wait: Callable[[Awaited | Beside], Awaitable[object]],
) -> T:
    try:
        asked = next(conduct)
        while True:
            try:
                answer = await (call(asked) if isinstance(asked, Called) else wait(asked))
            except BaseException as error:
                asked = conduct.throw(error)
            else:
                asked = conduct.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def ended_by(error: Exception, name: str, outcomes: bytes | bytearray = b"") -> Told:
    """What a step says of what was raised at it. name: of the argument whose memory was to move."""
    if isinstance(error, NotTaken):  # as what the caller got wrong: the argument, and what this process lacks
        return Told(Status.BAD_INPUT, field=name, reason=f"lies on a device: {error}", outcomes=bytes(outcomes))
    if isinstance(error, Rejected):
        return Told(Status.REJECTED, field=error.limit, reason=str(error), outcomes=bytes(outcomes))
    status = Status.LATE if isinstance(error, TooLate) else Status.UNAVAILABLE
    return Told(status, reason=str(error), outcomes=bytes(outcomes))


def failed(told: Answer, outcomes: bytes | bytearray = b"") -> Told:
    """An answer without what only another kind of answer has."""
    return Told(told.status, told.field, told.reason, told.limit, outcomes=bytes(outcomes))
