"""A file tier whose device hangs: a fetch is answered at its deadline, and memory that the device may yet write to is
nobody else's until it has answered.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from kvstore.testing.faulty_medium import FaultyMedium
from kvstore.tiers.base import Extent, Pieces
from tests.storage import FILE, GEOMETRY, MEMORY, Storage, chain_of

WAIT_S = 0.4
MEMORY_BYTES = 1 << 20


class HungMedium(FaultyMedium):
    """Reads hang from `hang()` until `answer()`, and only then move their bytes: a thread that is in the kernel."""

    def __init__(self) -> None:
        super().__init__(GEOMETRY.size, random.Random(1))
        self.answers = asyncio.Event()
        self.answers.set()
        self.hanging = 0

    async def read(
        self, extents: Sequence[Extent], into: Sequence[Pieces], *, background: bool = False
    ) -> Sequence[OSError | None]:
        self.hanging += 1
        waiting = asyncio.ensure_future(self.answers.wait())
        cancelled = False
        while not waiting.done():  # an answer means quiet memory: a cancel waits too
            try:
                await asyncio.shield(waiting)
            except asyncio.CancelledError:
                cancelled = True
        self.hanging -= 1
        results = await super().read(extents, into, background=background)
        if cancelled:
            raise asyncio.CancelledError
        return results


async def on_files_alone(medium: HungMedium, chains: int) -> Storage:
    storage = Storage(medium, memory_bytes=MEMORY_BYTES, write_behind_bytes=MEMORY_BYTES)
    storage.open_namespace()
    for seed in range(chains):
        await storage.put(chain_of(seed, 4))
        await storage.demotion()
    storage.forget_memory()
    assert storage.sealed(FILE) == chains * 4
    storage.mover.start()
    return storage


@pytest.mark.parametrize("lapsed", [False, True], ids=["reserved", "lapsed"])
async def test_a_fetch_is_answered_at_its_deadline_and_its_memory_is_kept_apart(lapsed: bool) -> None:
    medium = HungMedium()
    storage = await on_files_alone(medium, 2)
    medium.answers.clear()
    assert await storage.get(chain_of(0, 4), WAIT_S) == 0
    assert medium.hanging > 0
    if lapsed:  # its reservation's time is over, and still the device may write there
        storage.core.tick(storage.clock.now_ns() + 3_600 * 10**9)
        assert storage.core.stats(MEMORY)["lapsed_reservations"] >= 4
    kept = storage.core.stats(MEMORY)
    assert kept["slots_reserved"] + kept["slots_retired"] >= 4, "the device may write there yet"
    # Memory is filled three times over: none of it lands where the device will.
    for seed in range(100, 148):
        await storage.put(chain_of(seed, 4))
    fresh = [seed for seed in range(100, 148) if storage.core.find(MEMORY, storage.ns, 0, chain_of(seed, 4)).all()]
    assert len(fresh) >= 8
    medium.answers.set()
    await storage.settle(lambda: medium.hanging == 0)
    for seed in fresh:
        await storage.get(chain_of(seed, 4), 5.0)  # what comes is compared, byte by byte
    assert await storage.get(chain_of(0, 4), 5.0) == 4
    await storage.mover.stop()
    storage.check()


async def test_what_needs_no_device_is_answered_meanwhile() -> None:
    medium = HungMedium()
    storage = await on_files_alone(medium, 1)
    medium.answers.clear()
    assert await storage.get(chain_of(0, 4), WAIT_S) == 0
    for seed in range(10, 20):
        await storage.put(chain_of(seed, 2))
        assert await storage.get(chain_of(seed, 2), WAIT_S) == 2
    medium.answers.set()
    await storage.mover.stop()
    storage.check()


async def test_room_held_by_the_device_comes_back_when_it_answers() -> None:
    medium = HungMedium()
    storage = await on_files_alone(medium, 3)
    medium.answers.clear()
    for seed in range(3):
        assert await storage.get(chain_of(seed, 4), WAIT_S) == 0
    medium.answers.set()
    await storage.settle(lambda: medium.hanging == 0)
    await storage.settle(lambda: storage.core.stats(MEMORY)["slots_reserved"] == 0)
    assert storage.core.stats(MEMORY)["slots_retired"] == 0
    assert [await storage.get(chain_of(seed, 4), 5.0) for seed in range(3)] == [4] * 3
    await storage.mover.stop()
    storage.check()
