"""Pairs of extents, packed. A batch of ten thousand costs one array, not twenty thousand objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["COLUMNS", "EXTENTS_MAX", "Batch", "Extent", "Table", "dense"]

Table = npt.NDArray[np.int64]
Column = npt.NDArray[np.int64] | int
COLUMNS = 5  # local region, local offset, remote region, remote offset, length
EXTENTS_MAX = 65_536  # pairs in one batch


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes of a region, from `offset`."""

    region: int
    offset: int
    length: int


def _sum(lengths: Table) -> int:
    """As Python numbers where int64 could overflow."""
    if len(lengths) == 0 or int(lengths.max()) < (1 << 63) // EXTENTS_MAX:
        return int(lengths.sum())
    return sum(map(int, lengths))


class Batch:
    """Pairs of a local and a remote extent of the same length, in order.

    `table` is (n, 5) int64: local region, local offset, remote region, remote offset, length; not copied, so leave it
    alone while it is in motion. No field is negative, and n is at most EXTENTS_MAX.
    """

    __slots__ = ("bytes", "table")

    def __init__(self, table: Table) -> None:
        if table.ndim != 2 or table.shape[1] != COLUMNS or table.dtype != np.int64:
            raise ValueError(f"table must be an int64 array of shape (n, {COLUMNS}), not {table.dtype} {table.shape}")
        if len(table) > EXTENTS_MAX:
            raise ValueError(f"table has {len(table)} extents; extents_max is {EXTENTS_MAX}")
        if len(table) and int(table.min()) < 0:
            raise ValueError("table must have no negative field")
        self.table: Table = np.ascontiguousarray(table)
        self.bytes: int = _sum(self.table[:, 4])

    def renamed(self, locals_at: Column, remotes_at: Column) -> Batch:
        """The same batch with other region columns, none negative."""
        table = self.table.copy()
        table[:, 0] = locals_at
        table[:, 2] = remotes_at
        made = Batch.__new__(Batch)
        made.table = table
        made.bytes = self.bytes
        return made

    def __len__(self) -> int:
        return len(self.table)

    @classmethod
    def of(cls, pairs: Iterable[tuple[Extent, Extent]]) -> Batch:
        """From (local, remote) pairs. Raises ValueError naming the pair whose lengths differ."""
        rows: list[tuple[int, int, int, int, int]] = []
        for i, (local, remote) in enumerate(pairs):
            if local.length != remote.length:
                raise ValueError(f"pairs[{i}]: {local.length} bytes here and {remote.length} there")
            rows.append((local.region, local.offset, remote.region, remote.offset, local.length))
        return cls(np.array(rows, dtype=np.int64).reshape(-1, COLUMNS))


def dense(ids: Table) -> tuple[list[int], Column]:
    """The distinct ids, ascending, and each row's index among them (0 where they are all one)."""
    if not len(ids):
        return [], 0
    first = int(ids[0])
    if len(ids) == 1 or bool((ids == first).all()):
        return [first], 0
    distinct, index = np.unique(ids, return_inverse=True)
    return distinct.tolist(), index
