"""What a checkpoint says of epochs: the next life counts on above all that this one may have written under."""

from __future__ import annotations

import asyncio
import mmap
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from kvstore import native
from kvstore.clock import SystemClock
from kvstore.config import FileConfig
from kvstore.node.checkpoint import Checkpoint
from kvstore.node.file_store import FileStore
from kvstore.tiers.base import Run, TierKind
from kvstore.tiers.data_dir import Geometry
from kvstore.tiers.file_index import EPOCHS_AHEAD, FileIndex, LeftIndex, read_left_index
from kvstore.tiers.memory import MemoryTier
from tests.storage import Shapes, chain_of, content

MEMORY_BYTES = 1 << 20
SLAB_BYTES = 256 << 10


@dataclass
class Counting:
    """A core of which only the checkpoint's questions are asked."""

    epochs: int = 10
    changes: list[tuple[bytes, npt.NDArray[np.uint64]]] = field(default_factory=list)

    def file_epochs(self) -> int:
        return self.epochs

    def drain_changes(self, most: int) -> tuple[bytes, npt.NDArray[np.uint64]]:
        return self.changes.pop() if self.changes else (b"", np.empty(0, np.uint64))


async def test_the_index_is_always_told_of_more_epochs_than_were_counted(tmp_path: Path) -> None:
    core, path = Counting(), tmp_path / "index"
    with ThreadPoolExecutor(1) as thread:
        index = FileIndex(path, 1 << 30, b"", core.epochs + EPOCHS_AHEAD)
        checkpoint = Checkpoint(cast("native.NodeCore", core), index, thread, 1000)
        told = core.epochs
        for counted, change in ((1, True), (5, False), (EPOCHS_AHEAD // 2 - 6, False), (1, False), (7, True)):
            core.epochs += counted
            core.changes = [(b"", np.array([4096], np.uint64))] if change else []
            await checkpoint.flush()
            if change or core.epochs - told >= EPOCHS_AHEAD // 2:
                told = core.epochs
            assert read_left_index(path) == LeftIndex(b"", told + EPOCHS_AHEAD)
        assert told == core.epochs
        await checkpoint.stop()
    assert read_left_index(path) == LeftIndex(b"", core.epochs), "a stop takes nothing away from the count"


class Life:
    """A file store in a process that is only ever killed: on a copy of what the one before has left."""

    def __init__(self, directory: Path) -> None:
        memory = native.TableConfig(MEMORY_BYTES, SLAB_BYTES)
        self.store = FileStore(
            FileConfig(bytes=8 * SLAB_BYTES, slab_bytes=SLAB_BYTES, checkpoint_ms=3_600_000), directory, SystemClock()
        )
        table = self.store.prepare()
        self.payload = memoryview(mmap.mmap(-1, MEMORY_BYTES))
        self.meta = mmap.mmap(-1, native.NodeCore.meta_bytes(memory))
        address = np.frombuffer(self.meta, np.uint8).ctypes.data
        self.core = native.NodeCore(memory, table, meta=address, meta_bytes=len(self.meta), incarnation=1)
        self.shapes = Shapes()

    async def start(self) -> None:
        await self.store.start(self.core, self.shapes, self.payload)
        for ns, size in enumerate((4096, 8192)):
            self.shapes.rows[self.core.open_namespace(bytes([ns]) * 32, 0, 16, [[size]])] = (
                bytes([ns]) * 32,
                ((size,),),
            )

    async def write(self, which: int, seed: object, blocks: int) -> None:
        ns = sorted(self.shapes.rows)[which]
        shape = self.shapes.shape(ns, 0)
        assert shape is not None
        keys = chain_of(seed, blocks)
        bodies = [memoryview(bytearray(content(key.tobytes(), shape.bytes))) for key in keys]
        sums = np.stack([native.part_checksums(body, [shape.bytes]) for body in bodies])
        reservation = self.store.tier.reserve(Run(ns, 0, keys, None, sums, tuple([b""] * blocks)))
        assert len(reservation.granted) == blocks
        memory = memoryview(mmap.mmap(-1, blocks * shape.bytes))
        places = [memory[i * shape.bytes : (i + 1) * shape.bytes] for i in range(blocks)]
        for place, body in zip(places, bodies, strict=True):
            place[:] = body
        await reservation.write(places)
        assert reservation.seal() == blocks
        self.core.retire_keys(ns, keys)


@pytest.mark.parametrize("lost", [False, True], ids=["the index of its start", "no index"])
async def test_a_life_counts_on_above_what_the_last_one_wrote(tmp_path: Path, lost: bool) -> None:
    """Although no transaction ever told of it, and all of it was forgotten before it was killed."""
    counted, directory = 0, tmp_path / "0"
    for life in range(3):
        node = Life(directory)
        await node.start()
        assert node.core.file_epochs() >= counted, "it would write under epochs that were used"
        for turn in range(4):
            await node.write(turn % 2, (life, turn), 3)
        assert node.core.file_epochs() > counted
        counted = node.core.file_epochs()
        following = tmp_path / str(life + 1)
        await asyncio.to_thread(shutil.copytree, directory, following)  # as a kill leaves it
        if lost:
            shutil.rmtree(following / "index")
        await node.store.stop()
        directory = following


async def test_slots_cut_otherwise_are_forgotten_and_their_epochs_are_not(tmp_path: Path) -> None:
    node = Life(tmp_path)
    await node.start()
    await node.write(0, "before", 3)
    await node.store.stop()
    counted = node.core.file_epochs()
    assert counted > 0
    store = FileStore(FileConfig(bytes=4 * SLAB_BYTES, slab_bytes=SLAB_BYTES * 2), tmp_path, SystemClock())
    table = store.prepare()
    assert store.geometry == Geometry(SLAB_BYTES * 2, store.geometry.slabs_per_file, 2)
    memory = native.TableConfig(MEMORY_BYTES, SLAB_BYTES)
    core = native.NodeCore(
        memory, table, meta=np.frombuffer(node.meta, np.uint8).ctypes.data, meta_bytes=len(node.meta), incarnation=2
    )
    await store.start(core, node.shapes, node.payload)
    assert store.restored == 0 and core.file_epochs() >= counted
    await store.stop()


async def test_what_the_disk_did_not_take_is_in_its_report(tmp_path: Path) -> None:
    node = Life(tmp_path)
    await node.start()
    assert node.store.stats()["file_write_failures"] == 0
    memory = MemoryTier(node.core, node.payload, lambda ns, shard: (), SystemClock())
    node.store.demotion(memory).failures = 3
    assert node.store.stats() == {
        **node.core.stats(int(TierKind.FILE)),
        "file_write_failures": 3,
        "file_checkpoint_failures": 0,
    }
    await node.store.stop()
