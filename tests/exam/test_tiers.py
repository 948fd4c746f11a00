"""The tiers of tables, each under the exam of its seam."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from kvstore.testing.exam_tier import TierExam, TierRig
from kvstore.testing.faulty_medium import Faults, FaultyMedium
from kvstore.tiers.data_dir import Geometry
from tests.storage import MEMORY, Storage

PARTS = (4096, 8192, 4096)
GEOMETRY = Geometry(slab_bytes=256 << 10, slabs_per_file=4, slabs=8)


class TestMemory(TierExam):
    @pytest.fixture
    async def rig(self) -> AsyncIterator[TierRig]:
        storage = Storage(None, parts=PARTS, memory_bytes=2 << 20)
        yield TierRig(storage.memory, storage.open_namespace(), PARTS, (2 << 20) // sum(PARTS))
        storage.core.check_integrity(MEMORY)


class TestFile(TierExam):
    """Over a medium in memory that breaks nothing; the real ones have an exam of their own."""

    @pytest.fixture
    async def rig(self) -> AsyncIterator[TierRig]:
        medium = FaultyMedium(GEOMETRY.size, random.Random(1), Faults())
        storage = Storage(medium, parts=PARTS, geometry=GEOMETRY)
        yield TierRig(storage.file, storage.open_namespace(), PARTS, GEOMETRY.size // (sum(PARTS) + 4096))
        storage.check()
