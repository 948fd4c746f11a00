"""Write-behind: what it holds while it writes, and that it lets go of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from kvstore.testing.faulty_medium import FaultyMedium
from kvstore.tiers.base import Extent, Pieces
from tests.storage import FILE, GEOMETRY, MEMORY, Storage, chain_of

MEMORY_BYTES = 1 << 20


class SlowMedium(FaultyMedium):
    """After its first write it waits for `goes_on`."""

    def __init__(self) -> None:
        super().__init__(GEOMETRY.size, random.Random(1))
        self.goes_on, self.began = asyncio.Event(), 0

    async def write(
        self, extents: Sequence[Extent], sources: Sequence[Pieces], *, background: bool = False
    ) -> Sequence[OSError | None]:
        self.began += 1
        if self.began > 1:
            await self.goes_on.wait()
        return await super().write(extents, sources, background=background)


async def test_what_is_written_may_go_while_the_rest_of_its_batch_is_written() -> None:
    medium = SlowMedium()
    storage = Storage(medium, memory_bytes=MEMORY_BYTES, write_behind_bytes=MEMORY_BYTES)
    storage.open_namespace()
    chains = [chain_of(seed, 4) for seed in range(3)]
    for chain in chains:
        await storage.put(chain)
    writing = asyncio.ensure_future(storage.demotion())
    await storage.settle(lambda: medium.began == 2)
    assert storage.sealed(FILE) == 4 and storage.core.stats(MEMORY)["holds"] == 2, "of three runs"
    for seed in range(100, 160):  # memory's worth and more: what is written makes way, what is not is held
        await storage.put(chain_of(seed, 4))
    kept = [int(storage.core.find(MEMORY, storage.ns, 0, chain).sum()) for chain in chains]
    assert sorted(kept) == [0, 4, 4]
    medium.goes_on.set()
    await writing
    assert storage.core.stats(MEMORY)["holds"] == 0
    assert all(storage.core.find(FILE, storage.ns, 0, chain).all() for chain in chains)
    storage.check()


async def test_a_demotion_that_is_cancelled_holds_nothing_any_more() -> None:
    medium = SlowMedium()
    storage = Storage(medium, memory_bytes=MEMORY_BYTES, write_behind_bytes=MEMORY_BYTES)
    storage.open_namespace()
    for seed in range(3):
        await storage.put(chain_of(seed, 4))
    writing = asyncio.ensure_future(storage.demotion())
    await storage.settle(lambda: medium.began == 2)
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
    assert storage.core.stats(MEMORY)["holds"] == 0
