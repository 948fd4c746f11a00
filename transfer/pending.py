"""A transfer between its beginning and its answer: the one place where law "an answer means quiet memory" is kept.

  MOVING --quiet()--> ANSWERED
    |  stop(): cancel, deadline, deregistration, close
    v
  STOPPING --quiet()--> ANSWERED
    |  quiesce_max_s later
    v
  ANSWERED, poisoned (quiet() may still come: then the regions are at least left)

Rules
- Only the transport's quiet() answers, and the transport calls it when nothing touches local memory any more.
- stop() asks; the first reason counts. Bytes that all landed nevertheless are an answer of `Landed`.
- Cancelling the awaiting task stops the transfer, waits as any answer does, and lets the cancellation through after it.
- Past quiesce_max_s the answer says poisoned, after the regions and their owners know.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from transfer.base import Landed
from transfer.errors import (
    Failure,
    Reason,
    TransferCancelled,
    TransferError,
    TransferFailed,
    TransferLate,
)
from transfer.regions import Region

__all__ = ["NO_DIGESTS", "Inline", "Pending", "Report", "answer", "check_deadline"]

NO_DIGESTS: npt.NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
DEADLINE_S_MAX = 24 * 3600.0
_ERRORS: dict[Reason, type[TransferError]] = {Reason.LATE: TransferLate, Reason.CANCELLED: TransferCancelled}


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a batch. `reasons` is None where all of it landed, else a Reason an extent."""

    bytes: int
    reasons: npt.NDArray[np.uint8] | None = None
    checksums: npt.NDArray[np.uint64] = field(default_factory=lambda: NO_DIGESTS)
    leaves: npt.NDArray[np.uint64] = field(default_factory=lambda: NO_DIGESTS)


def answer(report: Report, *, poisoned: bool = False) -> Landed | TransferError:
    """The answer that a report amounts to. The error is late or cancelled where that is all that went wrong."""
    if report.reasons is None and not poisoned:
        return Landed(report.bytes, report.checksums, report.leaves)
    reasons = report.reasons if report.reasons is not None else np.empty(0, np.uint8)
    arrived = reasons == Reason.LANDED
    failures = [
        Failure(Reason(int(code)), tuple(np.flatnonzero(reasons == code).tolist()))
        for code in np.unique(reasons[~arrived])
    ]
    kinds = {_ERRORS.get(failure.reason, TransferFailed) for failure in failures if failure.reason is not Reason.NONE}
    error = kinds.pop() if len(kinds) == 1 else TransferFailed
    told = ", ".join(f"{len(failure.extents)} {failure.reason.name.lower()}" for failure in failures)
    message = f"{int((~arrived).sum())} of {len(reasons)} extents did not arrive: {told}"
    if poisoned:
        message += "; local memory is not quiet and must not be used again"
    return error(message, failures=failures, arrived=arrived, checksums=report.checksums, poisoned=poisoned)


def check_deadline(deadline_s: float) -> None:
    if not 0 <= deadline_s <= DEADLINE_S_MAX:
        raise ValueError(f"deadline_s must be within 0..{DEADLINE_S_MAX:.0f}, not {deadline_s}")


class Inline:
    """A copy in the calling thread, as its regions see it: nobody can stop it from there."""

    def stop(self, reason: Reason) -> None:
        raise AssertionError(f"a copy in the calling thread was stopped by it ({reason})")


class Pending:
    """One batch in motion, over some local regions. The transport moves it and calls `quiet`; `stop_bytes` is how
    the transport is asked to end early, and must lead to `quiet`.
    """

    __slots__ = (
        "_answer",
        "_deadline",
        "_extents",
        "_loop",
        "_quiesce",
        "_quiesce_max_s",
        "_reason",
        "_regions",
        "_stop_bytes",
        "_waiters",
    )

    def __init__(
        self,
        regions: Sequence[Region],
        extents: int,
        *,
        deadline_s: float,
        quiesce_max_s: float,
        stop_bytes: Callable[[Reason], None],
    ) -> None:
        """Enters the regions. Raises ValueError for the deadline; RegionPoisoned or ValueError, with nothing entered,
        where a region must not be used.
        """
        check_deadline(deadline_s)
        entered: list[Region] = []
        try:
            for region in regions:
                region.enter(self)
                entered.append(region)
        except BaseException:
            for region in entered:
                region.leave(self)
            raise
        self._loop = asyncio.get_running_loop()
        self._regions = tuple(regions)
        self._extents = extents
        self._stop_bytes = stop_bytes
        self._quiesce_max_s = quiesce_max_s
        self._answer: Landed | TransferError | None = None
        self._reason = Reason.NONE
        self._quiesce: asyncio.TimerHandle | None = None
        self._waiters: list[asyncio.Future[None]] = []
        self._deadline = self._loop.call_later(deadline_s, self.stop, Reason.LATE)

    @property
    def done(self) -> bool:
        return self._answer is not None

    @property
    def stopping(self) -> Reason:
        """Why an early end was asked for; NONE while nobody did."""
        return self._reason

    def cancel(self) -> None:
        self.stop(Reason.CANCELLED)

    def stop(self, reason: Reason) -> None:
        if self._answer is not None or self._reason is not Reason.NONE:
            return
        self._reason = reason
        self._deadline.cancel()
        self._quiesce = self._loop.call_later(self._quiesce_max_s, self._give_up)
        self._stop_bytes(reason)

    def quiet(self, report: Report) -> None:
        """Nothing touches local memory any more. For the transport alone, once."""
        self._deadline.cancel()
        if self._quiesce is not None:
            self._quiesce.cancel()
        for region in self._regions:
            region.leave(self)
        if self._answer is None:
            self._tell(answer(report))

    def lost(self, report: Report) -> None:
        """Nobody will ever know that local memory is quiet. For the transport alone, instead of `quiet`."""
        self._deadline.cancel()
        if self._quiesce is not None:
            self._quiesce.cancel()
        for region in self._regions:
            region.poison()
            region.leave(self)
        if self._answer is None:
            self._tell(answer(report, poisoned=True))

    def _give_up(self) -> None:
        for region in self._regions:
            region.poison()
        reasons = np.full(self._extents, self._reason, dtype=np.uint8)
        self._tell(answer(Report(0, reasons), poisoned=True))

    def _tell(self, told: Landed | TransferError) -> None:
        self._answer = told
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()

    def __await__(self) -> Generator[object, None, Landed]:
        interrupted: asyncio.CancelledError | None = None
        while self._answer is None:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            try:
                yield from waiter
            except asyncio.CancelledError as error:
                interrupted = interrupted or error
                self.cancel()
        if interrupted is not None:
            if isinstance(self._answer, TransferError) and self._answer.poisoned:
                raise interrupted from self._answer
            raise interrupted
        if isinstance(self._answer, TransferError):
            raise self._answer
        return self._answer
