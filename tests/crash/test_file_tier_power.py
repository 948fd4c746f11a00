"""Power cuts: a medium that loses or keeps each unsynced sector by chance, and an index that stopped anywhere.

After each cut the tier is opened again, by rows as old as chance has it, or by headers alone. Whatever comes back
is compared with what it must be: blocks may be forgotten, never altered.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from kvstore.testing.faulty_medium import Faults, FaultyMedium
from kvstore.tiers.file_index import split_records
from kvstore.tiers.file_scan import scan_headers
from tests.storage import FILE, GEOMETRY, Storage, chain_of

CHAINS = 40


class Rows:
    """The index as a dict, with every state that it was in: what LMDB's transactions leave behind a cut."""

    def __init__(self) -> None:
        self.now: dict[int, bytes] = {}
        self.history: list[dict[int, bytes]] = [{}]

    def checkpoint(self, storage: Storage) -> None:
        records, freed = storage.core.drain_changes(1 << 20)
        for offset in freed.tolist():
            self.now.pop(offset, None)
        self.now.update(split_records(records))
        self.history.append(dict(self.now))

    def cut(self, rng: random.Random) -> bytes:
        """One of the last states; it is what the next start goes on from."""
        self.now = dict(rng.choice(self.history[-6:]))
        self.history = [dict(self.now)]
        return b"".join(self.now.values())


def opened(medium: FaultyMedium) -> Storage:
    storage = Storage(medium, memory_bytes=1 << 20, write_behind_bytes=1 << 20)
    storage.demotion.retry_s = 0.0
    storage.open_namespace()
    return storage


async def write_some(storage: Storage, rng: random.Random, rows: Rows, medium: FaultyMedium) -> None:
    for _ in range(rng.randrange(4, 40)):
        await storage.put(chain_of(rng.randrange(CHAINS), rng.randrange(1, 6)))
        await storage.demotion()
        if rng.random() < 0.3:
            keys = chain_of(rng.randrange(CHAINS), 5)[rng.randrange(5) :]
            storage.core.retire_keys(storage.ns, keys)  # their slots are used again
        if rng.random() < 0.5:
            rows.checkpoint(storage)
        if rng.random() < 0.2:
            await medium.sync()


async def read_all(storage: Storage) -> int:
    storage.forget_memory()
    storage.mover.start()
    came = 0
    for chain in range(CHAINS):
        came += await storage.get(chain_of(chain, 5), wait_s=5.0)
        storage.forget_memory()
    await storage.mover.stop()
    storage.check()
    return came


@pytest.mark.parametrize("seed", range(12))
async def test_power_cuts_with_an_index_of_any_age(seed: int) -> None:
    rng = random.Random(seed)
    medium = FaultyMedium(GEOMETRY.size, rng, Faults(delay_turns=2, torn_write=0.02))
    rows, records, came = Rows(), b"", 0
    for _ in range(5):
        storage = opened(medium)
        storage.core.restore(records)
        came += await read_all(storage)
        await write_some(storage, rng, rows, medium)
        medium.crash()
        records = rows.cut(rng)
    assert came > 0, "some of it survived"


@pytest.mark.parametrize("seed", range(8))
async def test_power_cuts_with_no_index_at_all(seed: int) -> None:
    rng = random.Random(1000 + seed)
    medium = FaultyMedium(GEOMETRY.size, rng, Faults(delay_turns=2))
    came = 0
    for _ in range(4):
        storage = opened(medium)
        storage.core.restore(await scan_headers(medium, GEOMETRY))
        came += await read_all(storage)
        await write_some(storage, rng, Rows(), medium)
        medium.crash()
    assert came > 0


async def test_headers_find_what_the_index_knew() -> None:
    """No cut: then nothing at all is forgotten, in any mixture of sizes."""
    medium = FaultyMedium(GEOMETRY.size, random.Random(5))
    storage = opened(medium)
    for chain in range(CHAINS):
        await storage.put(chain_of(chain, 5))
        await storage.demotion()
    await medium.sync()
    known = storage.sealed(FILE)
    assert known == CHAINS * 5
    again = opened(medium)
    assert again.core.restore(await scan_headers(medium, GEOMETRY)) == known
    assert await read_all(again) == known


async def test_a_write_that_is_cancelled_midway_leaves_nothing_visible() -> None:
    medium = FaultyMedium(GEOMETRY.size, random.Random(6), Faults(delay_turns=50))
    storage = opened(medium)
    for chain in range(10):
        await storage.put(chain_of(chain, 5))
        task = asyncio.ensure_future(storage.demotion())
        for _ in range(chain * 7):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
    medium.faults.delay_turns = 0
    storage.check()
    await read_all(storage)
