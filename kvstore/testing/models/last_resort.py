"""Who goes when no leaf may: all of them are held or being written. The twin of slot_table_room.cpp's last resort."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvstore.testing.models.lifecycle import Slot

__all__ = ["chain_up", "last_resorts"]

ParentOf = Callable[[Slot], Slot | None]


def last_resorts(usable: Sequence[Slot], own: Sequence[Slot], parent_of: ParentOf) -> list[int]:
    """What lies below goes from the beginning, others from their end, one's own not at all. The order is looked up once
    for many, so it is told here and not asked for.
    """
    ranks: dict[int, tuple[int, int]] = {}
    for slot in usable:
        parent = parent_of(slot)
        if slot.clean and (parent is None or parent.clean):
            ranks[slot.ticket.slot] = (0, slot.position)
        elif slot not in own:
            ranks[slot.ticket.slot] = (1, -slot.position)
    return sorted(ranks, key=lambda at: ranks[at])


def chain_up(slot: Slot | None, parent_of: ParentOf) -> list[Slot]:
    """It and its ancestors. Opaque keys may name each other in a circle."""
    chain: list[Slot] = []
    while slot is not None and slot not in chain:
        chain.append(slot)
        slot = parent_of(slot)
    return chain
