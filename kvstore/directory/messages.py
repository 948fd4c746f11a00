"""What nodes tell and ask each other for the directory. Plain values: how they cross is kvstore/wire's.

Keys are the first 16 bytes of each, as uint8 arrays of (n, 16). A node is its id; a namespace, its digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "ALL_BUCKETS",
    "PUBLISHING",
    "Announce",
    "Answer",
    "Digest",
    "DigestAnswer",
    "Locate",
    "LocateAnswer",
    "Message",
    "Rows",
    "Status",
    "Taken",
]

ALL_BUCKETS = (1 << 64) - 1
PUBLISHING: Final = 4  # the tier of a claim of which nothing is sealed yet: parts of it may be followed

Bytes: TypeAlias = npt.NDArray[np.uint8]
Words: TypeAlias = npt.NDArray[np.uint64]


class Status(IntEnum):
    TAKEN = 0
    RESYNC = 1  # something before it is missing here: tell everything, from scratch
    STRANGER = 2  # not the incarnation that this home knows: later
    AWAY = 3  # this home is not fit to be asked or told
    FULL = 4  # it keeps claims of no more nodes


@dataclass(frozen=True, slots=True)
class Rows:
    """Of one namespace. shards 0: the node holds nothing of it any more."""

    ns: bytes
    keys: Bytes
    shards: Words
    tiers: Bytes

    def __len__(self) -> int:
        return len(self.shards)


@dataclass(frozen=True, slots=True)
class Announce:
    """One batch for one home. `begin`, `end`: buckets whose telling from scratch begins before or ends after the rows.
    It is sent again as it is until it is answered: two batches never have one sequence.
    """

    node: bytes
    incarnation: int
    sequence: int
    rows: tuple[Rows, ...] = ()
    cleared: tuple[bytes, ...] = ()
    begin: int = 0
    end: int = 0


@dataclass(frozen=True, slots=True)
class Digest:
    """What the home should have of this node after `sequence`, in the buckets of `valid`."""

    node: bytes
    incarnation: int
    sequence: int
    buckets: Words
    valid: int


@dataclass(frozen=True, slots=True)
class Locate:
    ns: bytes
    keys: Bytes
    spread: int = 0  # who asks: so that not all are sent to the same of many holders


@dataclass(frozen=True, slots=True)
class Taken:
    status: Status


@dataclass(frozen=True, slots=True)
class DigestAnswer:
    status: Status
    differ: int = 0  # buckets to tell again


@dataclass(frozen=True, slots=True)
class LocateAnswer:
    """`counts` holders of each key; the rest is concatenated, `holders` being places in `nodes`. view: a word of who
    answers its pings. Where that is not as at the asking node, the home may not have heard of all who do there.
    """

    status: Status
    nodes: tuple[bytes, ...]
    counts: Bytes
    holders: npt.NDArray[np.uint16]
    shards: Words
    tiers: Bytes
    view: int = 0


Message: TypeAlias = Announce | Digest | Locate
Answer: TypeAlias = Taken | DigestAnswer | LocateAnswer
