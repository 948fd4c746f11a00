"""Transports that are wrong in one way each: an exam that passes them examines nothing."""

from __future__ import annotations

import asyncio

import numpy as np
import numpy.typing as npt

from transfer.batch import Batch
from transfer.errors import Reason
from transfer.local import LocalTransport
from transfer.local.motion import Motion
from transfer.pending import Report
from transfer.regions import Region
from transfer.testing.simulated import SimulatedTransport
from transfer.testing.wire import Bytes, Rows, SimulatedEndpoint, Work

__all__ = ["FAULTY_SIMULATED", "EagerLocalTransport"]


class _EagerEndpoint(SimulatedEndpoint):
    """Answers a stopped batch at once, while the wire still has its slices."""

    def flush(self, work: Work) -> None:
        out = dict(work.out)
        self.flushed(work)
        work.out.update(out)  # hardware knows nothing of the answer


class _DuplicatingEndpoint(SimulatedEndpoint):
    """Lands whatever comes back, also what it has had before."""

    def land(self, work: Work, number: int, reason: Reason, rows: Rows, data: Bytes | None) -> None:
        if number not in work.out and data is not None:
            self.store(work, rows, data)
        super().land(work, number, reason, rows, data)


class _CarelessEndpoint(SimulatedEndpoint):
    """Trusts the caller to stay within what was granted."""

    def refused(self, batch: Batch, regions: dict[int, Region], writing: bool) -> npt.NDArray[np.uint8] | None:
        return None


class _ShortEndpoint(SimulatedEndpoint):
    """Moves whole words only."""

    def store(self, work: Work, rows: Rows, data: Bytes) -> None:
        if len(data) % 8:
            data = data.copy()
            data[-(len(data) % 8) :] = 0
        super().store(work, rows, data)


class _EagerTransport(SimulatedTransport):
    endpoint_kind = _EagerEndpoint


class _DuplicatingTransport(SimulatedTransport):
    endpoint_kind = _DuplicatingEndpoint


class _CarelessTransport(SimulatedTransport):
    endpoint_kind = _CarelessEndpoint

    def admits(self, descriptor: bytes, rows: Rows, writing: bool) -> Reason:
        return Reason.NONE


class _ForgetfulTransport(SimulatedTransport):
    """Opens any grant that it ever gave, whatever came of it."""

    def admits(self, descriptor: bytes, rows: Rows, writing: bool) -> Reason:
        reason = super().admits(descriptor, rows, writing)
        return Reason.NONE if reason is Reason.REVOKED else reason


class _ShortTransport(SimulatedTransport):
    endpoint_kind = _ShortEndpoint


# Which of the exam's tests each must fail, at the least.
FAULTY_SIMULATED: dict[type[SimulatedTransport], tuple[str, ...]] = {
    _EagerTransport: (
        "test_cancelled_batches_are_quiet",
        "test_a_cancelled_task_ends_only_when_memory_is_quiet",
        "test_late_batches_are_quiet",
        "test_our_region_deregistered_in_flight",
        "test_closing_an_endpoint_ends_its_batches",
    ),
    _DuplicatingTransport: ("test_cancelled_batches_are_quiet", "test_peer_stopped_in_the_middle"),
    _CarelessTransport: ("test_nothing_moves_out_of_bounds", "test_rights_are_kept"),
    _ForgetfulTransport: ("test_revoked_grants_end", "test_expired_grants_end"),
    _ShortTransport: ("test_reads_are_exact_at_odd_offsets_and_sizes",),
}


class EagerLocalTransport(LocalTransport):
    """Answers a stopped batch at once, while a thread still copies it."""

    def stop(self, motion: Motion, reason: Reason) -> None:
        motion.endpoint.settled(motion)
        motion.pending.quiet(Report(0, np.full(len(motion.plan.batch), reason, dtype=np.uint8)))

    async def close(self) -> None:
        while self._motions:  # noqa: ASYNC110 - wrong in its tests, but not a crash after them
            await asyncio.sleep(0.001)
        await super().close()
