"""The exam's tests of writing, where two memories must be quiet.

- Ours, with the answer: the source is overwritten at once, and none of what it then holds may reach the peer.
- The peer's, once its owner has revoked or deregistered: it is overwritten there, and must stay so.
"""

from __future__ import annotations

import asyncio
import hashlib

import numpy as np
import pytest

from transfer.base import Batch, Landed, Region, Rights, Transfer
from transfer.errors import Reason, TransferCancelled, TransferError, TransferFailed, TransferLate
from transfer.testing.exam_base import DYING, FOREVER_S, SENTINEL, ExamBase, examined, failed
from transfer.testing.parties import Bytes, Mortal, Pair, pairs, pattern

__all__ = ["WriteExam", "WritePeerFailureExam"]

BOTH = Rights.READ | Rights.WRITE
FILLED = 0x5A


class _Writing(ExamBase):
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

    async def stays_filled(self, pair: Pair) -> None:
        """After the owner took its memory back: nothing touches it any more."""
        await pair.owner.fill("long", FILLED)
        await self.settle()
        size = 4 * self.long_bytes
        expected = hashlib.sha256(np.full(size, FILLED, dtype=np.uint8).tobytes()).hexdigest()
        assert await pair.owner.digest("long", 0, size) == expected, "bytes landed after the grant had ended"


class WriteExam(_Writing):
    """Writes cancelled, late, revoked and deregistered in the middle."""

    @examined
    async def test_ten_thousand_extents_are_written(self, pair: Pair) -> None:
        count, size = 10_000, 300
        await pair.owner.memory("m", count * size, seed=4)
        region, memory = await pair.memory(count * size)
        memory[:] = pattern(count * size, 5)
        presented, _ = await pair.shown("m", [(0, count * size)], rights=Rights.WRITE)
        order = np.random.default_rng(6).permutation(count)
        batch = pairs(region, presented, [(i * size, int(to) * size, size) for i, to in enumerate(order)])
        assert (await pair.endpoint.write(batch, deadline_s=FOREVER_S)).bytes == count * size
        expected = np.empty_like(memory)
        expected.reshape(count, size)[order] = memory.reshape(count, size)
        assert await pair.owner.digest("m", 0, count * size) == hashlib.sha256(expected.tobytes()).hexdigest()

    @examined
    async def test_a_thousand_concurrent_writes(self, pair: Pair) -> None:
        """Each to a place of its own; a third is cancelled at once, a third has little time; no answer is lost."""
        count, size = 1_000, 12_345
        await pair.owner.memory("m", count * size, seed=6)
        await pair.owner.fill("m", 0)
        region, memory = await pair.memory(count * size)
        memory[:] = source = pattern(count * size, 7) % 64 + 1
        presented, _ = await pair.shown("m", [(0, count * size)], rights=BOTH)
        transfers: list[Transfer] = []
        for i in range(count):
            batch = pairs(region, presented, [(i * size, i * size, size)])
            transfers.append(pair.endpoint.write(batch, deadline_s=0.000_5 if i % 3 == 2 else FOREVER_S))
            if i % 3 == 1:
                transfers[-1].cancel()
        answers = [await self.answered(transfer) for transfer in transfers]
        memory[:] = SENTINEL
        await self.settle()
        back, found = await pair.memory(count * size)
        await pair.endpoint.read(pairs(back, presented, [(0, 0, count * size)]), deadline_s=FOREVER_S)
        assert ((found == source) | (found == 0)).all(), "bytes left our memory after the answer"
        for i, answer in enumerate(answers):
            place = slice(i * size, (i + 1) * size)
            assert isinstance(answer, TransferError) or (found[place] == source[place]).all()
            assert isinstance(answer, Landed) or i % 3 != 0, answer

    @examined
    async def test_cancelled_writes_are_quiet(self, pair: Pair) -> None:
        batch, _, memory, descriptor = await self.long_write(pair)
        cancelled = 0
        for turn in range(8):
            memory[:] = self.source()
            transfer = pair.endpoint.write(batch, deadline_s=FOREVER_S)
            await self.pause(turn)
            transfer.cancel()
            answer = await self.answered(transfer)
            await self.nothing_else_was_written(pair, memory, descriptor)
            if isinstance(answer, TransferError):
                cancelled += 1
                assert isinstance(answer, TransferCancelled)
                assert not answer.elsewhere and set(failed(answer)) == {Reason.CANCELLED}
        assert cancelled > 0, "no batch was long enough to be cancelled"

    @examined
    async def test_a_cancelled_task_that_writes_is_quiet(self, pair: Pair) -> None:
        batch, _, memory, descriptor = await self.long_write(pair)

        async def push() -> Landed:
            return await pair.endpoint.write(batch, deadline_s=FOREVER_S)

        for turn in range(4):
            memory[:] = self.source()
            task = asyncio.ensure_future(push())
            await self.pause(turn)
            task.cancel()
            await asyncio.wait([task])
            await self.nothing_else_was_written(pair, memory, descriptor)

    @examined
    async def test_late_writes_are_quiet(self, pair: Pair) -> None:
        batch, _, memory, descriptor = await self.long_write(pair)
        late = 0
        for deadline_s in (0.0, 0.000_3, 0.001, 0.004):
            memory[:] = self.source()
            answer = await self.answered(pair.endpoint.write(batch, deadline_s=deadline_s))
            await self.nothing_else_was_written(pair, memory, descriptor)
            if isinstance(answer, TransferError):
                late += 1
                assert isinstance(answer, TransferLate) and not answer.elsewhere
        assert late > 0, "no batch was long enough to be late"

    @examined
    async def test_writes_are_quiet_when_our_region_is_deregistered(self, pair: Pair) -> None:
        batch, region, memory, descriptor = await self.long_write(pair)
        transfer = pair.endpoint.write(batch, deadline_s=FOREVER_S)
        await self.pause(3)
        await pair.reader.deregister(region)
        await self.nothing_else_was_written(pair, memory, descriptor)
        answer = await self.answered(transfer)
        if isinstance(answer, TransferError):
            assert set(failed(answer)) == {Reason.DEREGISTERED}

    @examined
    async def test_writes_revoked_in_the_middle(self, pair: Pair) -> None:
        batch, _, memory, descriptor = await self.long_write(pair)
        for turn in range(4):
            transfer = pair.endpoint.write(batch, deadline_s=FOREVER_S)
            await self.pause(turn)
            await pair.owner.revoke(descriptor)
            await self.stays_filled(pair)
            answer = await self.answered(transfer)
            if isinstance(answer, TransferError):
                assert set(failed(answer)) == {Reason.REVOKED} and answer.elsewhere
            with pytest.raises(TransferFailed):
                await pair.endpoint.write(batch, deadline_s=FOREVER_S)
            await self.stays_filled(pair)
            presented, descriptor = await pair.shown("long", [(0, len(memory))], rights=BOTH)
            table = batch.table.copy()
            table[:, 2] = presented.handle
            batch = Batch(table)

    @examined
    async def test_writes_end_when_the_owners_region_is_deregistered(self, pair: Pair) -> None:
        batch, _, _, _ = await self.long_write(pair)
        transfer = pair.endpoint.write(batch, deadline_s=FOREVER_S)
        await self.pause(2)
        await pair.owner.deregister("long")
        await self.stays_filled(pair)
        answer = await self.answered(transfer)
        if isinstance(answer, TransferError):
            assert set(failed(answer)) == {Reason.REVOKED} and answer.elsewhere


class WritePeerFailureExam(_Writing):
    """Writes to a peer that dies or stops. The pair's owner is Mortal."""

    @staticmethod
    def mortal(pair: Pair) -> Mortal:
        owner: Mortal = pair.owner  # type: ignore[assignment]
        return owner

    @examined
    async def test_peer_killed_in_the_middle_of_a_write(self, pair: Pair) -> None:
        batch, region, memory, _ = await self.long_write(pair)
        transfer = pair.endpoint.write(batch, deadline_s=10.0)
        await self.pause(2)
        await self.mortal(pair).kill()
        answer = await self.answered(transfer)
        memory[:] = SENTINEL
        if isinstance(answer, TransferError):
            assert set(failed(answer)) <= DYING
        with pytest.raises(TransferError):
            await pair.endpoint.write(batch, deadline_s=10.0)
        await pair.reader.deregister(region)

    @examined
    async def test_peer_stopped_in_the_middle_of_a_write(self, pair: Pair) -> None:
        """Answered in time, though the peer takes nothing in; what it takes in later is what was there before."""
        batch, _, memory, descriptor = await self.long_write(pair)
        transfer = pair.endpoint.write(batch, deadline_s=0.5)
        await self.pause(2)
        await self.mortal(pair).stop()
        try:
            await self.answered(transfer)
            memory[:] = SENTINEL
            await self.settle()
        finally:
            await self.mortal(pair).resume()
        await self.settle()
        await self.nothing_else_was_written(pair, memory, descriptor)
