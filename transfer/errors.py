"""What can go wrong with bytes in motion, and what the caller can do about it.

What the caller itself got wrong is a `ValueError` or `TypeError` that names the argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Failure",
    "GrantInvalid",
    "LimitReached",
    "NotReached",
    "PeerUnreachable",
    "Reason",
    "RegionPoisoned",
    "StillTouched",
    "TransferCancelled",
    "TransferError",
    "TransferFailed",
    "TransferFault",
    "TransferLate",
]


class Reason(IntEnum):
    """Why bytes did not move: one number in native code, here and on the wire."""

    NONE = 0  # not tried, since others of the batch were refused at once
    LANDED = 1
    REVOKED = 2  # the peer took the grant back, or deregistered its region
    EXPIRED = 3  # the grant's time is over
    PEER_GONE = 4  # the connection has ended, or the peer stopped answering
    LATE = 5  # our deadline
    CANCELLED = 6
    DEREGISTERED = 7  # our own region is being taken back
    OUT_OF_BOUNDS = 8  # beyond a region, or beyond what was granted
    NOT_ALLOWED = 9  # a write into what may only be read, or a read of what may only be written
    DEVICE = 10  # our own device would not copy; never native code's, never on a wire

    @property
    def elsewhere(self) -> bool:
        """Whether another replica could still give the bytes: the fault is the peer's, not ours or the clock's."""
        return self in (Reason.REVOKED, Reason.EXPIRED, Reason.PEER_GONE)


class TransferFault(Exception):
    """Everything that this package raises of its own."""


class LimitReached(TransferFault):
    """Ask for less. `limit` is its name as the documentation writes it."""

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


class GrantInvalid(TransferFault):
    """A descriptor that does not parse, was not issued by this peer, or is no longer valid."""


class PeerUnreachable(TransferFault):
    """No connection, or no answer in time. Elsewhere is worth trying."""


class StillTouched(TransferFault):
    """A revoked grant: no touch begins any more, but one has not ended within `quiesce_max_s`. Its ranges must not be
    reused; revoking again waits again.
    """


class RegionPoisoned(TransferFault):
    """Something may still touch this memory, after `quiesce_max_s` of waiting. It must be neither reused nor freed."""


class NotReached(TransferFault, TypeError):
    """Memory that this transport does not get at where it lies, such as a device's. `why`: each way that it might, and
    what is in it. transfer.devices.staged moves it all the same.
    """

    def __init__(self, message: str, *, why: tuple[str, ...]) -> None:
        super().__init__(f"{message}: {'; '.join(why)}")
        self.why = why


@dataclass(frozen=True, slots=True)
class Failure:
    """Extents of one batch, by their index in it, that did not move for one reason."""

    reason: Reason
    extents: tuple[int, ...]

    @property
    def elsewhere(self) -> bool:
        return self.reason.elsewhere


class TransferError(TransferFault):
    """A batch did not land whole. Local memory is quiet, unless `poisoned`.

    `arrived[i]` says whether extent i is there in full. `checksums[k]` is part k's, 0 unless all of the part arrived;
    empty where no parts were asked for.
    """

    def __init__(
        self,
        message: str,
        *,
        failures: Sequence[Failure],
        arrived: npt.NDArray[np.bool_],
        checksums: npt.NDArray[np.uint64],
        poisoned: bool = False,
    ) -> None:
        super().__init__(message)
        self.failures = tuple(failures)
        self.arrived = arrived
        self.checksums = checksums
        self.poisoned = poisoned

    @property
    def elsewhere(self) -> bool:
        """Whether any of the failed extents is worth asking of another peer."""
        return any(failure.elsewhere for failure in self.failures)


class TransferFailed(TransferError):
    """Some extents were refused or lost."""


class TransferLate(TransferError):
    """The deadline passed first."""


class TransferCancelled(TransferError):
    """`cancel` was asked for, and it was in time."""
