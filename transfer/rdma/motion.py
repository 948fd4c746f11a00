"""Batches of an RDMA connection, and the windows they go through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from transfer.base import Presented
from transfer.batch import Table
from transfer.native import RdmaJob
from transfer.outcome import report_of
from transfer.pending import Pending
from transfer.plan import Plan

__all__ = ["Motion", "ShownGrant", "Window", "windows_of"]

Window = tuple[int, int, list[int]]  # access, base, a key a device of the peer's


@dataclass(frozen=True, slots=True)
class ShownGrant:
    """A presented grant. `presented` None: it has ended. `access`: a number of its own, in the engine."""

    presented: Presented | None
    access: int
    slot: int
    generation: int
    base: int
    starts: npt.NDArray[np.int64]  # of its ranges
    keys: tuple[tuple[int, ...], ...]  # a range, a device


def windows_of(
    rows: Table, handles: Sequence[int], shown: Mapping[int, ShownGrant]
) -> tuple[list[Window], npt.NDArray[np.int64]]:
    """The ranges that rows touch, as windows, and each row's. Rows lie within one range each."""
    windows: list[Window] = []
    of_rows = np.zeros(len(rows), dtype=np.int64)
    for handle in handles:
        grant = shown[handle]
        mine = np.flatnonzero(rows[:, 2] == handle)
        at = np.searchsorted(grant.starts, rows[mine, 3], side="right") - 1
        used, index = np.unique(at, return_inverse=True)
        of_rows[mine] = len(windows) + index
        windows += [(grant.access, grant.base, list(grant.keys[i])) for i in used.tolist()]
    return windows, of_rows


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """A batch under way."""

    pending: Pending
    job: RdmaJob
    plan: Plan
    settled: Callable[[Pending], None]

    def finished(self) -> None:
        """Nothing touches anything of the job any more."""
        self.settled(self.pending)
        self.pending.quiet(report_of(self.job, self.plan))
