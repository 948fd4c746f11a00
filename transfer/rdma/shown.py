"""Grants that were shown to an RDMA connection, and the windows through which its batches go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transfer.base import Presented
from transfer.batch import Table

__all__ = ["ShownGrant", "Window", "windows_of"]

Window = tuple[int, int, list[int]]  # access, base, a key a device of the peer's


@dataclass(frozen=True, slots=True)
class ShownGrant:
    """A presented grant. `over`: by the loop's clock, when its time is over at the latest. `access`: a number of its
    own, in the engine.
    """

    presented: Presented
    over: float
    access: int
    base: int
    starts: npt.NDArray[np.int64]  # of its ranges
    keys: tuple[tuple[int, ...], ...]  # a range, a device


def windows_of(rows: Table, shown: Sequence[ShownGrant]) -> tuple[list[Window], npt.NDArray[np.int64]]:
    """The ranges that rows touch, as windows, and each row's. Rows name grants by their index, and lie within one range
    each.
    """
    windows: list[Window] = []
    of_rows = np.zeros(len(rows), dtype=np.int64)
    for index, grant in enumerate(shown):
        mine = np.flatnonzero(rows[:, 2] == index)
        at = np.searchsorted(grant.starts, rows[mine, 3], side="right") - 1
        used, of_used = np.unique(at, return_inverse=True)
        of_rows[mine] = len(windows) + of_used
        windows += [(grant.access, grant.base, list(grant.keys[i])) for i in used.tolist()]
    return windows, of_rows
