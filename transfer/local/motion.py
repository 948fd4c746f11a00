"""Batches of a local connection: what they point at, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transfer.base import Presented
from transfer.batch import Batch
from transfer.native import CopyJob, MappedSegment, RemoteSpan
from transfer.outcome import report_of
from transfer.pending import Pending
from transfer.plan import Plan

__all__ = ["Motion", "Resolved", "Shown"]


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
