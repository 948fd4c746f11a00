"""The directory of a file tier: who owns it, how it is cut up, and its preallocated files. docs/format/files.md.

DIR/lock              an exclusive flock while a node uses the directory
DIR/superblock.json   format version and geometry, written before any slot
DIR/slots-00000 ...   equal files, allocated in full; a slab lies within one
DIR/index/            the checkpoint of the index (file_index.py)
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kvstore.allowed import human
from kvstore.errors import Misconfigured

__all__ = ["HEADER_BYTES", "DataDir", "Geometry", "room_bytes", "slab_bytes_for"]

FORMAT: Final = 1
HEADER_BYTES: Final = 4096  # in front of each payload
PAYLOAD_MAX: Final = 64 << 20  # of a slab, where its size is not given
PAYLOAD_MIN: Final = 64 << 10
SLABS_MIN: Final = 8  # likewise: each serves one block size at a time
FILE_BYTES_MAX: Final = 1 << 30
FILES_MAX: Final = 65_536
SUPERBLOCK_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Geometry:
    """How the tier's bytes are cut. Offsets of the tier run through the files, one after another."""

    slab_bytes: int
    slabs_per_file: int
    slabs: int

    @staticmethod
    def of(tier_bytes: int, slab_bytes: int | None = None, former: Geometry | None = None) -> Geometry:
        """As many whole slabs as fit. Where their size is not given, it is that of `former`, what lies there already,
        as long as it leaves less than a tenth over; else what fits the tier.
        """
        if slab_bytes is None and former is not None and _used_well(tier_bytes, former.slab_bytes):
            slab_bytes = former.slab_bytes
        slab_bytes = slab_bytes or slab_bytes_for(tier_bytes)
        slabs = tier_bytes // slab_bytes
        if slabs < 1:
            raise Misconfigured(
                f"file.bytes = {human(tier_bytes)}: must be at least one slab, {human(slab_bytes)}; "
                "ask for more, or for less in file.slab_bytes"
            )
        per_file = max(1, FILE_BYTES_MAX // slab_bytes, -(-slabs // FILES_MAX))
        return Geometry(slab_bytes, per_file, slabs)

    @property
    def size(self) -> int:
        return self.slabs * self.slab_bytes

    @property
    def file_bytes(self) -> int:
        return self.slabs_per_file * self.slab_bytes

    @property
    def files(self) -> int:
        return -(-self.slabs // self.slabs_per_file)

    def bytes_of_file(self, index: int) -> int:
        """The last file is as long as its slabs."""
        return min(self.file_bytes, self.size - index * self.file_bytes)


def slab_bytes_for(tier_bytes: int) -> int:
    """The largest slab, up to 64 MiB and headers, of which eight fit and less than a tenth of the tier is left over. A
    power of two of payload, with room for the headers of blocks of 2 MiB, or of one block where it is smaller.
    """
    payload = PAYLOAD_MAX
    while payload > PAYLOAD_MIN:
        slab = _with_headers(payload)
        if tier_bytes // slab >= SLABS_MIN and _used_well(tier_bytes, slab):
            return slab
        payload //= 2
    return _with_headers(PAYLOAD_MIN)


def _with_headers(payload: int) -> int:
    return payload + max(1, payload >> 21) * HEADER_BYTES


def _used_well(tier_bytes: int, slab_bytes: int) -> bool:
    return tier_bytes % slab_bytes * 10 < tier_bytes


def room_bytes(directory: Path) -> int:
    """What a tier here could take: free space for this user, and what its files have already."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    stats = os.statvfs(existing)
    taken = sum(path.stat().st_blocks * 512 for path in directory.glob("slots-*")) if directory.is_dir() else 0
    return stats.f_bavail * stats.f_frsize + taken


class DataDir:
    """One node's, from `acquire` to `release`. All calls block on the file system; none belongs on an event loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    @property
    def index_path(self) -> Path:
        return self.path / "index"

    @property
    def _superblock(self) -> Path:
        return self.path / "superblock.json"

    def acquire(self) -> None:
        """Raises Misconfigured where the directory cannot be written or another node has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Misconfigured(f"file tier: {self.path}: cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise Misconfigured(f"file tier: {self.path}: another node uses this directory") from error

    def release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def former(self) -> Geometry | None:
        """How what lies here was cut, if anybody can tell. Raises Misconfigured for a newer format."""
        return self._read_superblock(self._superblock)

    def adopt(self, geometry: Geometry) -> bool:
        """Writes the superblock. True if what lies here was cut the same way, so that its slots can be found again."""
        path, before = self._superblock, self.former()
        same = before is not None and (before.slab_bytes, before.slabs_per_file) == (
            geometry.slab_bytes,
            geometry.slabs_per_file,
        )
        if before != geometry:
            text = json.dumps(
                {
                    "format": FORMAT,
                    "slab_bytes": geometry.slab_bytes,
                    "slabs_per_file": geometry.slabs_per_file,
                    "slabs": geometry.slabs,
                }
            )
            fresh = path.with_suffix(".new")
            with fresh.open("w") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            _sync_directory(self.path)
        return same

    def _read_superblock(self, path: Path) -> Geometry | None:
        """None: there is none, or it is damaged, and then the slots are not to be trusted either."""
        try:
            with path.open("rb") as file:
                raw = json.loads(file.read(SUPERBLOCK_BYTES_MAX))
            version = raw["format"]
            numbers = [raw["slab_bytes"], raw["slabs_per_file"], raw["slabs"]]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if isinstance(version, int) and version > FORMAT:
            raise Misconfigured(
                f"file tier: {path}: format {version}, this program knows {FORMAT}: "
                "use a newer program or another directory"
            )
        if version != FORMAT or not all(isinstance(n, int) and n > 0 for n in numbers):
            return None
        return Geometry(*numbers)

    def allocate(self, geometry: Geometry) -> list[Path]:
        """The tier's files, allocated in full. Raises Misconfigured where the disk is too small; what was new is
        taken back then. Files beyond the geometry are removed.
        """
        paths = [self.path / f"slots-{i:05}" for i in range(geometry.files)]
        self.check_room(geometry)  # before the disk is full for everybody else
        new: list[Path] = []
        for i, path in enumerate(paths):
            try:
                self._allocate_one(path, geometry.bytes_of_file(i), new)
            except OSError as error:
                for made in new:
                    made.unlink(missing_ok=True)
                if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                    raise self._too_small(geometry, error.strerror) from error
                raise Misconfigured(f"file tier: {path}: {error.strerror}") from error
        for path in self.path.glob("slots-*"):
            if path not in paths:
                path.unlink()
        return paths

    def check_room(self, geometry: Geometry) -> None:
        """Raises Misconfigured where the disk has less than that."""
        if geometry.size > (room := room_bytes(self.path)):
            raise self._too_small(geometry, f"{human(room)} are free for it")

    def _too_small(self, geometry: Geometry, why: str | None) -> Misconfigured:
        return Misconfigured(
            f"file tier: {self.path}: file.bytes = {human(geometry.size)} does not fit the disk: {why}"
        )

    @staticmethod
    def _allocate_one(path: Path, length: int, new: list[Path]) -> None:
        is_new = not path.exists()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if is_new:
                new.append(path)
            if os.fstat(fd).st_size > length:
                os.ftruncate(fd, length)
            os.posix_fallocate(fd, 0, length)
        finally:
            os.close(fd)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
