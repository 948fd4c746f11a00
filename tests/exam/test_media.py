"""The Medium exam over every medium: io_uring, preadv threads, the page cache, and the faulty twin without faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvstore import native
from kvstore.clock import SystemClock
from kvstore.testing.exam_medium import MediumExam, aligned, filled
from kvstore.testing.faulty_medium import FaultyMedium
from kvstore.tiers.base import Extent, Medium
from kvstore.tiers.data_dir import DataDir, Geometry
from kvstore.tiers.medium import FileMedium, MotionConfig

MIB = 1 << 20
GEOMETRY = Geometry(slab_bytes=256 << 10, slabs_per_file=3, slabs=16)  # six files, the last one shorter


def file_medium(path: Path, motion: MotionConfig) -> tuple[DataDir, FileMedium]:
    data_dir = DataDir(path / "tier")
    data_dir.acquire()
    return data_dir, FileMedium(data_dir, GEOMETRY, motion, SystemClock())


MOTIONS = {
    "io_uring": MotionConfig(engine="io_uring", depth=4),
    "threads": MotionConfig(engine="threads", depth=4),
    "cached": MotionConfig(engine="threads", depth=4, direct=False),
    "deep": MotionConfig(engine="auto", depth=64, register_memory=False),
}


class TestFileMedium(MediumExam):
    @pytest.fixture(params=MOTIONS)
    async def medium(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Medium]:
        motion = MOTIONS[request.param]
        if motion.engine == "io_uring" and (reason := native.uring_refused()):
            pytest.skip(f"io_uring: {reason}")
        data_dir, medium = file_medium(tmp_path, motion)
        await medium.open()
        assert motion.engine in {"auto", medium.name}
        yield medium
        await medium.close()
        data_dir.release()


class TestFaultyMedium(MediumExam):
    @pytest.fixture
    async def medium(self) -> Medium:
        return FaultyMedium(4 * MIB, random.Random(1))


async def test_a_batch_beyond_the_limit_is_answered(tmp_path: Path) -> None:
    data_dir, medium = file_medium(tmp_path, MotionConfig(pending_max=4))
    await medium.open()
    results = await medium.read([Extent(0, 4096)] * 5, [aligned(4096)] * 5)
    assert all(isinstance(result, OSError) and "pending_max" in str(result) for result in results)
    assert list(await medium.read([Extent(0, 4096)] * 4, [aligned(4096)] * 4)) == [None] * 4
    await medium.close()
    data_dir.release()


async def test_close_ends_what_is_under_way(tmp_path: Path) -> None:
    data_dir, medium = file_medium(tmp_path, MotionConfig(engine="threads", depth=1))
    await medium.open()
    under_way = asyncio.ensure_future(medium.write([Extent(0, 256 << 10)] * 64, [filled(256 << 10, 1)] * 64))
    await asyncio.sleep(0)
    await medium.close()
    results = await under_way
    assert any(result is not None for result in results)
    data_dir.release()


async def test_bytes_are_found_by_the_next_opening(tmp_path: Path) -> None:
    extents = [Extent(i * 256 * 1024, 8192) for i in range(GEOMETRY.slabs)]
    for turn, engine in enumerate(("threads", "auto")):
        data_dir, medium = file_medium(tmp_path, MotionConfig(engine=engine))
        await medium.open()
        if turn == 0:
            await medium.write(extents, [filled(8192, i) for i in range(len(extents))])
        into = [aligned(8192) for _ in extents]
        assert list(await medium.read(extents, into)) == [None] * len(extents)
        assert [bytes(b) for b in into] == [bytes(filled(8192, i)) for i in range(len(extents))]
        await medium.close()
        data_dir.release()
