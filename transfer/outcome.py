"""What came of a batch that native code moved, slice by slice, told extent by extent."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from transfer.errors import Reason
from transfer.pending import NO_DIGESTS, Report
from transfer.plan import Plan

__all__ = ["Moved", "report_of"]


class Moved(Protocol):
    """A finished native job."""

    @property
    def whole(self) -> bool: ...

    def states(self) -> npt.NDArray[np.uint8]:
        """A Reason a slice."""
        ...

    def leaves(self) -> npt.NDArray[np.uint64]: ...

    def checksums(self) -> npt.NDArray[np.uint64]: ...


def report_of(job: Moved, made: Plan) -> Report:
    moved = made.batch.bytes
    if job.whole:
        if not len(made.parts):
            return Report(moved, None, NO_DIGESTS, NO_DIGESTS)
        return Report(moved, None, job.checksums(), job.leaves())
    states = job.states()
    reasons = np.full(len(made.batch), Reason.LANDED, dtype=np.uint8)
    for code in np.unique(states).tolist():
        if code != Reason.LANDED:
            reasons[made.extents_of(states == code)] = code
    return Report(moved, reasons, job.checksums(), job.leaves())
