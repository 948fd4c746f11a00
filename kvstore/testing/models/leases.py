"""Holds: leases, views and pins, and when each of them ends.

A lease and a pin end by release, by their owner's end, or by time; a view never by time. A mover's hold has no time
either, and does not count for a restart. Deadlines are inclusive: what is due at `now` has lapsed.
What an owner holds open for as long as it likes may have a limit, in which a slot counts once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from kvstore.testing.models.lifecycle import Slot

PAGE = 4096


class HoldKind(IntEnum):
    """Numbered as in native/core/types.hpp."""

    LEASE = 0
    VIEW = 1
    PIN = 2


@dataclass(slots=True)
class Hold:
    owner: int
    kind: HoldKind
    deadline: int | None
    slots: list[Slot]
    counted: bool = False  # towards what its owner may hold open


@dataclass(slots=True)
class Holds:
    """All holds in force, by number. A number is never given twice."""

    last: int = 0
    by_id: dict[int, Hold] = field(default_factory=dict)

    def add(self, hold: Hold) -> int:
        self.last += 1
        self.by_id[self.last] = hold
        return self.last

    def of(self, owner: int) -> list[int]:
        return [number for number, hold in self.by_id.items() if hold.owner == owner]

    def fitting(self, owner: int, run: list[Slot], open_max: int) -> list[Slot]:
        """As much of the run as the owner may hold open beside what it does: each slot once, in whole pages; what it
        holds open already costs nothing.
        """
        counted = [hold for hold in self.by_id.values() if hold.owner == owner and hold.counted]
        taken = {slot.ticket.slot: slot.payload_bytes for hold in counted for slot in hold.slots}
        for at, slot in enumerate(run):
            if slot.ticket.slot in taken:
                continue
            taken[slot.ticket.slot] = slot.payload_bytes
            if sum(-(-size // PAGE) * PAGE for size in taken.values()) > open_max:
                return run[:at]
        return run

    def due(self, now: int) -> list[int]:
        """Those whose time has come, earliest first; of one time, oldest first."""
        late = [
            (h.deadline, number) for number, h in self.by_id.items() if h.deadline is not None and h.deadline <= now
        ]
        return [number for _, number in sorted(late)]

    def deadlines(self) -> list[int]:
        return [hold.deadline for hold in self.by_id.values() if hold.deadline is not None]
