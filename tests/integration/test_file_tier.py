"""The file tier under a real core: down and up again, by both engines, in odd sizes, and with a medium that fails."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvstore import native
from kvstore.clock import SystemClock
from kvstore.testing.faulty_medium import Faults, FaultyMedium
from kvstore.tiers.data_dir import DataDir
from kvstore.tiers.medium import FileMedium, MotionConfig
from tests.storage import FILE, GEOMETRY, MEMORY, Storage, chain_of


@pytest.fixture(params=["io_uring", "threads", "cached"])
async def medium(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[FileMedium]:
    kind = request.param
    if kind == "io_uring" and (reason := native.uring_refused()):
        pytest.skip(f"io_uring: {reason}")
    data_dir = DataDir(tmp_path / "tier")
    data_dir.acquire()
    engine = "threads" if kind == "cached" else kind
    made = FileMedium(data_dir, GEOMETRY, MotionConfig(engine=engine, depth=4, direct=kind != "cached"), SystemClock())
    await made.open()
    yield made
    await made.close()
    data_dir.release()


async def fill_and_demote(storage: Storage, chains: int, blocks: int) -> None:
    """Puts chains until write-behind has them all below."""
    for i in range(chains):
        keys = chain_of(i, blocks)
        assert await storage.put(keys) == blocks
        await storage.demotion()
        assert storage.file.lookup(storage.ns, 0, keys).all()


SIZES = [(4096,), (4096, 8192, 4096), (5000, 300), (4097,), (65536,) * 3]


@pytest.mark.parametrize("parts", SIZES, ids=str)
async def test_down_and_up_again(medium: FileMedium, parts: tuple[int, ...]) -> None:
    storage = Storage(medium, parts=parts, write_behind_bytes=4 << 20)
    storage.open_namespace()
    await fill_and_demote(storage, 3, 4)
    storage.forget_memory()
    assert storage.sealed(MEMORY) == 0
    storage.mover.start()
    for i in range(3):
        assert await storage.get(chain_of(i, 4)) == 4
    await storage.mover.stop()
    assert storage.file.counts.not_verified == storage.file.counts.read_errors == 0
    storage.check()


async def test_a_chain_moves_in_few_operations(medium: FileMedium) -> None:
    """Its cells lie in a row; up to 1 MiB of them is one operation. A slab of 256 KiB has 12 cells of this size."""
    storage = Storage(medium, write_behind_bytes=4 << 20)
    storage.open_namespace()
    await fill_and_demote(storage, 1, 48)
    assert medium.stats["writes"] == 48
    assert medium.stats["operations"] == 4
    storage.forget_memory()
    storage.mover.start()
    assert await storage.get(chain_of(0, 48)) == 48
    assert medium.stats["reads"] == 48
    assert medium.stats["operations"] == 8
    await storage.mover.stop()


async def test_a_chain_in_the_room_of_others_moves_in_few_operations(medium: FileMedium) -> None:
    storage = Storage(medium, write_behind_bytes=4 << 20)
    storage.open_namespace()
    await fill_and_demote(storage, 20, 48)  # the tier has room for 16
    before = medium.stats
    await storage.put(chain_of("new", 48))
    await storage.demotion()
    assert medium.stats["writes"] - before["writes"] == 48
    assert medium.stats["operations"] - before["operations"] <= 6


async def test_many_blocks_by_write_behind_alone(medium: FileMedium) -> None:
    """Puts several times the memory; what is evicted is found below."""
    storage = Storage(medium, memory_bytes=2 << 20, write_behind_bytes=512 << 10)
    storage.open_namespace()
    storage.mover.start()
    for i in range(60):
        assert await storage.put(chain_of(i, 8)) == 8
        # No faster than the disk is just now: what makes way next is below, and nothing is in motion.
        await storage.settle(lambda: is_quiet(storage))
    arrived = [await storage.get(chain_of(i, 8)) for i in range(60)]
    assert sum(arrived) == 480, "memory has room for 128"
    await storage.mover.stop()
    storage.check()


def is_quiet(storage: Storage) -> bool:
    full = storage.core.stats(MEMORY)["bytes_free"] < 16 * storage.block_bytes
    return not full or not (storage.core.stats(MEMORY)["holds"] or len(storage.core.dirty_victims(MEMORY, 512 << 10)))


async def test_a_fetch_waits_for_its_run_and_no_longer(medium: FileMedium) -> None:
    storage = Storage(medium)
    storage.open_namespace()
    keys = chain_of("a", 10)
    await storage.put(keys)
    await storage.demotion()
    storage.forget_memory()
    storage.core.retire_keys(storage.ns, keys[6:7])
    storage.mover.start()
    assert await storage.get(keys) == 6
    await storage.mover.stop()


async def faulty(faults: Faults, seed: int = 1) -> Storage:
    return Storage(FaultyMedium(GEOMETRY.size, random.Random(seed), faults))


async def test_a_flipped_bit_is_a_shorter_run_and_drops_the_block() -> None:
    storage = await faulty(Faults())
    storage.open_namespace()
    assert isinstance(storage.medium, FaultyMedium)
    keys = chain_of("a", 6)
    await storage.put(keys)
    await storage.demotion()
    held = storage.file.hold(storage.ns, 0, keys)
    assert held is not None
    payload = int(held.rows.offsets[2])
    held.release()
    storage.forget_memory()
    storage.medium.flip(payload + 9000)
    storage.mover.start()
    assert await storage.get(keys) == 2
    assert storage.file.lookup(storage.ns, 0, keys).tolist() == [True, True, False, True, True, True]
    assert storage.file.counts.not_verified == 1
    await storage.mover.stop()
    storage.check()


async def test_a_flipped_header_is_the_same() -> None:
    storage = await faulty(Faults())
    storage.open_namespace()
    assert isinstance(storage.medium, FaultyMedium)
    keys = chain_of("a", 3)
    await storage.put(keys)
    await storage.demotion()
    held = storage.file.hold(storage.ns, 0, keys)
    assert held is not None
    storage.medium.flip(int(held.rows.offsets[0]) - 4096 + 90)
    held.release()
    storage.forget_memory()
    storage.mover.start()
    assert await storage.get(keys) == 0
    await storage.mover.stop()


async def test_a_full_disk_drops_and_goes_on() -> None:
    storage = await faulty(Faults(disk_full=1.0))
    storage.open_namespace()
    keys = chain_of("a", 4)
    await storage.put(keys)
    await storage.demotion()
    assert storage.sealed(FILE) == 0
    assert storage.demotion.failures > 0
    assert await storage.get(keys) == 4  # memory has them still
    storage.check()


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_the_medium_does_no_byte_is_wrong(seed: int) -> None:
    """Storage.get compares every byte."""
    rng = random.Random(seed)
    faults = Faults(
        read_error=0.05,
        write_error=0.05,
        disk_full=0.02,
        flip_on_read=0.05,
        torn_write=0.1,
        lost_write=0.1,
        delay_turns=3,
    )
    storage = Storage(FaultyMedium(GEOMETRY.size, rng, faults), memory_bytes=1 << 20, write_behind_bytes=512 << 10)
    storage.demotion.retry_s = 0.0
    storage.open_namespace()
    storage.mover.start()
    for _ in range(400):
        await asyncio.sleep(0.001)
        keys = chain_of(rng.randrange(60), rng.randrange(1, 6))
        if rng.random() < 0.5:
            await storage.put(keys)
        else:
            await storage.get(keys, wait_s=2.0)
    await storage.mover.stop()
    counts = storage.file.counts
    assert counts.not_verified > 0
    assert counts.read > 20
    storage.check()
