"""What clients and nodes of the simulation say to each other. Durations travel, never clock times."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from kvstore.testing.models.leases import HoldKind
from kvstore.testing.models.lifecycle import Ticket
from kvstore.testing.models.namespaces import Space
from kvstore.testing.models.table import Held, Reserved


class Refused(Enum):
    STALE_NAMESPACE = "stale namespace"


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
    in_place: bool


@dataclass(frozen=True, slots=True)
class Grants:
    blocks: tuple[Reserved, ...]


@dataclass(frozen=True, slots=True)
class Write:
    """A part of a peer that maps nothing; the node copies it in and takes the checksum."""

    ticket: Ticket
    part: int
    data: bytes


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
    """`wait`: how long for what is on a lower tier. `streamed`: answered with bytes, not with places."""

    ns: int
    shard: int
    keys: tuple[bytes, ...]
    kind: HoldKind
    following: bool
    wait: int
    lease: int
    streamed: bool


@dataclass(frozen=True, slots=True)
class Fetched:
    """checksums: of the parts that are ready, a row a block. bytes_read: of a streamed fetch."""

    hold: int
    slots: tuple[Held, ...]
    checksums: tuple[tuple[int, ...], ...]
    bytes_read: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Release:
    hold: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    ticket: Ticket
