"""What came of reading leased blocks: where each was to be found, and which of them are what the node says they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    from kvstore.wire import framed

__all__ = ["Read", "leading", "remote_starts", "verified"]


class Read(NamedTuple):
    """What came of reading leased blocks: those that arrived whole, in order, and verified. corrupt: the index of one
    that did not verify. late: the deadline passed. failure: why it went no further; "" where nothing failed.
    """

    blocks: int
    corrupt: int | None = None
    late: bool = False
    failure: str = ""


def remote_starts(lease: framed.LeaseResponse, lengths: npt.NDArray[np.int64], skipped: int) -> npt.NDArray[np.int64]:
    """Where each piece of leased blocks begins at the node. lengths: (pieces of all blocks,). skipped: bytes of each
    block before the first piece.
    """
    lengths = lengths.reshape(len(lease.offsets), -1)
    starts = np.array(lease.offsets, dtype=np.uint64).astype(np.int64) + skipped
    told: npt.NDArray[np.int64] = (starts[:, None] + np.cumsum(lengths, axis=1) - lengths).reshape(-1)
    return told


def leading(good: npt.NDArray[np.bool_]) -> int:
    """How many are good before the first that is not."""
    return len(good) if good.all() else int(np.argmin(good))


def verified(
    whole: int,
    sums: npt.NDArray[np.uint64],
    lease: framed.LeaseResponse,
    wanted: range,
    *,
    verify: bool,
    late: bool = False,
    failure: str = "",
) -> Read:
    if not verify or whole == 0:
        return Read(whole, None, late, failure)
    expected = np.frombuffer(lease.checksums, dtype="<u8").reshape(len(lease.offsets), -1)[:whole]
    expected = expected[:, wanted.start : wanted.stop]
    found = sums.reshape(len(lease.offsets), -1)[:whole]
    if failure:  # 0: of what arrived, nobody has said what it is (transfer.devices.hashed)
        whole = leading(((found == expected) | (found != 0)).all(axis=1))
        if whole == 0:
            return Read(0, None, late, failure)
        expected, found = expected[:whole], found[:whole]
    good = (found == expected).all(axis=1)
    blocks = leading(good)
    return Read(blocks, None if blocks == whole else blocks, late, failure)
