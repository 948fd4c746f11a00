"""The memory tier's two pieces of shared memory: payload, which clients map, and meta, which nobody else sees.

DIRECTORY/kvstore-NAME.meta      0600, an exclusive flock while a node runs; superblock and entries
DIRECTORY/kvstore-NAME.payload   0600, blocks

Rules
- Allocated in full at start, so that a full tmpfs is an error message now and not a SIGBUS later.
- Never truncated: somebody may still map them. What does not fit any more is unlinked and made anew.
- Meta without its payload, or the other way round, tells nothing: then both are made anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvstore import native
from kvstore.allowed import GIB, MIB, human
from kvstore.config import MemoryConfig
from kvstore.errors import Misconfigured

SLABS_PER_TIER: Final = 8  # at least, where slab_bytes is not given
SLAB_BYTES_MAX: Final = 64 * MIB
SLAB_BYTES_MIN: Final = 64 << 10
MADV_POPULATE_WRITE: Final = 23  # Linux 5.14; not in Python 3.11's mmap
META_SHARE: Final = 8  # of the payload, set aside when the default size is chosen


@dataclass(frozen=True, slots=True)
class Size:
    """Of the memory tier: a whole number of slabs. asked_bytes: of which this is what fits."""

    bytes: int
    slab_bytes: int
    asked_bytes: int = field(default=0, compare=False)


def choose_size(config: MemoryConfig, former_bytes: int | None, free_bytes: int) -> Size:
    """Pure. What was said, else what is there already, else min(1 GiB, half of what is free); whole slabs of it."""
    wanted = config.bytes or former_bytes or min(GIB, free_bytes // 2)
    slab = config.slab_bytes
    if slab is None:
        slab = SLAB_BYTES_MIN
        while slab < SLAB_BYTES_MAX and slab * 2 * SLABS_PER_TIER <= wanted:
            slab *= 2
    if wanted < 2 * slab:
        raise Misconfigured(
            f"memory.bytes = {human(wanted)}: must be at least two slabs of {human(slab)} (memory.slab_bytes)"
        )
    return Size(wanted // slab * slab, slab, wanted)


def planned(config: MemoryConfig, name: str) -> Size:
    """What a node of that name would take if it started now. Raises Misconfigured as its start; changes nothing."""
    directory, payload = config.directory, config.directory / f"kvstore-{name}.payload"
    if not os.access(directory, os.W_OK):
        raise Misconfigured(f"memory.directory = {str(directory)!r}: cannot be written")
    former = payload.stat().st_size if payload.exists() else 0
    size = choose_size(config, former or None, _free_bytes(directory))
    stats = os.statvfs(directory)
    if size.bytes > stats.f_bavail * stats.f_frsize + former:
        raise _too_large("memory.bytes", size.bytes, directory)
    return size


@dataclass(slots=True)
class Mapped:
    """A file of shared memory, mapped for the life of the process."""

    path: Path
    fd: int
    memory: mmap.mmap
    fresh: bool

    @property
    def address(self) -> int:
        return ctypes.addressof(ctypes.c_char.from_buffer(self.memory))


class Segments:
    """From `open` to `close`; the mappings stay until the process ends, since the core works in them."""

    def __init__(self, config: MemoryConfig, name: str) -> None:
        self._config = config
        self._payload_path = config.directory / f"kvstore-{name}.payload"
        self._meta_path = config.directory / f"kvstore-{name}.meta"
        self._lock = -1
        self.size: Size
        self.payload: Mapped
        self.meta: Mapped

    def open(self) -> None:
        """Raises Misconfigured where another node has them, or there is too little shared memory."""
        self._acquire()
        try:
            former = self._former_bytes()
            self.size = choose_size(self._config, former, _free_bytes(self._config.directory) + (former or 0))
            table = self.table()
            meta_bytes = native.NodeCore.meta_bytes(table)
            if former != self.size.bytes or self._meta_path.stat().st_size != meta_bytes:
                self._renew()
            self._map(meta_bytes)
            if not native.NodeCore.meta_usable(table, self.meta.address, meta_bytes):
                self._renew()
                self._map(meta_bytes)
        except BaseException:
            self.close(keep=os.fstat(self._lock).st_size > 0 and self._payload_path.exists())
            raise

    def table(self) -> native.TableConfig:
        """For the core. The seed is new at each start, so that nobody can aim keys at one bucket of the index."""
        size, seed = self.size, secrets.randbits(64)
        return native.TableConfig(size.bytes, size.slab_bytes, policy=self._config.policy, hash_seed=seed)

    def close(self, *, keep: bool) -> None:
        """keep: leave the blocks for the next start."""
        if self._lock < 0:
            return
        if not keep:
            self._payload_path.unlink(missing_ok=True)
            self._meta_path.unlink(missing_ok=True)
        os.close(self._lock)
        self._lock = -1

    def _acquire(self) -> None:
        """The flock on meta. A file that was unlinked between open and flock is not the one to hold."""
        while True:
            try:
                fd = os.open(self._meta_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except OSError as error:
                raise Misconfigured(
                    f"memory.directory = {str(self._config.directory)!r}: cannot be written: {error.strerror}"
                ) from error
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                raise Misconfigured(f"{self._meta_path}: another node uses this segment; give node.name") from error
            found = self._meta_path.stat() if self._meta_path.exists() else None
            if found is not None and found.st_ino == os.fstat(fd).st_ino:
                self._lock = fd
                return
            os.close(fd)

    def _former_bytes(self) -> int | None:
        try:
            payload, meta = self._payload_path.stat(), os.fstat(self._lock)
        except FileNotFoundError:
            return None
        return payload.st_size if payload.st_size and meta.st_size else None

    def _renew(self) -> None:
        """Leaves the old files to whoever still maps them. The new meta is locked before the old one is let go."""
        self._payload_path.unlink(missing_ok=True)
        self._meta_path.unlink(missing_ok=True)
        former = self._lock
        self._lock = -1
        try:
            self._acquire()
        finally:
            os.close(former)

    def _map(self, meta_bytes: int) -> None:
        self.payload = _mapped(self._payload_path, self.size.bytes, "memory.bytes")
        try:
            self.meta = _mapped(self._meta_path, meta_bytes, "memory.bytes (its index)")
        except Misconfigured:
            if self.payload.fresh:
                self._payload_path.unlink(missing_ok=True)
            raise


def _free_bytes(directory: Path) -> int:
    """What a payload here could take, index set aside."""
    stats = os.statvfs(directory)
    return stats.f_bavail * stats.f_frsize // (META_SHARE + 1) * META_SHARE


def _mapped(path: Path, length: int, what: str) -> Mapped:
    """Allocated in full. A new file is touched first: tmpfs gives huge pages to who asks for them and then touches
    (huge=advise), and small ones to fallocate.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    fresh = os.fstat(fd).st_size == 0
    try:
        room = os.fstatvfs(fd)
        if fresh and length > room.f_bavail * room.f_frsize:  # said now: touching would fill all that there is
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fresh:
            os.ftruncate(fd, length)
        memory = mmap.mmap(fd, length)
        with contextlib.suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        # Before Linux 5.14 pages come as they are used; where there is no room after all, what follows says so.
        with contextlib.suppress(OSError):
            memory.madvise(MADV_POPULATE_WRITE)
        os.posix_fallocate(fd, 0, length)
        return Mapped(path, fd, memory, fresh)
    except OSError as error:
        os.close(fd)
        if fresh:
            path.unlink(missing_ok=True)
        if error.errno not in {errno.ENOSPC, errno.ENOMEM, errno.EFBIG}:
            raise Misconfigured(f"{path}: {error.strerror}") from error
        raise _too_large(what, length, path.parent) from error


def _too_large(what: str, length: int, directory: Path) -> Misconfigured:
    stats = os.statvfs(directory)
    return Misconfigured(
        f"{what} = {human(length)}: {directory} has {human(stats.f_bavail * stats.f_frsize)} free; ask for less, "
        "or enlarge it (mount -o remount,size=..., docker --shm-size)"
    )
