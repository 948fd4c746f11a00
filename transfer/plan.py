"""How a batch is cut: adjacent extents joined, large ones split, the slices striped over rails. Pure.

  batch   |----e0----|-e1-|------------e2------------|--e3--|     extents, laid end to end: *positions*
  rows    |------r0-------|------------r1------------|--r2--|     e0 and e1 touch on both sides; e3 is of another grant
  slices  |-----s0-----|------s1------|------s2------|--s3--|     about slice_bytes at most, never across regions
  rows    |-----r0-----|r1|----r2-----|------r3------|--r4--|     cut at the slices' borders

Rules
- Order is kept, so that of two extents with the same destination the later one stays the later within a rail.
- A slice begins at a row's border if one lies in the last quarter before its even share, else at a leaf's: every
  leaf is hashed by whoever copies the slice. Leaves are counted from each part's start; without parts, from the run's.
- A part lies in one remote region.
- Rails get consecutive slices, as many bytes as their weights say.
- Extents without bytes are in no slice. Where every extent is of about a slice's size, each is a slice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transfer.batch import Batch, Table

__all__ = ["SLICE_BYTES", "Plan", "plan"]

LEAF_BYTES = 4096
SLICE_BYTES = 2 << 20

# Columns of Plan.slices.
POSITION, ROW_FIRST, ROW_END, RAIL = range(4)
_ONE_SLICE: Table = np.array(((0, 0, 1, 0),), dtype=np.int64)
_NO_PARTS: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Plan:
    """`rows` (m, 5) as in a batch, cut so that each lies in one slice. `slices` (s, 4): position, first row, end row,
    rail. `parts`: lengths, empty without digests.
    """

    batch: Batch
    rows: Table
    slices: Table
    parts: npt.NDArray[np.int64]

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """The position of each extent, and the batch's end."""
        return _starts(self.batch)

    def extents_of(self, slices: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which extents have a byte in any of the marked slices."""
        starts = self.starts
        ends = np.append(self.slices[1:, POSITION], starts[-1])[: len(self.slices)]
        low = np.searchsorted(starts, self.slices[slices, POSITION], side="right") - 1
        high = np.searchsorted(starts, ends[slices], side="left")
        borders = np.zeros(len(starts), dtype=np.int64)  # +1 where marked extents begin, -1 where they end
        np.add.at(borders, low, 1)
        np.add.at(borders, high, -1)
        marked: npt.NDArray[np.bool_] = (np.cumsum(borders[:-1]) > 0) & (np.diff(starts) > 0)
        return marked


def plan(
    batch: Batch, *, slice_bytes: int = SLICE_BYTES, rails: Sequence[int] = (1,), parts: Sequence[int] | None = None
) -> Plan:
    """Cuts a batch for rails of the given weights. Raises ValueError naming `parts` where they do not fit the batch."""
    if slice_bytes < 2 * LEAF_BYTES:
        raise ValueError(f"slice_bytes must be at least {2 * LEAF_BYTES}, not {slice_bytes}")
    if not rails or min(rails) <= 0:
        raise ValueError("rails must be positive weights, at least one")
    if parts is not None and (sum(parts) != batch.bytes or (len(parts) and min(parts) < 0)):
        raise ValueError(f"parts must add up to the batch's {batch.bytes} bytes")
    lengths = _NO_PARTS if parts is None else np.array(parts, dtype=np.int64)
    if len(batch) == 1 and 0 < batch.bytes <= slice_bytes:
        return Plan(batch, batch.table, _ONE_SLICE, lengths)  # a single read should cost no more than its copy
    if _each_a_slice(batch, slice_bytes, parts):
        return _one_slice_each(batch, lengths, rails)
    rows, positions = _joined(batch.table, _starts(batch))
    if not len(rows):
        return Plan(batch, rows, _ONE_SLICE[:0], lengths)
    cuts = _cuts(rows, positions, batch.bytes, slice_bytes, lengths)
    rows, slices = _cut(rows, positions, batch.bytes, cuts)
    slices[:, RAIL] = _striped(cuts, batch.bytes, rails)
    return Plan(batch, rows, slices, lengths)


def _each_a_slice(batch: Batch, slice_bytes: int, parts: Sequence[int] | None) -> bool:
    """Whether every extent makes a good slice as it is, as blocks of one size do: nothing to join, nothing to cut."""
    if len(batch) == 0 or not slice_bytes // 2 <= batch.bytes // len(batch) <= slice_bytes:
        return False
    lengths = batch.table[:, 4]
    if int(lengths.min()) < slice_bytes // 2 or int(lengths.max()) > slice_bytes:
        return False
    return parts is None or (len(parts) == len(batch) and lengths.tolist() == list(parts))


def _one_slice_each(batch: Batch, parts: npt.NDArray[np.int64], rails: Sequence[int]) -> Plan:
    starts = _starts(batch)[:-1]
    slices = np.zeros((len(batch), 4), dtype=np.int64)
    slices[:, POSITION] = starts
    slices[:, ROW_END] = np.arange(1, len(batch) + 1)
    slices[:, ROW_FIRST] = slices[:, ROW_END] - 1
    if len(rails) > 1:
        slices[:, RAIL] = _striped(starts, batch.bytes, rails)
    return Plan(batch, batch.table, slices, parts)


def _starts(batch: Batch) -> npt.NDArray[np.int64]:
    starts = np.zeros(len(batch) + 1, dtype=np.int64)
    np.cumsum(batch.table[:, 4], out=starts[1:])
    return starts


def _joined(table: Table, starts: npt.NDArray[np.int64]) -> tuple[Table, npt.NDArray[np.int64]]:
    """Rows that touch on both sides made one. Returns them and their positions."""
    kept = table[:, 4] > 0
    if not kept.all():
        table, starts = table[kept], starts[:-1][kept]
    else:
        starts = starts[:-1]
    if not len(table):
        return table, starts
    before, after = table[:-1], table[1:]
    touches = (
        (before[:, 0] == after[:, 0])
        & (before[:, 2] == after[:, 2])
        & (before[:, 1] + before[:, 4] == after[:, 1])
        & (before[:, 3] + before[:, 4] == after[:, 3])
    )
    first = np.flatnonzero(np.concatenate(((True,), ~touches)))
    rows = table[first].copy()
    rows[:, 4] = np.add.reduceat(table[:, 4], first)
    return rows, starts[first]


def _cuts(
    rows: Table, positions: npt.NDArray[np.int64], total: int, slice_bytes: int, parts: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Positions at which slices begin, ascending, the first 0."""
    # Runs: rows of one remote region.
    run_first = np.flatnonzero(np.concatenate(((True,), rows[1:, 2] != rows[:-1, 2])))
    run_start = positions[run_first]
    run_length = np.diff(np.append(run_start, total))
    grid = np.concatenate(((0,), np.cumsum(parts)[:-1])) if len(parts) else run_start
    if len(parts) and not np.isin(run_start, grid).all():
        raise ValueError("parts: one of them lies in two remote regions")
    shares = -(-run_length // slice_bytes)
    if int(shares.max()) == 1:
        return run_start
    run = np.repeat(np.arange(len(run_start)), shares)
    share = np.arange(len(run)) - np.repeat(np.cumsum(shares) - shares, shares)
    # Even shares: run_length * share / shares, without the product's overflow.
    quotient, rest = np.divmod(run_length[run], shares[run])
    target = run_start[run] + quotient * share + rest * share // shares[run]
    border = positions[np.searchsorted(positions, target, side="right") - 1]
    near = (target - border < slice_bytes // 4) & (_on_grid(border, grid) == border) & (border > run_start[run])
    cuts = np.where(near, border, _on_grid(target, grid))
    return np.unique(np.maximum(cuts, run_start[run]))


def _on_grid(positions: npt.NDArray[np.int64], grid: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The last leaf border at or before each position; leaves are counted from the grid's points."""
    start = grid[np.searchsorted(grid, positions, side="right") - 1]
    result: npt.NDArray[np.int64] = start + (positions - start) // LEAF_BYTES * LEAF_BYTES
    return result


def _cut(rows: Table, positions: npt.NDArray[np.int64], total: int, cuts: npt.NDArray[np.int64]) -> tuple[Table, Table]:
    """Rows cut at the slices' borders, and the slices (their rail still 0)."""
    starts = np.union1d(positions, cuts)
    source = np.searchsorted(positions, starts, side="right") - 1
    pieces = rows[source]
    into = starts - positions[source]
    pieces[:, 1] += into
    pieces[:, 3] += into
    pieces[:, 4] = np.diff(np.append(starts, total))
    slices = np.zeros((len(cuts), 4), dtype=np.int64)
    slices[:, POSITION] = cuts
    slices[:, ROW_FIRST] = np.searchsorted(starts, cuts)
    slices[:-1, ROW_END] = slices[1:, ROW_FIRST]
    slices[-1, ROW_END] = len(starts)
    return pieces, slices


def _striped(cuts: npt.NDArray[np.int64], total: int, rails: Sequence[int]) -> npt.NDArray[np.int64]:
    """A rail a slice: that in whose share of the batch the slice's middle lies."""
    if len(rails) == 1:
        return np.zeros(len(cuts), dtype=np.int64)
    middles = (cuts + np.append(cuts[1:], total)) / 2
    shares = np.cumsum(np.array(rails, dtype=np.float64))
    found: npt.NDArray[np.int64] = np.searchsorted(shares[:-1] / shares[-1] * total, middles, side="right")
    return found
