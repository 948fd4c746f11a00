"""Leased blocks read in the calling thread: where few bytes move, waking other threads takes longer than moving them.

Rules
- Nothing is registered, presented or kept: the memory is the caller's, who waits, and the grant is told by the request.
- It is a short cut and nothing else: what does not come whole within AT_ONCE_S is asked for anew as everything is
  (kvstore.client.ways), which also finds out what is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore.client.landed import Read, remote_starts, verified
from kvstore.client.spans import spans_of
from transfer.errors import TransferFault

if TYPE_CHECKING:
    from kvstore.client.buffers import Places
    from kvstore.client.ways import Reached
    from kvstore.wire import framed

__all__ = ["read_at_once"]

AT_ONCE_S: Final = 0.05  # the calling thread hears of nothing else meanwhile, such as Ctrl-C
BYTES_MAX: Final = 64 << 10  # native/tcp/job.hpp: what a thread moves itself
PIECES_MAX: Final = 64


def read_at_once(
    reached: Reached,
    lease: framed.LeaseResponse,
    places: Places,
    part_bytes: Sequence[int],
    wanted: range,
    *,
    verify: bool,
    deadline_s: float,
) -> Read | None:
    """As Ways.read does. None: not in this way, and nothing touches the memory."""
    if places.devices:  # which native code cannot touch
        return None
    blocks, parts = len(lease.offsets), part_bytes[wanted.start : wanted.stop]
    if blocks * sum(parts) > BYTES_MAX or blocks * places.pieces > PIECES_MAX:
        return None
    spans = spans_of(places.memories)
    addresses = places.addresses.astype(np.int64)
    table = np.zeros((len(addresses), 5), dtype=np.int64)
    if len(spans) > 1:
        starts = np.array([span.start for span in spans], np.int64)
        table[:, 0] = np.searchsorted(starts, addresses, side="right") - 1
        table[:, 1] = addresses - starts[table[:, 0]]
    else:
        table[:, 1] = addresses - spans[0].start
    table[:, 4] = np.resize(places.lengths.astype(np.int64), len(addresses))
    table[:, 3] = remote_starts(lease, table[:, 4], sum(part_bytes[: wanted.start]))
    try:
        landed = reached.fetching.read_at_once(
            lease.descriptor,
            [(span.start, span.end - span.start) for span in spans],
            table,
            deadline_s=min(deadline_s, AT_ONCE_S),
            parts=list(parts) * blocks if verify else None,
        )
    except TransferFault:
        return None
    return None if landed is None else verified(blocks, landed.checksums, lease, wanted, verify=verify)
