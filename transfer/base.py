"""What every way of moving bytes promises: one-sided, in batches, between registered regions.

Rules
- An answer means quiet memory. When a transfer has answered, in whatever way, nothing can touch the local memory that
  was lent to it: the engine may reuse it at once. A cancelled `await` lets the cancellation through only then, too.
- `quiesce_max_s` bounds that wait. Past it the answer says `poisoned`, and so do the local regions, whose owner is
  told: that memory must be neither reused nor freed until the process ends.
- The owner's Python takes no part while bytes move.
- Nothing moves outside what was granted, after the grant has ended, or for a peer that was not given the descriptor.
- Durations travel, never clock times.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transfer.batch import Batch, Extent
from transfer.grants import Grant, Rights
from transfer.regions import Region

__all__ = ["Batch", "Endpoint", "Extent", "Grant", "Landed", "Presented", "Region", "Rights", "Transfer", "Transport"]

LEAF_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Landed:
    """All of a batch has arrived.

    With `parts` (lengths that cut the batch's bytes, laid end to end): `leaves` holds the XXH3-64 of each 4 KiB leaf of
    each part, a part's last leaf short, and `checksums` the XXH3-64 of each part's leaves. Empty without.
    """

    bytes: int
    checksums: npt.NDArray[np.uint64]
    leaves: npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Presented:
    """A peer's grant in our hands. `handle` is the region in remote extents; offsets count from the region's start."""

    handle: int
    rights: Rights
    ranges: tuple[tuple[int, int], ...]  # (offset, length), sorted, disjoint
    region_bytes: int

    def extent(self, offset: int, length: int) -> Extent:
        return Extent(self.handle, offset, length)


class Transfer(Awaitable[Landed], Protocol):
    """Bytes in motion. Awaiting gives `Landed` or raises TransferFailed, TransferLate or TransferCancelled.

    It moves whether awaited or not. It has one awaiter: cancelling that task cancels the transfer.
    """

    @property
    def done(self) -> bool: ...

    def cancel(self) -> None:
        """Asks for an early end. The answer still comes only when memory is quiet, and may be `Landed`."""
        ...


class Endpoint(Protocol):
    """A connection to one peer. `read` and `write` begin at once and return without waiting."""

    @property
    def incarnation(self) -> bytes:
        """Of the peer's transport: 16 bytes, others for each life of it. Its grants carry them."""
        ...

    async def present(
        self, descriptors: Sequence[bytes], *, deadline_s: float, fresh: bool = False
    ) -> Sequence[Presented]:
        """Shows the peer's grants to the peer. Raises GrantInvalid or PeerUnreachable.

        fresh: the caller has just been given these by the peer, and may learn from its first batch (REVOKED) that one
        opens nothing. A transport whose requests prove their grants themselves (TCP) then asks nobody, and does not
        wait.
        """
        ...

    def read(self, batch: Batch, *, deadline_s: float, parts: Sequence[int] | None = None) -> Transfer:
        """From the peer's memory to ours. Raises LimitReached or RegionPoisoned before anything moves."""
        ...

    def write(self, batch: Batch, *, deadline_s: float) -> Transfer:
        """From our memory to the peer's."""
        ...

    async def close(self) -> None:
        """Cancels what is in motion and waits for quiet memory."""
        ...


class Transport(Protocol):
    """One way of moving bytes, in one process."""

    @property
    def incarnation(self) -> bytes:
        """Of this transport, as endpoints that lead to it tell it."""
        ...

    @property
    def address(self) -> str:
        """What a peer gives to `connect`."""
        ...

    async def register(
        self,
        memory: object,
        *,
        name: str = "",
        writable: bool = True,
        on_poison: Callable[[Region], None] | None = None,
    ) -> Region:
        """Makes memory (a buffer, an array, a mapped segment) usable in extents. It is held until deregistered."""
        ...

    async def register_lent(self, memory: object, *, name: str) -> Region:
        """Host memory that peers read, and no transfer of ours: a NIC is shown nothing of it but what is granted."""
        ...

    async def deregister(self, region: Region) -> None:
        """Ends its grants and transfers, waits for quiet memory, lets it go. Raises RegionPoisoned past the wait."""
        ...

    async def grant(
        self, region: Region, ranges: Sequence[tuple[int, int]], *, rights: Rights = Rights.READ, lifetime_s: float
    ) -> Grant:
        """Lets whoever holds the descriptor touch the ranges (offset, length), until the lifetime is over."""
        ...

    async def revoke(self, grants: Sequence[Grant]) -> None:
        """No touch begins any more; returns when none is under way. Raises StillTouched past quiesce_max_s."""
        ...

    async def connect(self, address: str, *, deadline_s: float) -> Endpoint:
        """Raises PeerUnreachable."""
        ...

    async def close(self) -> None:
        """Closes endpoints, ends grants, deregisters."""
        ...
