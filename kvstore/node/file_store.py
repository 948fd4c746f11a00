"""A node's file tier, put together: directory, geometry, medium, table rows, index, checkpoint, write-behind.

Order: `prepare` before the core is made, since it decides the table's size; `start` once the core is there; `stop`
after the mover has stopped and before the memory that is registered here is unmapped.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstore import native
from kvstore.errors import Misconfigured
from kvstore.node.admission import Admission
from kvstore.node.checkpoint import Checkpoint
from kvstore.node.demotion import Demotion
from kvstore.quiet import quietly
from kvstore.tiers.base import Extent, TierKind
from kvstore.tiers.data_dir import HEADER_BYTES, DataDir, Geometry, room_bytes
from kvstore.tiers.file import FileTier
from kvstore.tiers.file_index import EPOCHS_AHEAD, FileIndex, LeftIndex, epochs_after, read_left_index
from kvstore.tiers.file_scan import scan_headers
from kvstore.tiers.medium import FileMedium, MotionConfig
from kvstore.tiers.page_pool import PagePool

if TYPE_CHECKING:
    from kvstore.clock import Clock
    from kvstore.config import FileConfig
    from kvstore.tiers.base import Medium, Shapes
    from kvstore.tiers.memory import MemoryTier

__all__ = ["FileStore", "choose_bytes"]

log = logging.getLogger(__name__)

DEFAULT_BYTES: Final = 10 << 30
POOL_PAGES: Final = 4096


def choose_bytes(config: FileConfig, room: int) -> int:
    """Pure. What was said, else min(10 GiB, half of the disk); half of the disk, too, where `shrink` lets it."""
    if config.bytes is None:
        return min(DEFAULT_BYTES, room // 2)
    return room // 2 if config.bytes > room and config.shrink else config.bytes


class FileStore:
    def __init__(self, config: FileConfig, directory: Path, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._dir = DataDir(directory)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="index")
        self._checkpoint: Checkpoint | None = None
        self._demotion: Demotion | None = None
        self._found = False  # slots of an earlier process lie here
        self._left: LeftIndex | None = None  # its index
        self._pages = PagePool(POOL_PAGES)
        self._core: native.NodeCore | None = None
        self.asked_bytes = 0
        self.geometry: Geometry
        self.medium: FileMedium
        self.tier: FileTier
        self.restored = 0
        self.scanned = False

    def prepare(self) -> native.TableConfig:
        """Takes the directory, blocking. Raises Misconfigured, and has let go of it then."""
        self._dir.acquire()
        try:
            self.asked_bytes = self._size()
            self.geometry = Geometry.of(self.asked_bytes, self._config.slab_bytes, self._dir.former())
            log.info(
                "file tier: %s: %d bytes asked for, %d used: whole slabs of %d",
                self._dir.path,
                self.asked_bytes,
                self.geometry.size,
                self.geometry.slab_bytes,
            )
            self._found = self._dir.adopt(self.geometry)
            self._dir.allocate(self.geometry)
            self._left = read_left_index(self._dir.index_path)
        except BaseException as error:
            self._dir.release()
            if isinstance(error, OSError):
                raise Misconfigured(f"file tier: {self._dir.path}: {error}") from error
            raise
        return native.TableConfig(
            self.geometry.size, self.geometry.slab_bytes, header_bytes=HEADER_BYTES, policy=self._config.policy
        )

    def _size(self) -> int:
        wanted, chosen = self._config.bytes, choose_bytes(self._config, room_bytes(self._dir.path))
        if wanted is not None and chosen != wanted:
            log.warning("file tier: %s: %d bytes instead of %d: the disk has no more", self._dir.path, chosen, wanted)
        return chosen

    async def start(self, core: native.NodeCore, shapes: Shapes, segment: memoryview) -> None:
        """segment: the memory tier's payload, which promotions and demotions move to and from."""
        config = self._config
        motion = MotionConfig(
            engine=config.engine,
            depth=config.depth,
            pending_max=config.pending_max,
            deadline_ms=config.deadline_ms,
            direct=config.direct,
            register_memory=config.register_memory,
        )
        medium = FileMedium(self._dir, self.geometry, motion, self._clock, [segment, self._pages.memory])
        await medium.open()
        self.medium = medium
        self.tier = FileTier(core, medium, shapes, self._pages, self._clock)
        self._core = core
        index = await self._restore(core, medium)
        if index is not None:
            self._checkpoint = Checkpoint(core, index, self._thread, config.checkpoint_ms)
            self._checkpoint.start()

    async def _restore(self, core: native.NodeCore, medium: Medium) -> FileIndex | None:
        """Lists what is there: by the index, or where that is lost, by the headers."""
        left, self._left = self._left, None
        # Slots that were cut otherwise are forgotten, but their headers lie there yet: those of this life must win.
        records = left.records if left is not None and self._found else b""
        epochs = left.epochs if left is not None else 0
        if left is None and self._found:
            log.warning("file tier: %s: no index: reading the headers", self._dir.path)
            records = await scan_headers(medium, self.geometry)
            epochs = epochs_after(records)  # a header may have been hidden, or never have landed
            self.scanned = True
        self.restored = core.restore(records, epochs)
        loop, path, size = asyncio.get_running_loop(), self._dir.index_path, self.geometry.size
        try:
            ahead = core.file_epochs() + EPOCHS_AHEAD
            return await quietly(loop.run_in_executor(self._thread, FileIndex, path, size, records, ahead))
        except OSError as error:
            log.warning("file tier: %s: no checkpoints, a restart will read headers: %s", self._dir.path, error)
            shutil.rmtree(path, ignore_errors=True)  # what is older than this life would only mislead the next
            return None

    def demotion(self, memory: MemoryTier) -> Demotion:
        """Write-behind from memory to here."""
        admission = Admission(self._config.admission, ghost_keys_max=self._config.ghost_keys_max)
        bytes_max = min(self._config.write_behind_bytes_max, memory.size // 4)
        self._demotion = Demotion(memory, self.tier, admission, bytes_max, self.room_bytes)
        return self._demotion

    def stats(self) -> dict[str, int]:
        """Counters by name, as a tier's report has them: those of its table, and what the disk did not take."""
        assert self._core is not None, "start() first"
        return {
            **self._core.stats(int(TierKind.FILE)),
            "file_write_failures": self._demotion.failures if self._demotion is not None else 0,
            "file_checkpoint_failures": self._checkpoint.failures if self._checkpoint is not None else 0,
        }

    def room_bytes(self) -> int:
        """What can be written without evicting."""
        assert self._core is not None, "start() first"
        return int(self._core.stats(int(TierKind.FILE))["bytes_free"])

    async def read(self, offset: int, length: int) -> memoryview | None:
        """A payload as it lies, for a check of its own; None where the medium fails."""
        whole = memoryview(mmap.mmap(-1, -(-length // self.medium.align) * self.medium.align))
        (error,) = await self.medium.read([Extent(offset, len(whole))], [whole], background=True)
        return None if error is not None else whole[:length]

    def tell_of_silence(self, for_s: float) -> None:
        """For the log, when a stop takes long."""
        if self._core is not None:
            self.medium.tell_of_silence(for_s)

    async def stop(self) -> None:
        """Whatever `start` came to."""
        if self._checkpoint is not None:
            await self._checkpoint.stop()
        self._thread.shutdown()
        if self._core is not None:
            await self.medium.close()
            self.tier.close()
        self._dir.release()
