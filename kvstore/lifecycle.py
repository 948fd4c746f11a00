"""The life of a slot, as numbers that the native core and its callers share. The rules run in
native/core/slot_table.hpp; kvstore/testing/models/ has them once more in Python, to hold them against.

    FREE -reserve-> RESERVED -seal-> SEALED -retire, evict-> RETIRED -last release-> FREE
                        |  abort, lapse                         ^
                        +--> FREE, or RETIRED while somebody holds it or may still write it
"""

from enum import IntEnum
from typing import Final, NamedTuple

__all__ = ["NO_SLOT", "HoldKind", "Outcome", "ReserveStatus", "SlotState", "Ticket"]

NO_SLOT: Final = 0xFFFFFFFF


class SlotState(IntEnum):
    FREE = 0
    RESERVED = 1  # being written; may be followed once it has published parts
    SEALED = 2  # visible and immutable
    RETIRED = 3  # unlisted; free at its last release, or when its writer is gone


class ReserveStatus(IntEnum):
    GRANTED = 0
    HELD = 1  # sealed already: putting what is held is a no-op
    PENDING = 2  # another owner is writing it
    FULL = 3  # pins and holds leave nothing
    TOO_LARGE = 4  # a slot of this size does not fit a slab


class Outcome(IntEnum):
    OK = 0
    STALE = 1  # lapsed, retired, or never so
    BAD_INPUT = 2


class HoldKind(IntEnum):
    LEASE = 0  # lapses by time; its holder verifies what it copied
    VIEW = 1  # zero copy; ends with its release or its owner
    PIN = 2  # an operator's; lapses by time


class Ticket(NamedTuple):
    """One tenancy of a slot. A word of it is slot | tenancy << 32."""

    slot: int
    tenancy: int

    @classmethod
    def of(cls, word: int) -> "Ticket":
        return cls(word & NO_SLOT, word >> 32)

    @property
    def word(self) -> int:
        return self.slot | self.tenancy << 32
