"""The exam of taking back what a reader is reading, when the reader does not go on: its program or its machine stands
still, and the owner wants its memory.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from transfer.base import Rights
from transfer.errors import StillTouched
from transfer.testing.exam_base import ExamBase
from transfer.testing.parties import OwnerHere
from transfer.testing.readers import Reader

__all__ = ["Stoppable", "StoppedReaderExam"]

BEFORE, AFTER = 0x11, 0x77
PROMPT_S = 10.0  # far below the owner's quiesce_max_s


@dataclass(frozen=True, slots=True)
class Stoppable:
    owner: OwnerHere
    reader: Reader


class StoppedReaderExam(ExamBase):
    """`readers_touch`: the reader's own processor reads the owner's memory (shared memory), so that an owner whose
    reader stands still in the middle can only be told StillTouched.
    """

    readers_touch = False

    def stoppable(self) -> AbstractAsyncContextManager[Stoppable]:
        """An owner whose quiesce_max_s is far above PROMPT_S (far below it where readers touch), and a reader."""
        raise NotImplementedError

    def test_the_owner_does_not_wait_for_a_stopped_reader(self) -> None:
        self.run(self._revoked)

    def test_nor_when_it_deregisters(self) -> None:
        self.run(self._deregistered)

    async def _begun(self, sides: Stoppable, turn: int) -> bytes:
        """A reader stopped in the middle of a batch; the grant by which it reads."""
        size = 4 * self.long_bytes
        await sides.owner.memory("long", size, seed=1)
        await sides.owner.fill("long", BEFORE)
        descriptor = await sides.owner.grant("long", [(0, size)], rights=Rights.READ, lifetime_s=60.0)
        await sides.reader.begin(sides.owner.address, descriptor, size, self.long_extents)
        await self.pause(turn)
        await sides.reader.stop()
        return descriptor

    async def _revoked(self) -> None:
        async with self.stoppable() as sides:
            for turn in range(4):
                descriptor = await self._begun(sides, turn)
                try:
                    async with asyncio.timeout(PROMPT_S):
                        await sides.owner.revoke(descriptor)
                except StillTouched:
                    assert self.readers_touch
                    await sides.reader.resume()
                    await sides.owner.revoke(descriptor)
                await self._sees_nothing_new(sides)
                await sides.owner.deregister("long")

    async def _deregistered(self) -> None:
        if self.readers_touch:
            return  # past quiesce_max_s the region is poisoned: transfer.lending
        async with self.stoppable() as sides:
            await self._begun(sides, 2)
            async with asyncio.timeout(PROMPT_S):
                await sides.owner.deregister("long")
            await self._sees_nothing_new(sides)

    async def _sees_nothing_new(self, sides: Stoppable) -> None:
        await sides.owner.fill("long", AFTER)
        await self.settle()
        await sides.reader.resume()
        outcome = await sides.reader.end()
        await self.settle()
        assert await sides.reader.count(AFTER) == 0, "bytes left the owner after it had taken them back"
        assert outcome in ("landed", "REVOKED", "PEER_GONE", "PEER_GONE,REVOKED"), outcome
