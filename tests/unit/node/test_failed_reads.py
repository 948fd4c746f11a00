"""A read that failed is told from a miss, and counted in blocks, however many were asked for in one call."""

from __future__ import annotations

import random

import pytest

from kvstore.observe.metrics import failures
from kvstore.testing.faulty_medium import Faults, FaultyMedium
from tests.storage import FILE, GEOMETRY, Storage, chain_of

BLOCKS = 5


def told(storage: Storage) -> dict[str, float]:
    """kvstore_reads_failed by tier, as /metrics has it."""
    (family,) = [each for each in failures(storage.core.counters()) if each.name == "kvstore_reads_failed"]
    return {sample.labels["tier"]: sample.value for sample in family.samples}


@pytest.mark.parametrize("at_once", [1, BLOCKS])
async def test_failed_reads_are_counted_in_blocks_and_misses_are_not(at_once: int) -> None:
    medium = FaultyMedium(GEOMETRY.size, random.Random(1), Faults())
    storage = Storage(medium, write_behind_bytes=4 << 20)
    storage.open_namespace()
    storage.mover.start()
    try:
        keys = chain_of("a", BLOCKS)
        assert await storage.put(keys) == BLOCKS
        await storage.demotion()
        assert storage.sealed(FILE) == BLOCKS
        assert await storage.get(chain_of("never put", BLOCKS), wait_s=0.2) == 0
        assert told(storage) == {"memory": 0, "file": 0, "object": 0}, "a miss is no failed read"
        storage.forget_memory()
        medium.faults.read_error = 1.0
        for first in range(0, BLOCKS, at_once):
            assert await storage.get(keys[first : first + at_once], wait_s=5) == 0
        assert told(storage) == {"memory": 0, "file": BLOCKS, "object": 0}
    finally:
        await storage.mover.stop()
