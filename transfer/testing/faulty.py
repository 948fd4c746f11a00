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

__all__ = ["FAULTY_SIMULATED", "EagerLocalTransport", "EagerSimulatedTransport", "ForgetfulSimulatedTransport"]


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


class _ZeroCopyEndpoint(SimulatedEndpoint):
    """Sends from memory that it has given back: a write holds what lies there when it arrives."""

    def serve(self, work: Work, number: int, rows: Rows, payload: Bytes | None) -> None:
        if payload is not None:
            payload = np.concatenate([work.local(row) for row in rows])
            work.out.setdefault(number, 0)
        super().serve(work, number, rows, payload)
        if payload is not None and work.pending.done:
            work.out.pop(number, None)


class _TwiceWritingEndpoint(SimulatedEndpoint):
    """Writes what comes a second time once more, however long ago it was answered."""

    def serve(self, work: Work, number: int, rows: Rows, payload: Bytes | None) -> None:
        known = number in work.out
        if payload is not None and not known:
            work.out[number] = 0
        super().serve(work, number, rows, payload)
        if payload is not None and not known:
            work.out.pop(number, None)


class _HopefulEndpoint(SimulatedEndpoint):
    """Takes a write that was sent often enough for one that arrived."""

    def give_up(self, work: Work, number: int) -> None:
        if work.writing:
            self.land(work, number, Reason.NONE, work.rows(work.out[number]), None)
        else:
            super().give_up(work, number)


class EagerSimulatedTransport(SimulatedTransport):
    endpoint_kind = _EagerEndpoint


class _DuplicatingTransport(SimulatedTransport):
    endpoint_kind = _DuplicatingEndpoint


class _CarelessTransport(SimulatedTransport):
    endpoint_kind = _CarelessEndpoint

    def admits(self, descriptor: bytes, rows: Rows, writing: bool) -> Reason:
        return Reason.NONE


class ForgetfulSimulatedTransport(SimulatedTransport):
    """Opens any grant that it ever gave, whatever came of it."""

    def admits(self, descriptor: bytes, rows: Rows, writing: bool) -> Reason:
        reason = super().admits(descriptor, rows, writing)
        return Reason.NONE if reason is Reason.REVOKED else reason


class _ShortTransport(SimulatedTransport):
    endpoint_kind = _ShortEndpoint


class _ZeroCopyTransport(SimulatedTransport):
    endpoint_kind = _ZeroCopyEndpoint


class _TwiceWritingTransport(SimulatedTransport):
    endpoint_kind = _TwiceWritingEndpoint


class _HopefulTransport(SimulatedTransport):
    endpoint_kind = _HopefulEndpoint


# Which of the exam's tests each must fail, at the least, and in which weather (tests/exam/test_transfer_simulated.py).
FAULTY_SIMULATED: dict[type[SimulatedTransport], tuple[str, tuple[str, ...]]] = {
    EagerSimulatedTransport: (
        "TestFoulWeather",
        (
            "test_cancelled_batches_are_quiet",
            "test_a_cancelled_task_ends_only_when_memory_is_quiet",
            "test_late_batches_are_quiet",
            "test_our_region_deregistered_in_flight",
            "test_closing_an_endpoint_ends_its_batches",
            "test_cancelled_writes_are_quiet",
            "test_a_cancelled_task_that_writes_is_quiet",
            "test_late_writes_are_quiet",
            "test_a_thousand_concurrent_writes",
            "test_writes_are_quiet_when_our_region_is_deregistered",
        ),
    ),
    _DuplicatingTransport: (
        "TestFoulWeather",
        ("test_cancelled_batches_are_quiet", "test_peer_stopped_in_the_middle"),
    ),
    _CarelessTransport: ("TestFairWeather", ("test_nothing_moves_out_of_bounds", "test_rights_are_kept")),
    ForgetfulSimulatedTransport: (
        "TestFoulWeather",
        (
            "test_revoked_grants_end",
            "test_expired_grants_end",
            "test_expired_in_the_middle",
            "test_writes_revoked_in_the_middle",
            "test_writes_end_when_the_owners_region_is_deregistered",
            "test_a_peer_that_comes_back_is_another",
            "test_the_owner_does_not_wait_for_a_stopped_reader",
        ),
    ),
    _ShortTransport: ("TestFairWeather", ("test_reads_are_exact_at_odd_offsets_and_sizes",)),
    _ZeroCopyTransport: (
        "TestFairWeather",
        ("test_cancelled_writes_are_quiet", "test_peer_stopped_in_the_middle_of_a_write"),
    ),
    _TwiceWritingTransport: ("TestDoubledPackets", ("test_writes_are_exact_at_odd_offsets_and_sizes",)),
    _HopefulTransport: (
        "TestFairWeather",
        ("test_peer_killed_in_the_middle_of_a_write", "test_a_cut_ends_in_time_or_with_an_answer"),
    ),
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
