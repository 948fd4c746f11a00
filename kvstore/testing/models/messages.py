"""What clients and nodes of the simulation say to each other. Durations travel, never clock times."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kvstore.testing.models.leases import HoldKind
from kvstore.testing.models.lifecycle import ReserveStatus, Ticket
from kvstore.testing.models.namespaces import Space
from kvstore.testing.models.table import Held, Reserved
from kvstore.testing.models.transfers import Grant


class Refused(Enum):
    STALE_NAMESPACE = "stale namespace"
    NOT_READY = "what it names has ended, is busy or lacks something"


@dataclass(frozen=True, slots=True)
class Open:
    name: str


@dataclass(frozen=True, slots=True)
class Opened:
    ns: int
    space: Space


@dataclass(frozen=True, slots=True)
class Quiet:
    """The owner of a former connection neither reads nor writes the segment any more."""

    owner: int


@dataclass(frozen=True, slots=True)
class Look:
    ns: int
    shard: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Prefetch:
    ns: int
    shard: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Clear:
    ns: int


@dataclass(frozen=True, slots=True)
class Reserve:
    ns: int
    shard: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Grants:
    blocks: tuple[Reserved, ...]


@dataclass(frozen=True, slots=True)
class Publish:
    ticket: Ticket
    part: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Seal:
    tickets: tuple[Ticket, ...]
    checksums: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Abort:
    tickets: tuple[Ticket, ...]


@dataclass(frozen=True, slots=True)
class Fetch:
    """`wait`: how long for what is on a lower tier."""

    ns: int
    shard: int
    keys: tuple[bytes, ...]
    kind: HoldKind
    following: bool
    wait: int
    lease: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """checksums: of the parts that are ready, a row a block."""

    hold: int
    slots: tuple[Held, ...]
    checksums: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Release:
    hold: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    ticket: Ticket


# ---- of clients that map nothing: bytes move by transfers ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lease:
    """`number`: the client's, another one each time: so that it can be released before it is answered."""

    number: int
    ns: int
    shard: int
    keys: tuple[bytes, ...]
    wait: int


@dataclass(frozen=True, slots=True)
class Leased:
    """The run that is up, to be read by the grant. `lasts`: counted from before the request was sent."""

    lasts: int
    grant: Grant | None
    slots: tuple[Held, ...]
    checksums: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ReleaseLease:
    number: int
    corrupt: tuple[Ticket, ...] = ()


@dataclass(frozen=True, slots=True)
class Pull:
    """Blocks lie one behind the other in what the client has granted. `deadline`: a duration."""

    ns: int
    shard: int
    keys: tuple[bytes, ...]
    grant: Grant
    deadline: int


@dataclass(frozen=True, slots=True)
class Pulled:
    statuses: tuple[ReserveStatus, ...]
    sealed: int


@dataclass(frozen=True, slots=True)
class ReserveSlots:
    """`number`: as a lease's."""

    number: int
    ns: int
    shard: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ReservedSlots:
    """Where nothing was granted there is no reservation."""

    statuses: tuple[ReserveStatus, ...]


@dataclass(frozen=True, slots=True)
class Fill:
    """One part of every granted block, one behind the other in what the client has granted."""

    number: int
    part: int
    grant: Grant
    deadline: int


@dataclass(frozen=True, slots=True)
class Filled:
    failure: str


@dataclass(frozen=True, slots=True)
class PublishFilled:
    number: int
    part: int


@dataclass(frozen=True, slots=True)
class SealFilled:
    number: int


@dataclass(frozen=True, slots=True)
class AbortFilled:
    number: int
