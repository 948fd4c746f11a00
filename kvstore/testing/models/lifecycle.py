"""The life of one slot.

    FREE -reserve-> RESERVED -seal-> SEALED -retire, evict-> RETIRED -last release-> FREE
                        |  abort, lapse                         ^
                        +--> FREE, or RETIRED while somebody holds it or may still write it

A slot is *listed* while it is RESERVED or SEALED. Whoever may still write into it is its writer, from the grant until
the seal, or until that owner says that it writes no more, or is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple


class SlotState(IntEnum):
    """Numbered as in native/core/slot_table.hpp."""

    FREE = 0
    RESERVED = 1
    SEALED = 2
    RETIRED = 3


class ReserveStatus(IntEnum):
    """Numbered as in native/core/slot_table.hpp."""

    GRANTED = 0
    HELD = 1
    PENDING = 2
    FULL = 3
    TOO_LARGE = 4


class Outcome(IntEnum):
    """Numbered as in native/core/slot_table.hpp."""

    OK = 0
    STALE = 1
    BAD_INPUT = 2


class Ticket(NamedTuple):
    """One tenancy of a slot; a later tenancy of the same slot has another number."""

    slot: int
    tenancy: int


ALLOWED: Final = frozenset(
    {
        (SlotState.FREE, SlotState.RESERVED),
        (SlotState.RESERVED, SlotState.SEALED),
        (SlotState.RESERVED, SlotState.RETIRED),
        (SlotState.RESERVED, SlotState.FREE),
        (SlotState.SEALED, SlotState.RETIRED),
        (SlotState.SEALED, SlotState.FREE),
        (SlotState.RETIRED, SlotState.FREE),
    }
)


class Name(NamedTuple):
    """What a listed slot is found by."""

    digest: bytes  # of the namespace
    shard: int
    key: bytes


@dataclass(slots=True)
class Writer:
    """Who may still write into a slot. `lapsed`: quarantined, only the owner's word or end frees the slot."""

    owner: int
    in_place: bool
    deadline: int
    lapsed: bool = False


@dataclass(slots=True)
class Slot:
    """One slot in use. `checksums`: of the parts published; of all of them once it is sealed."""

    ticket: Ticket
    offset: int
    payload_bytes: int
    parts: int
    name: Name
    parent: bytes = b""
    meta: bytes = b""
    position: int = 0
    state: SlotState = SlotState.FREE
    checksums: list[int] = field(default_factory=list)
    writer: Writer | None = None
    holds: int = 0
    views: int = 0
    clean: bool = False
    former: bool = False  # kept for clients of a former process

    @property
    def evictable(self) -> bool:
        return self.state == SlotState.SEALED and not self.kept

    @property
    def listed(self) -> bool:
        return self.state in (SlotState.RESERVED, SlotState.SEALED)

    @property
    def kept(self) -> bool:
        """Somebody may still read or write it: it must not be reused."""
        return self.holds > 0 or self.writer is not None or self.former

    def move(self, to: SlotState) -> None:
        assert (self.state, to) in ALLOWED, f"slot {self.ticket.slot}: {self.state.name} to {to.name}"
        self.state = to

    def publish(self, part: int, checksum: int) -> Outcome:
        """Parts are published in order, each with its checksum recorded first."""
        if part != len(self.checksums) or part >= self.parts:
            return Outcome.BAD_INPUT
        self.checksums.append(checksum)
        return Outcome.OK
