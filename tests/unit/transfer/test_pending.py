"""The law of quiet memory, in virtual time: when a transfer answers, and what."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from transfer.base import Landed
from transfer.errors import Reason, RegionPoisoned, TransferCancelled, TransferFailed, TransferLate
from transfer.pending import Pending, Report
from transfer.regions import Region, Regions, RegionState
from transfer.testing.loop import Stalled, run_virtual

ALL = Report(8)


def gone(*reasons: Reason) -> Report:
    return Report(8, np.array(reasons, dtype=np.uint8))


class Moving:
    """A pending transfer of two extents over one region."""

    def __init__(self, deadline_s: float = 10.0) -> None:
        self.told: list[Region] = []
        self.region = Regions().add(bytearray(8), name="r", writable=True, on_poison=self.told.append)
        self.asked: list[Reason] = []
        self.pending = Pending([self.region], 2, deadline_s=deadline_s, quiesce_max_s=5.0, stop_bytes=self.asked.append)


def test_it_lands() -> None:
    async def main() -> None:
        moving = Moving()
        asyncio.get_running_loop().call_later(1.0, moving.pending.quiet, ALL)
        landed = await moving.pending
        assert isinstance(landed, Landed) and landed.bytes == 8
        assert await moving.pending == landed
        assert not moving.region.busy and moving.asked == []

    run_virtual(main)


def test_a_deadline_asks_and_only_quiet_answers() -> None:
    async def main() -> None:
        moving = Moving(deadline_s=1.0)
        loop = asyncio.get_running_loop()
        loop.call_later(4.0, moving.pending.quiet, gone(Reason.LANDED, Reason.LATE))
        with pytest.raises(TransferLate) as caught:
            await moving.pending
        assert loop.time() == pytest.approx(4.0)
        assert moving.asked == [Reason.LATE]
        assert caught.value.arrived.tolist() == [True, False]
        assert caught.value.failures[0].extents == (1,) and not caught.value.elsewhere

    run_virtual(main)


def test_the_first_reason_counts_and_all_landed_is_landed() -> None:
    async def main() -> None:
        moving = Moving()
        moving.pending.cancel()
        moving.pending.stop(Reason.DEREGISTERED)
        assert moving.asked == [Reason.CANCELLED] and not moving.pending.done
        moving.pending.quiet(ALL)
        assert isinstance(await moving.pending, Landed)
        moving.pending.cancel()  # too late to mean anything
        assert moving.asked == [Reason.CANCELLED]

    run_virtual(main)


def test_mixed_reasons_fail_and_say_whether_elsewhere_helps() -> None:
    async def main() -> None:
        moving = Moving()
        moving.pending.quiet(gone(Reason.REVOKED, Reason.CANCELLED))
        with pytest.raises(TransferFailed) as caught:
            await moving.pending
        assert not isinstance(caught.value, TransferCancelled)
        assert [failure.elsewhere for failure in caught.value.failures] == [True, False]
        assert caught.value.elsewhere

    run_virtual(main)


def test_a_cancelled_task_waits_for_quiet_however_often_it_is_cancelled() -> None:
    async def main() -> None:
        moving = Moving()
        loop = asyncio.get_running_loop()

        async def fetch() -> None:
            await moving.pending

        task = asyncio.ensure_future(fetch())
        await asyncio.sleep(1.0)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0.5)
            assert not task.done()
        loop.call_later(1.0, moving.pending.quiet, gone(Reason.CANCELLED, Reason.CANCELLED))
        with pytest.raises(asyncio.CancelledError):
            await task
        assert moving.asked == [Reason.CANCELLED] and moving.pending.done

    run_virtual(main)


def test_asyncios_own_timeout_waits_for_quiet_too() -> None:
    async def main() -> None:
        moving = Moving()
        loop = asyncio.get_running_loop()
        loop.call_later(3.0, moving.pending.quiet, gone(Reason.CANCELLED, Reason.CANCELLED))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await moving.pending
        assert loop.time() == pytest.approx(3.0)

    run_virtual(main)


def test_past_quiesce_max_the_region_is_poisoned_and_its_owner_told() -> None:
    async def main() -> None:
        moving = Moving(deadline_s=1.0)
        loop = asyncio.get_running_loop()
        with pytest.raises(TransferLate) as caught:
            await moving.pending
        assert loop.time() == pytest.approx(6.0)
        assert caught.value.poisoned and caught.value.failures[0].extents == (0, 1)
        assert moving.told == [moving.region] and moving.region.state is RegionState.POISONED
        with pytest.raises(RegionPoisoned):
            Pending([moving.region], 1, deadline_s=1.0, quiesce_max_s=1.0, stop_bytes=moving.asked.append)
        assert moving.region.busy
        moving.pending.quiet(ALL)  # the thread is back after all: the answer stands
        assert not moving.region.busy
        with pytest.raises(TransferLate):
            await moving.pending

    run_virtual(main)


def test_a_cancelled_task_is_told_of_poison() -> None:
    async def main() -> None:
        moving = Moving()

        async def fetch() -> None:
            await moving.pending

        task = asyncio.ensure_future(fetch())
        await asyncio.sleep(1.0)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError as error:
            chain: BaseException | None = error
            while chain is not None and not isinstance(chain, TransferCancelled):
                chain = chain.__cause__ or chain.__context__
            assert isinstance(chain, TransferCancelled) and chain.poisoned
        assert task.cancelled() and moving.told == [moving.region]

    run_virtual(main)


def test_nothing_is_entered_where_one_region_must_not_be_used() -> None:
    async def main() -> None:
        regions = Regions()
        good, bad = (regions.add(bytearray(8), name=name, writable=True) for name in ("good", "bad"))
        bad.poison()
        with pytest.raises(RegionPoisoned):
            Pending([good, bad], 1, deadline_s=1.0, quiesce_max_s=1.0, stop_bytes=lambda _: None)
        assert not good.busy
        for deadline_s in (-1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="deadline_s"):
                Pending([good], 1, deadline_s=deadline_s, quiesce_max_s=1.0, stop_bytes=lambda _: None)

    run_virtual(main)


def test_a_run_that_would_hang_is_an_error() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stalled):
        run_virtual(main)
