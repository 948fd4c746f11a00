"""A payload segment: bytes that the node hands out and that clients write on their own, sooner or later.

Every write says under which ticket it is made. `landed` is asked first whether that tenancy still has the bytes: a late
landing in a slot that somebody else owns is the one thing that no checksum taken before can undo. `lent` is asked the
same of what a peer reads by a grant, and `sealed` looks at what a node has read before it is sealed.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstore.testing.models.lifecycle import Slot, Ticket


class Memory:
    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.landed: Callable[[Ticket, int, int], None] = lambda _ticket, _offset, _size: None
        self.lent: Callable[[frozenset[Ticket], int, int], None] = lambda _tickets, _offset, _size: None
        self.sealed: Callable[[Slot], None] = lambda _slot: None

    def write(self, ticket: Ticket, offset: int, data: bytes) -> None:
        self.landed(ticket, offset, len(data))
        self.data[offset : offset + len(data)] = data

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.data[offset : offset + size])
