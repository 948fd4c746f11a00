"""The exam's tests of writing, where two memories must be quiet.

- Ours, with the answer (transfer.testing.exam_stops).
- The peer's, once its owner has revoked or deregistered: it is overwritten there, and must stay so.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from transfer.base import Batch, Landed, Rights, Transfer
from transfer.errors import Reason, TransferError, TransferFailed
from transfer.testing.exam_base import DYING, FOREVER_S, SENTINEL, examined, failed
from transfer.testing.exam_stops import BOTH, StopExam, WritingExam
from transfer.testing.parties import Mortal, Pair, pairs, pattern

__all__ = ["WriteExam", "WritePeerFailureExam"]

FILLED = 0x5A


class WriteExam(StopExam):
    """Writes of many extents and batches, revoked and deregistered by their target's owner in the middle."""

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

    async def stays_filled(self, pair: Pair) -> None:
        """After the owner took its memory back: nothing touches it any more."""
        await pair.owner.fill("long", FILLED)
        await self.settle()
        size = 4 * self.long_bytes
        expected = hashlib.sha256(np.full(size, FILLED, dtype=np.uint8).tobytes()).hexdigest()
        assert await pair.owner.digest("long", 0, size) == expected, "bytes landed after the grant had ended"

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


class WritePeerFailureExam(WritingExam):
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
