"""Batches of a TCP connection, and the grants they go by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from transfer.base import Presented
from transfer.grants import Descriptor
from transfer.native import TcpJob
from transfer.outcome import report_of
from transfer.pending import Pending
from transfer.plan import Plan

__all__ = ["Access", "Motion", "Shown", "access_of", "proof_of"]

PROOF_BYTES = 16
Access = tuple[int, int, bytes]  # slot, generation, proof


def proof_of(descriptor: bytes) -> bytes:
    """What a request shows of a descriptor: nobody can make it who was not given all of that."""
    return hashlib.sha256(descriptor).digest()[:PROOF_BYTES]


def access_of(parsed: Descriptor, descriptor: bytes) -> Access:
    return parsed.slot, parsed.generation, proof_of(descriptor)


@dataclass(frozen=True, slots=True)
class Shown:
    """A presented grant. over: by the loop's clock, when its time is over at the latest."""

    presented: Presented
    access: Access
    over: float


@dataclass(frozen=True, slots=True, eq=False)
class Motion:
    """A batch under way."""

    pending: Pending
    job: TcpJob
    plan: Plan
    settled: Callable[[Pending], None]

    def finished(self) -> None:
        """No thread touches anything of the job any more."""
        self.settled(self.pending)
        self.pending.quiet(report_of(self.job, self.plan))
