"""How long a node with 100,000 blocks of 16 KiB in files takes to list and serve them again.

From taking the directory to the first block read and verified: the index is read in a process of its own and written
anew, the table restored, the files opened. The interpreter's own start comes on top. The limit is reading the index.
"""

from __future__ import annotations

import asyncio
import mmap
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.harness import Row, at_most, measure, timed
from kvstore import native
from kvstore.clock import SystemClock
from kvstore.config import FileConfig
from kvstore.node.file_store import FileStore
from kvstore.tiers.base import Keys, Run, Shape, TierKind
from kvstore.tiers.file_index import read_left_index

__all__ = ["rows"]

BLOCKS = 100_000
BLOCK_BYTES = 16 << 10
RUN = 500
FILE = int(TierKind.FILE)
DIGEST = bytes(range(32))


class OneShape:
    def shape(self, ns: int, shard: int) -> Shape | None:
        return Shape(DIGEST, (BLOCK_BYTES,)) if (ns, shard) == (0, 0) else None


@dataclass
class Started:
    core: native.NodeCore
    store: FileStore
    meta: mmap.mmap


async def _start(directory: Path) -> Started:
    config = FileConfig(bytes=3 << 30, checkpoint_ms=50)
    store = FileStore(config, directory, SystemClock())
    table = store.prepare()
    memory = native.TableConfig(16 << 20, 1 << 20)
    meta = mmap.mmap(-1, native.NodeCore.meta_bytes(memory))
    address = np.frombuffer(meta, np.uint8).ctypes.data
    core = native.NodeCore(memory, table, meta=address, meta_bytes=len(meta), incarnation=1)
    core.open_namespace(DIGEST, 0, 16, [[BLOCK_BYTES]])
    await store.start(core, OneShape(), memoryview(mmap.mmap(-1, 4096)))
    return Started(core, store, meta)


def _keys(run: int) -> Keys:
    return np.random.default_rng(run).integers(256, size=(RUN, 32), dtype=np.uint8)


async def _fill(directory: Path, blocks: int) -> None:
    started = await _start(directory)
    block = memoryview(mmap.mmap(-1, BLOCK_BYTES))
    sums = np.tile(native.part_checksums(block, [BLOCK_BYTES]), (RUN, 1))
    for run in range(blocks // RUN):
        reservation = started.store.tier.reserve(Run(0, 0, _keys(run), None, sums, (b"",) * RUN))
        await reservation.write([block] * len(reservation.granted))
        reservation.seal()
    await started.store.stop()


async def _serve_one(directory: Path, blocks: int) -> float:
    """The loop's time when the first block was there; ending the node is not measured."""
    started = await _start(directory)
    listed = started.core.stats(FILE)["slots_sealed"]
    hold = started.store.tier.hold(0, 0, _keys(blocks // RUN - 1)[:1])
    assert listed == blocks, f"{listed} of {blocks} blocks are listed"
    assert hold is not None
    assert await hold.read([memoryview(mmap.mmap(-1, BLOCK_BYTES))]) == 1
    hold.release()
    serving_since = asyncio.get_running_loop().time()
    await started.store.stop()
    return serving_since


@contextmanager
def _filled(blocks: int) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="kvstore-bench-", dir=Path.cwd()))
    try:
        asyncio.run(_fill(directory, blocks))
        yield directory
    finally:
        shutil.rmtree(directory)


def rows(quick: bool) -> list[Row]:
    blocks = BLOCKS // 10 if quick else BLOCKS
    with _filled(blocks) as directory:

        def restart() -> float:
            async def once() -> float:
                start = asyncio.get_running_loop().time()
                return await _serve_one(directory, blocks) - start

            return asyncio.run(once())

        return [
            measure(
                f"restart with {blocks:,} blocks of 16 KiB in files",
                unit="s",
                ours=restart,
                limit=lambda: timed(lambda: read_left_index(directory / "index")),
                limit_is="reading the index, in a process of its own",
                target=at_most(2.0, "s"),
                rounds=1 if quick else 5,
            )
        ]
