"""The file medium: a row of preallocated files, moved by io_uring or by preadv threads, past the page cache if it can.

Place (data_dir.py), motion (native/io) and logic (file.py) never share a file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvstore import native
from kvstore.errors import Misconfigured
from kvstore.tiers.io import AsyncEngine, EngineBusy

if TYPE_CHECKING:
    from kvstore.clock import Clock
    from kvstore.tiers.base import Extent, Pieces
    from kvstore.tiers.data_dir import DataDir, Geometry

__all__ = ["ENGINES", "FileMedium", "MotionConfig"]

ENGINES: Final = ("auto", "io_uring", "threads")
ALIGN: Final = 4096
CLOSE_MAX_S: Final = 10.0  # how long a close waits for a device that does not answer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MotionConfig:
    """How bytes move.

    depth: requests in the kernel at once; pending_max: those waiting behind them; deadline_ms: of each batch.
    """

    engine: str = "auto"
    depth: int = 32
    pending_max: int = 65_536
    deadline_ms: int = 10_000
    direct: bool = True
    register_memory: bool = True


class FileMedium:
    """The bytes of one file tier. See tiers/base.py for the contract."""

    def __init__(
        self,
        data_dir: DataDir,
        geometry: Geometry,
        motion: MotionConfig,
        clock: Clock,
        regions: Sequence[memoryview] = (),
    ) -> None:
        """regions: memory that most buffers will lie in; registered with the kernel where it allows that."""
        self._data_dir = data_dir
        self._geometry = geometry
        self._motion = motion
        self._clock = clock
        self._regions = regions
        self._files: list[int] = []
        self._native: native.IoEngine | None = None
        self._engine: AsyncEngine | None = None
        self.direct = False
        self.notes: list[str] = []  # what is not as it could be, for the doctor and the log

    @property
    def name(self) -> str:
        return "closed" if self._native is None else str(self._native.features()["engine"])

    @property
    def size(self) -> int:
        return self._geometry.size

    @property
    def align(self) -> int:
        return ALIGN

    @property
    def features(self) -> dict[str, bool | str]:
        return {} if self._native is None else self._native.features()

    @property
    def stats(self) -> dict[str, int]:
        """The engine's: see native/io/engine.hpp, EngineStats."""
        return {} if self._native is None else self._native.stats()

    async def open(self) -> None:
        paths = await asyncio.to_thread(self._data_dir.allocate, self._geometry)
        self._files = self._open_files(paths)
        try:
            engine = await asyncio.to_thread(self._open_engine)  # registering memory touches all of it
        except BaseException:
            self._close_files()
            raise
        if note := engine.features()["note"]:
            self.notes.append(str(note))
        for text in self.notes:
            log.warning("file tier: %s: %s (slower, and right: see kvstore doctor)", self._data_dir.path, text)
        self._native = engine
        self._engine = AsyncEngine(engine)
        self._engine.open()

    def _open_files(self, paths: Sequence[Path]) -> list[int]:
        flags = os.O_RDWR | os.O_CLOEXEC
        if self._motion.direct:
            try:
                files = _open_all(paths, flags | os.O_DIRECT)
            except OSError as error:
                self.notes.append(f"direct I/O refused ({error.strerror}): blocks go through the page cache")
            else:
                self.direct = True
                return files
        try:
            return _open_all(paths, flags)
        except OSError as error:
            raise Misconfigured(f"file tier: {self._data_dir.path}: {error.strerror}") from error

    def _open_engine(self) -> native.IoEngine:
        motion = self._motion

        def engine(kind: str) -> native.IoEngine:
            return native.IoEngine(
                kind,
                self._files,
                self._geometry.file_bytes,
                list(self._regions),
                motion.depth,
                motion.pending_max,
                motion.register_memory,
            )

        if motion.engine == "threads":
            return engine("threads")
        reason = native.uring_refused()
        if reason is None:
            return engine("io_uring")
        if motion.engine == "io_uring":
            raise Misconfigured(f"file.engine = 'io_uring': this machine refuses it: {reason}; allowed here: threads")
        self.notes.append(f"io_uring refused ({reason}): preadv threads instead")
        return engine("threads")

    async def read(
        self, extents: Sequence[Extent], into: Sequence[Pieces], *, background: bool = False
    ) -> Sequence[OSError | None]:
        return await self._move(False, extents, into, background)

    async def write(
        self, extents: Sequence[Extent], sources: Sequence[Pieces], *, background: bool = False
    ) -> Sequence[OSError | None]:
        return await self._move(True, extents, sources, background)

    async def _move(
        self, write: bool, extents: Sequence[Extent], buffers: Sequence[Pieces], background: bool
    ) -> Sequence[OSError | None]:
        if not extents:
            return []
        assert self._engine is not None, "open() first"
        deadline_ns = self._clock.now_ns() + self._motion.deadline_ms * 1_000_000
        offsets = [extent.offset for extent in extents]
        try:
            errors = await self._engine.move(write, offsets, buffers, deadline_ns, background=background)
        except EngineBusy:
            busy = OSError(11, f"file.pending_max = {self._motion.pending_max} requests are waiting")
            return [busy] * len(extents)
        if errors is None:
            return [None] * len(extents)
        return [OSError(code, os.strerror(code)) if code else None for code in errors]

    async def sync(self) -> None:
        for fd in self._files:
            await asyncio.to_thread(os.fdatasync, fd)

    async def close(self) -> None:
        if self._engine is not None and self._native is not None and not await self._engine.close(CLOSE_MAX_S):
            self.tell_of_silence(CLOSE_MAX_S)
            self._files = []  # open, and the memory kept, until the process ends: the device may come back
        self._engine = None
        self._native = None
        self._close_files()

    def tell_of_silence(self, for_s: float) -> bool:
        """Says in the log that the device does not answer, if it has anything to answer."""
        running = self.stats.get("running", 0)
        if running:
            log.error(
                "file tier: %s: the device does not answer: %d requests after %g s; "
                "their memory is kept until it does, or until this process ends",
                self._data_dir.path,
                running,
                for_s,
            )
        return running > 0

    def _close_files(self) -> None:
        for fd in self._files:
            os.close(fd)
        self._files = []


def _open_all(paths: Sequence[Path], flags: int) -> list[int]:
    opened: list[int] = []
    try:
        opened.extend(os.open(path, flags) for path in paths)
    except OSError:
        for fd in opened:
            os.close(fd)
        raise
    return opened
