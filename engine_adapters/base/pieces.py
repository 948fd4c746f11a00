"""Where the blocks of one cache group lie in an engine's memory, as extents of the store. Pure arithmetic.

An engine has a block as pieces in several buffers: one a layer, or one for all layers, or one a layer and head. In the
store a block is its layers one after the other; inside a layer its pieces in the order of their addresses, which is
the same for every block and part of the layout's fingerprint.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["LayerPlace", "Pieces", "runs"]


class LayerPlace(NamedTuple):
    """A layer's cache: block b begins at offset + b * stride of buffer `buffer`; `shape` and `strides` (both of what
    is inside a block; strides in bytes) say where its bytes are from there.
    """

    buffer: int
    offset: int
    stride: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    item_bytes: int


def runs(place: LayerPlace) -> tuple[tuple[int, ...], int]:
    """The contiguous runs of one block: where they begin, in order of address, and the bytes of each."""
    axes = sorted(
        ((stride, size) for stride, size in zip(place.strides, place.shape, strict=True) if size != 1), reverse=True
    )
    length = place.item_bytes
    while axes and axes[-1][0] == length:
        length *= axes.pop()[1]
    starts = [range(0, stride * size, stride) for stride, size in axes]
    if any(stride < length for stride, _ in axes):
        raise ValueError("pieces of a block overlap")
    return tuple(sum(start) for start in itertools.product(*starts)), length


@dataclass(frozen=True, slots=True)
class Pieces:
    """Of one group. rows: int64 (k, 5), of each piece its buffer, offset, length, block stride, and which of the
    engine's blocks it is of (`ratio` of them make one of the store's). cuts: (layers + 1,) rows before each layer.
    """

    buffers: Sequence[object]
    rows: npt.NDArray[np.int64]
    cuts: tuple[int, ...]
    ratio: int

    @classmethod
    def of(cls, buffers: Sequence[object], layers: Sequence[LayerPlace], ratio: int = 1) -> Pieces:
        rows: list[tuple[int, int, int, int, int]] = []
        cuts = [0]
        for place in layers:
            starts, length = runs(place)
            for sub in range(ratio):
                rows += [(place.buffer, place.offset + start, length, place.stride, sub) for start in starts]
            cuts.append(len(rows))
        return cls(buffers, np.array(rows, dtype=np.int64).reshape(-1, 5), tuple(cuts), ratio)

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """Of one of the store's blocks."""
        lengths = self.rows[:, 2]
        return tuple(int(lengths[a:b].sum()) for a, b in itertools.pairwise(self.cuts))

    def table(
        self, blocks: Sequence[int] | npt.NDArray[np.int64], first: int = 0, end: int | None = None
    ) -> npt.NDArray[np.int64]:
        """Extents of layers first..end of these blocks: (n, k, 3) of buffer, offset, length.

        blocks: (n * ratio,) the engine's block numbers, in order. Neighbouring pieces are one, so that an engine that
        keeps all layers of a block together is read in one piece.
        """
        last = len(self.cuts) - 1 if end is None else end
        rows = _joined(self.rows[self.cuts[first] : self.cuts[last]])
        numbers = np.asarray(blocks, dtype=np.int64).reshape(-1, self.ratio)
        table = np.empty((numbers.shape[0], rows.shape[0], 3), dtype=np.int64)
        table[:, :, 0] = rows[:, 0]
        table[:, :, 1] = rows[:, 1] + numbers[:, rows[:, 4]] * rows[:, 3]
        table[:, :, 2] = rows[:, 2]
        return table


def _joined(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Pieces that follow one another in memory, in every block, made one."""
    if rows.shape[0] < 2:
        return rows
    before, after = rows[:-1], rows[1:]
    same = (before[:, [0, 3, 4]] == after[:, [0, 3, 4]]).all(axis=1)
    starts = np.flatnonzero(np.append(True, ~(same & (before[:, 1] + before[:, 2] == after[:, 1]))))
    joined = rows[starts].copy()
    joined[:, 2] = np.add.reduceat(rows[:, 2], starts)
    return joined
