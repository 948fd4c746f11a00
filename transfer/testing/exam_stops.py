"""The exam of batches that are stopped in the middle, in both directions: cancelled, late, their region taken back.

Ours must be quiet with the answer. Of a read: our memory is overwritten, and must stay so. Of a write: our memory, the
source, is overwritten at once, and none of what it then holds may reach the peer.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod

import pytest

from transfer.base import Batch, Landed, Region, Rights, Transfer
from transfer.errors import Reason, TransferCancelled, TransferError, TransferLate
from transfer.testing.exam_base import FOREVER_S, SENTINEL, ExamBase, examined, failed
from transfer.testing.parties import Bytes, Pair, pairs, pattern

__all__ = ["BOTH", "StopExam", "WritingExam"]

BOTH = Rights.READ | Rights.WRITE


class WritingExam(ExamBase):
    """What tests of long writes share."""

    async def long_write(self, pair: Pair) -> tuple[Batch, Region, Bytes, bytes]:
        """As `long_batch`, of writes into zeros; no byte of the source is 0, SENTINEL or FILLED."""
        size = 4 * self.long_bytes
        await pair.owner.memory("long", size, seed=21)
        await pair.owner.fill("long", 0)
        region, memory = await pair.memory(size)
        memory[:] = self.source()
        presented, descriptor = await pair.shown("long", [(0, size)], rights=BOTH)
        places = [(i % 4 * self.long_bytes, i % 4 * self.long_bytes) for i in range(self.long_extents)]
        return pairs(region, presented, [(a, b, self.long_bytes) for a, b in places]), region, memory, descriptor

    def source(self) -> Bytes:
        return pattern(4 * self.long_bytes, 22) % 64 + 1

    async def nothing_else_was_written(self, pair: Pair, memory: Bytes, descriptor: bytes) -> None:
        """After an answer: what our memory holds from now on does not reach the peer."""
        memory[:] = SENTINEL
        await self.settle()
        size = 4 * self.long_bytes
        region, found = await pair.memory(size)
        (presented,) = await pair.endpoint.present([descriptor], deadline_s=10.0)
        await pair.endpoint.read(pairs(region, presented, [(0, 0, size)]), deadline_s=FOREVER_S)
        assert ((found == self.source()) | (found == 0)).all(), "bytes left our memory after the answer"
        await pair.reader.deregister(region)


class _Long(ABC):
    """A long batch in one direction, to be begun again and again."""

    def __init__(self, exam: WritingExam, pair: Pair, made: tuple[Batch, Region, Bytes, bytes]) -> None:
        self.exam, self.pair = exam, pair
        self.batch, self.region, self.memory, self.descriptor = made

    @abstractmethod
    def begin(self, deadline_s: float = FOREVER_S) -> Transfer: ...

    @abstractmethod
    async def quiet(self) -> None:
        """After an answer: our memory is."""


class _Read(_Long):
    def begin(self, deadline_s: float = FOREVER_S) -> Transfer:
        return self.pair.endpoint.read(self.batch, deadline_s=deadline_s)

    async def quiet(self) -> None:
        await self.exam.stays_quiet(self.memory)


class _Write(_Long):
    def begin(self, deadline_s: float = FOREVER_S) -> Transfer:
        self.memory[:] = self.exam.source()
        return self.pair.endpoint.write(self.batch, deadline_s=deadline_s)

    async def quiet(self) -> None:
        await self.exam.nothing_else_was_written(self.pair, self.memory, self.descriptor)


class StopExam(WritingExam):
    async def _reading(self, pair: Pair) -> _Long:
        return _Read(self, pair, await self.long_batch(pair))

    async def _writing(self, pair: Pair) -> _Long:
        return _Write(self, pair, await self.long_write(pair))

    @examined
    async def test_cancelled_batches_are_quiet(self, pair: Pair) -> None:
        await self._stopped_by_cancel(await self._reading(pair))

    @examined
    async def test_cancelled_writes_are_quiet(self, pair: Pair) -> None:
        await self._stopped_by_cancel(await self._writing(pair))

    async def _stopped_by_cancel(self, long: _Long) -> None:
        cancelled = 0
        for turn in range(8):
            transfer = long.begin()
            await self.pause(turn)
            transfer.cancel()
            answer = await self.answered(transfer)
            assert transfer.done
            await long.quiet()
            if isinstance(answer, TransferError):
                cancelled += 1
                assert isinstance(answer, TransferCancelled)
                assert not answer.elsewhere and set(failed(answer)) == {Reason.CANCELLED}
        assert cancelled > 0, "no batch was long enough to be cancelled"

    @examined
    async def test_a_cancelled_task_ends_only_when_memory_is_quiet(self, pair: Pair) -> None:
        await self._stopped_by_task(await self._reading(pair))

    @examined
    async def test_a_cancelled_task_that_writes_is_quiet(self, pair: Pair) -> None:
        await self._stopped_by_task(await self._writing(pair))

    async def _stopped_by_task(self, long: _Long) -> None:
        async def move() -> Landed:
            return await long.begin()

        for turn in range(4):
            task = asyncio.ensure_future(move())
            await self.pause(turn)
            task.cancel()
            await asyncio.sleep(0)
            task.cancel()  # once more while it waits for quiet
            await asyncio.wait([task])
            await long.quiet()
            assert task.cancelled()

    @examined
    async def test_late_batches_are_quiet(self, pair: Pair) -> None:
        await self._stopped_late(await self._reading(pair))

    @examined
    async def test_late_writes_are_quiet(self, pair: Pair) -> None:
        await self._stopped_late(await self._writing(pair))

    async def _stopped_late(self, long: _Long) -> None:
        late = 0
        for deadline_s in (0.0, 0.000_3, 0.001, 0.004):
            answer = await self.answered(long.begin(deadline_s))
            await long.quiet()
            if isinstance(answer, TransferError):
                late += 1
                assert isinstance(answer, TransferLate) and not answer.elsewhere
        assert late > 0, "no batch was long enough to be late"

    @examined
    async def test_our_region_deregistered_in_flight(self, pair: Pair) -> None:
        await self._region_taken_back(await self._reading(pair))

    @examined
    async def test_writes_are_quiet_when_our_region_is_deregistered(self, pair: Pair) -> None:
        await self._region_taken_back(await self._writing(pair))

    async def _region_taken_back(self, long: _Long) -> None:
        transfer = long.begin()
        await self.pause(3)
        await long.pair.reader.deregister(long.region)
        await long.quiet()
        answer = await self.answered(transfer)
        if isinstance(answer, TransferError):
            assert set(failed(answer)) == {Reason.DEREGISTERED}
        with pytest.raises(ValueError, match=r"not registered|deregistered"):
            long.begin()
        await long.pair.reader.deregister(long.region)  # once more changes nothing
