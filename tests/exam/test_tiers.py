"""Every tier under the exam of its seam: slots in memory and on files, packs in a store in memory and a directory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from obstore.store import LocalStore, MemoryStore

from kvstore.testing.exam_tier import PackTierExam, SlotTierExam, TierRig
from kvstore.testing.faulty_medium import Faults, FaultyMedium
from kvstore.tiers.data_dir import Geometry
from kvstore.tiers.object import ObjectTier
from kvstore.tiers.object_tier import PackTier
from kvstore.tiers.pack_index import PackIndex
from tests.storage import MEMORY, Storage

PARTS = (4096, 8192, 4096)
GEOMETRY = Geometry(slab_bytes=256 << 10, slabs_per_file=4, slabs=8)


class TestMemory(SlotTierExam):
    @pytest.fixture
    async def rig(self) -> AsyncIterator[TierRig]:
        storage = Storage(None, parts=PARTS, memory_bytes=2 << 20)
        yield TierRig(storage.memory, storage.open_namespace(), PARTS, (2 << 20) // sum(PARTS))
        storage.core.check_integrity(MEMORY)


class TestFile(SlotTierExam):
    """Over a medium in memory that breaks nothing; the real ones have an exam of their own."""

    @pytest.fixture
    async def rig(self) -> AsyncIterator[TierRig]:
        medium = FaultyMedium(GEOMETRY.size, random.Random(1), Faults())
        storage = Storage(medium, parts=PARTS, geometry=GEOMETRY)
        yield TierRig(storage.file, storage.open_namespace(), PARTS, GEOMETRY.size // (sum(PARTS) + 4096))
        storage.check()


class TestPacks(PackTierExam):
    @pytest.fixture(params=["memory", "directory"])
    async def rig(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[TierRig]:
        monkeypatch.setattr("kvstore.tiers.packs.PACK_BLOCKS_MAX", 8)
        bucket = MemoryStore() if request.param == "memory" else LocalStore(tmp_path / "objects", mkdir=True)
        storage = Storage(None, parts=PARTS, memory_bytes=1 << 20)
        storage.core.set_object_tier(10_000)
        store = ObjectTier(bucket)
        index = PackIndex(storage.core, 10_000)
        store.on_gone = index.gone
        tier = PackTier(store, index, storage.shapes)
        yield TierRig(tier, storage.open_namespace(), PARTS, group=8)
        await tier.close()
        assert storage.core.object_blocks >= len(index)
