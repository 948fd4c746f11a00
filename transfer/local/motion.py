"""Batches of a local connection: what they point at, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from transfer.base import Presented
from transfer.batch import Batch
from transfer.errors import Reason
from transfer.native import CopyJob, MappedSegment, RemoteSpan
from transfer.pending import NO_DIGESTS, Pending, Report
from transfer.plan import Plan

__all__ = ["Motion", "Resolved", "Shown", "dense", "report_of"]


@dataclass(frozen=True, slots=True)
class Shown:
    """A presented grant: natively, and what keeps its mapping alive."""

    presented: Presented
    span: RemoteSpan
    segment: MappedSegment
    region: int


class Settles(Protocol):
    def settled(self, motion: Motion) -> None: ...


@dataclass(frozen=True, slots=True)
class Resolved:
    """A batch whose region columns are indexes of `spans` and `remotes`, all of it within bounds."""

    batch: Batch
    writing: bool
    spans: Sequence[tuple[int, int, bool]]  # address, bytes, writable
    remotes: Sequence[RemoteSpan]
    kept: tuple[Shown, ...]

    def job(self, cut: Plan, deadline_ns: int) -> CopyJob:
        return CopyJob(self.writing, self.spans, self.remotes, cut.rows, cut.slices, cut.parts, deadline_ns)


@dataclass(slots=True, eq=False)
class Motion:
    """A batch under way: the job, what it points at, and who is told."""

    endpoint: Settles
    pending: Pending
    job: CopyJob
    plan: Plan
    kept: tuple[Shown, ...]

    def back(self) -> None:
        """No thread touches anything of the job any more."""
        self.endpoint.settled(self)
        self.pending.quiet(report_of(self.job, self.plan))


def report_of(job: CopyJob, made: Plan) -> Report:
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


def dense(ids: npt.NDArray[np.int64]) -> tuple[list[int], npt.NDArray[np.int64] | int]:
    """The distinct ids, ascending, and each row's index among them (0 where they are all one)."""
    if not len(ids):
        return [], 0
    first = int(ids[0])
    if len(ids) == 1 or bool((ids == first).all()):
        return [first], 0
    distinct, index = np.unique(ids, return_inverse=True)
    return distinct.tolist(), index
