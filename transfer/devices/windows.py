"""How a batch with device memory in it is cut into windows of a staging buffer each, and their answers made one. Pure.

  batch     |-----e0-----|--e1--|------------e2------------|-e3-|    extents, laid end to end: *positions*
  slices    |----s0----|----s1----|-----s2-----|-----s3----|-s4-|    as planned: cut at leaves, never across regions
  windows   |---------w0----------|-----w1-----|-------w2-------|    slices together, as many as a buffer holds
  buffer    byte p of the batch lies at p - (its window's position); rows of host memory keep their place there empty

Rules
- Leaves are whole in one window, so a window's own digests are the batch's.
- A window's parts are what it has of the batch's parts; a part that lies in several is put together from its leaves.
- What landed is told extent by extent; an extent with a byte in a window that failed has not arrived.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from transfer.base import LEAF_BYTES, Landed
from transfer.batch import Batch, Table
from transfer.errors import Reason, TransferError
from transfer.pending import NO_DIGESTS, Report
from transfer.plan import Plan

__all__ = ["BUFFER_BYTES_MIN", "Gathered", "Window", "slice_bytes_for", "windows_of"]

BUFFER_BYTES_MIN = 64 << 10
_Digests = npt.NDArray[np.uint64]
_POSITION, _FIRST, _END = range(3)  # of Plan.slices


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """`rows` as in a batch. `copies` (n, 4): local region, offset there, offset in the buffer, length; of device memory
    only, joined where they touch. `parts`: lengths, none without digests.
    """

    index: int
    position: int
    bytes: int
    rows: Table
    copies: Table
    parts: tuple[int, ...]

    def batch(self, staged: Collection[int], staging: int) -> Batch:
        """With the rows of the regions in `staged` in region `staging` instead."""
        table = self.rows.copy()
        here = np.isin(table[:, 0], list(staged))
        table[here, 0] = staging
        table[here, 1] = _starts(table[:, 4])[:-1][here]
        return Batch(table)

    def copies_of(self, arrived: npt.NDArray[np.bool_], staged: Collection[int]) -> Table:
        """Those of the rows that arrived."""
        return _copies(self.rows, arrived & np.isin(self.rows[:, 0], list(staged)))


def slice_bytes_for(buffer_bytes: int) -> int:
    """For transfer.plan, so that no slice is larger than a buffer: one may exceed what is asked for by a quarter."""
    if buffer_bytes < BUFFER_BYTES_MIN:
        raise ValueError(f"buffer_bytes must be at least {BUFFER_BYTES_MIN} for batches, not {buffer_bytes}")
    return buffer_bytes // 5 * 4


def windows_of(made: Plan, staged: Collection[int], buffer_bytes: int) -> list[Window]:
    """`made` with slices of at most buffer_bytes; `staged`: the local regions that lie on a device."""
    slices = made.slices
    ends = np.append(slices[1:, _POSITION], made.batch.bytes)[: len(slices)]
    cuts = np.append(0, np.cumsum(made.parts)) if len(made.parts) else None
    found: list[Window] = []
    first = 0
    while first < len(slices):
        position = int(slices[first, _POSITION])
        last = max(int(np.searchsorted(ends, position + buffer_bytes, side="right")), first + 1)
        rows = made.rows[int(slices[first, _FIRST]) : int(slices[last - 1, _END])]
        end = int(ends[last - 1])
        copies = _copies(rows, np.isin(rows[:, 0], list(staged)))
        parts = () if cuts is None else _pieces(cuts, position, end)
        found.append(Window(len(found), position, end - position, rows, copies, parts))
        first = last
    return found


def _starts(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    starts: npt.NDArray[np.int64] = np.append(0, np.cumsum(lengths))
    return starts


def _copies(rows: Table, chosen: npt.NDArray[np.bool_]) -> Table:
    made = np.empty((int(chosen.sum()), 4), dtype=np.int64)
    made[:, 0], made[:, 1], made[:, 3] = rows[chosen, 0], rows[chosen, 1], rows[chosen, 4]
    made[:, 2] = _starts(rows[:, 4])[:-1][chosen]
    if len(made) < 2:
        return made
    before, after = made[:-1], made[1:]
    touches = (
        (before[:, 0] == after[:, 0])
        & (before[:, 1] + before[:, 3] == after[:, 1])
        & (before[:, 2] + before[:, 3] == after[:, 2])
    )
    first = np.flatnonzero(np.concatenate(((True,), ~touches)))
    joined = made[first].copy()
    joined[:, 3] = np.add.reduceat(made[:, 3], first)
    return joined


def _pieces(cuts: npt.NDArray[np.int64], start: int, end: int) -> tuple[int, ...]:
    inside = cuts[(cuts > start) & (cuts < end)]
    bounds = np.unique(np.concatenate(((start,), inside, (end,))))
    return tuple(np.diff(bounds).tolist())


class Gathered:
    """What the windows have answered so far."""

    def __init__(self, made: Plan, windows: Sequence[Window]) -> None:
        self._made = made
        self._windows = windows
        self._landed: dict[int, Landed] = {}
        self._parts: dict[int, _Digests] = {}  # checksums of pieces, also where only some rows arrived
        self._reasons = np.full(len(made.batch), Reason.LANDED, dtype=np.uint8)
        self._starts = made.starts

    def landed(self, window: Window, told: Landed) -> None:
        """All of it is where it belongs."""
        self._landed[window.index] = told
        self._parts[window.index] = told.checksums

    def failed(self, window: Window, error: TransferError) -> None:
        """What arrived by it is where it belongs."""
        self._parts[window.index] = error.checksums
        ends = window.position + _starts(window.rows[:, 4])
        for failure in error.failures:
            for row in failure.extents:
                self._mark(int(ends[row]), int(ends[row + 1]), failure.reason)

    def lost(self, window: Window, reason: Reason) -> None:
        """Nothing of it counts as arrived."""
        self._parts[window.index] = NO_DIGESTS
        self._mark(window.position, window.position + window.bytes, reason)

    def report(self, otherwise: Reason) -> Report:
        """`otherwise`: why the windows that said nothing did not land."""
        for window in self._windows:
            if window.index not in self._parts:
                self.lost(window, otherwise)
        whole = len(self._landed) == len(self._windows)
        leaves = NO_DIGESTS
        if whole and len(self._made.parts):
            leaves = np.concatenate([NO_DIGESTS, *(self._landed[i].leaves for i in range(len(self._windows)))])
        reasons = None if whole else self._reasons
        return Report(self._made.batch.bytes, reasons, self._checksums(), leaves)

    def _mark(self, start: int, end: int, reason: Reason) -> None:
        low = int(np.searchsorted(self._starts, start, side="right")) - 1
        high = int(np.searchsorted(self._starts, end, side="left"))
        touched = self._reasons[low:high]
        touched[np.diff(self._starts[low : high + 1]) > 0] = reason

    def _checksums(self) -> _Digests:
        """A part's; 0 unless all of it arrived."""
        parts = self._made.parts
        if not len(parts):
            return NO_DIGESTS
        checksums = np.zeros(len(parts), dtype=np.uint64)
        starts = _starts(parts)
        split: dict[int, list[_Digests] | None] = {}  # parts that lie in several windows: their leaves, None if lost
        for window in self._windows:
            told, landed = self._parts[window.index], self._landed.get(window.index)
            pieces = np.array(window.parts, dtype=np.int64)
            of = np.searchsorted(starts, window.position + _starts(pieces)[:-1], side="right") - 1
            whole = pieces == parts[of]
            if len(told):
                checksums[of[whole]] = told[whole]
            leaves = _starts(-(-pieces // LEAF_BYTES))
            for i in np.flatnonzero(~whole).tolist():
                known = split.setdefault(int(of[i]), [])
                if landed is None:
                    split[int(of[i])] = None
                elif known is not None:
                    known.append(landed.leaves[leaves[i] : leaves[i + 1]])
        for part, found in split.items():
            checksums[part] = folded(np.concatenate(found)) if found is not None else 0
        checksums[parts == 0] = folded(NO_DIGESTS)
        return checksums


def folded(leaves: _Digests) -> int:
    """A part's checksum: XXH3-64 over its leaves' digests, little-endian."""
    return xxhash.xxh3_64_intdigest(leaves.astype("<u8").tobytes())
