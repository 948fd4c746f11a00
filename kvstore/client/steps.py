"""What journeys ask of a channel, and what they are told. Data only: a channel gives these their bytes on the wire.

A channel is a node's framed socket or gRPC; it fills in what a journey need not know: connections, the namespace's
handle there, deadlines, and times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kvstore.client.buffers import Places
from kvstore.client.followed import Followed
from kvstore.client.held import ENDLESS, Grip
from kvstore.errors import Rejected, Unavailable
from kvstore.layout import Need

_Raw = bytes  # where a field has the name of the type
Keys = npt.NDArray[np.uint8]  # (n, 32), C-contiguous


class Status(IntEnum):
    """How a step went; numbered as in native/door/frame.hpp."""

    OK = 0
    STALE_NAMESPACE = 1
    REJECTED = 2
    BAD_INPUT = 3
    DENIED = 4
    UNAVAILABLE = 6
    LATE = 7
    CANCELLED = 8


class PutOutcome(IntEnum):
    """What became of one block of a put."""

    STORED = 0
    HELD = 1
    PENDING = 2
    FULL = 3
    TOO_LARGE = 4
    LAPSED = 5


@dataclass(frozen=True, slots=True)
class Limits:
    """What the node at the other end allows."""

    keys_per_call_max: int
    window_bytes: int
    meta_bytes_max: int
    hold_wait_s_max: float


class WireHint(NamedTuple):
    """Hints as numbers; zero: nothing said."""

    family: int = 0
    session: int = 0
    turn: int = 0
    expected_return_ms: int = 0
    priority: int = 0
    end: bool = False
    position: int = 0  # how many blocks of the prompt come before the first key of the call
    label: str = ""  # the text that `family` was made of, for people

    def at(self, blocks: int) -> WireHint:
        """For the rest of the same chain, `blocks` further on."""
        return self._replace(position=self.position + blocks) if blocks else self


# ---- steps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lookup:
    keys: Keys
    needs: tuple[Need, ...]


@dataclass(frozen=True, slots=True)
class LookupFar:
    """A LookupRequest that the node answers with what others hold, too. Answered by FoundFar."""

    request: bytes


@dataclass(frozen=True, slots=True)
class Replicate:
    """A ReplicateRequest: of blocks that the node has, other hosts are to make copies. Answered by Replicated."""

    request: bytes


@dataclass(frozen=True, slots=True)
class Put:
    """One window. `places`: one block a key."""

    shard: int
    keys: Keys
    places: Places
    hint: WireHint
    parent: bytes
    metas: tuple[bytes, ...]


class Fetch(NamedTuple):
    """The rest of a chain, which the node cuts to a window. parts: first and end of those wanted of each block, which
    `places` speaks of; None: all. far: from other nodes, what this one has not itself. parent: the key before the
    first, for the copy that the node may make of it.
    """

    shard: int
    keys: Keys
    places: Places
    hint: WireHint
    parts: tuple[int, int] | None = None
    far: bool = False
    parent: bytes = b""


class Hold(NamedTuple):
    """The rest of a chain, which the node cuts to a window: held, and nothing of it read. far: of what other nodes
    have, the node makes a replica first. parent: the key before the first, for that.
    """

    shard: int
    keys: Keys
    hint: WireHint
    far: bool = False
    parent: bytes = b""


@dataclass(frozen=True, slots=True)
class Look:
    """A zero-copy hold of one window. following: blocks that are being published count as there."""

    shard: int
    keys: Keys
    hint: WireHint
    following: bool


@dataclass(frozen=True, slots=True)
class Follow:
    """What is new of blocks that somebody publishes, read into `places`: one block a key. All that came of it is in
    `followed`, which the step goes on from.
    """

    shard: int
    keys: Keys
    places: Places
    hint: WireHint
    followed: Followed


@dataclass(frozen=True, slots=True)
class PartReady:
    """Of a journey that follows: asks for nothing, and tells its caller that this part of every block has arrived."""

    part: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Slots of one window, to be filled part by part."""

    shard: int
    keys: Keys
    hint: WireHint
    parent: bytes
    metas: tuple[bytes, ...]


class Report(NamedTuple):
    """What came of a whole get; nobody answers. asked 0: of blocks that another get has counted."""

    hint: WireHint
    asked: int = 0
    by_tier: tuple[int, int, int, int] = (0, 0, 0, 0)
    failed: int = 0
    moved: int = 0


@dataclass(frozen=True, slots=True)
class Reopen:
    """A live connection with the namespace open, whatever that takes. Answered by Reopened."""


Step = Lookup | LookupFar | Replicate | Put | Fetch | Hold | Look | Follow | Reserve | Report | Reopen


class Answer(Protocol):
    """What came of a step; the native session's Result is one. Fields a step does not speak of keep their zeros."""

    @property
    def status(self) -> int: ...
    @property
    def field(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def limit(self) -> int: ...
    @property
    def blocks(self) -> int: ...
    @property
    def blocks_corrupt(self) -> int: ...
    @property
    def window_full(self) -> bool: ...
    @property
    def bytes(self) -> int: ...
    @property
    def fetch_s(self) -> float: ...
    @property
    def outcomes(self) -> _Raw: ...
    @property
    def tiers(self) -> _Raw: ...


@dataclass(frozen=True, slots=True)
class Told:
    """An answer made in Python: by the gRPC channel, by a failed connection, by a test."""

    status: int = Status.OK
    field: str = ""
    reason: str = ""
    limit: int = 0
    blocks: int = 0
    blocks_corrupt: int = 0
    window_full: bool = False
    bytes: int = 0
    fetch_s: float = 0.0
    outcomes: _Raw = b""
    tiers: _Raw = b""


@dataclass(frozen=True, slots=True)
class Reopened(Told):
    """same: the namespace is what it was (the node was restarted), so the chain still names the same blocks."""

    same: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """Another node that says it holds blocks [first, first + count) of a shard. node: its name; address: of its framed
    door.
    """

    node: str
    address: str
    shard: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class FoundFar(Told):
    """LookupFar, answered. fetch_s: of what is far alone."""

    holders: tuple[Holder, ...] = ()


@dataclass(frozen=True, slots=True)
class Replicated(Told):
    """Replicate, answered. hosts: one byte a block."""

    hosts: _Raw = b""


@dataclass(frozen=True, slots=True)
class Lent(Told):
    """Look, answered: arrays over the hold, which is theirs."""

    arrays: tuple[Keys, ...] = ()
    parts: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Gripped(Told):
    """Hold, answered. grip: None where no block is up."""

    grip: Grip | None = None
    expires_s: float = ENDLESS


@dataclass(frozen=True, slots=True)
class Taken(Told):
    """Reserve, answered: the native reservation."""

    held: Reservation | None = None


class Reservation(Protocol):
    """What a native reservation is to those who fill it."""

    @property
    def granted(self) -> Sequence[int]: ...
    def array(self, index: int) -> Keys: ...
    def write(self, part: int, places: Places, deadline_s: float) -> Answer: ...
    def publish(self, part: int, deadline_s: float) -> Answer: ...
    def seal(self, deadline_s: float) -> Answer: ...
    def abort(self) -> None: ...


def fail(answer: Answer) -> Exception:
    """An answer that is not OK, as the exception that says so. The only place where one becomes the other."""
    what = f"{answer.field}: {answer.reason}" if answer.field else answer.reason
    status = answer.status
    if status == Status.BAD_INPUT:
        return ValueError(what)
    if status == Status.REJECTED:
        return Rejected(what, limit=answer.field)
    if status == Status.DENIED:
        return Rejected(what or "the node does not let this client in")
    if status == Status.LATE:
        return Unavailable(what or "the node did not answer in time")
    if status == Status.STALE_NAMESPACE:
        return Unavailable(what or "the namespace was cleared")
    return Unavailable(what or "the node is gone")
