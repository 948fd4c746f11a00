"""The checkpoint of a file tier's index: one LMDB row a slot, payload offset (8 bytes, big-endian) to slot record.

Rules
- It is a hint. Rows may be missing (a slot is forgotten) or stale (the header says so at the next read). Nothing waits
  for it.
- LMDB believes its own pages, and a flipped bit in them can end the process that reads them. So what an earlier process
  left is read by a child process (index_dump.py), and written anew: this process only ever opens what it made itself.
- All calls block, and belong on one thread of their own.
"""

from __future__ import annotations

import logging
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import lmdb

from kvstore import native
from kvstore.tiers import index_dump

__all__ = ["FileIndex", "read_left_index", "split_records"]

log = logging.getLogger(__name__)

RECORD_LENGTH_AT: Final = 8  # docs/format/slot.md
RECORD_OFFSET_AT: Final = 32
RECORD_FIXED_BYTES: Final = 152
MAP_BYTES_MIN: Final = 256 << 20
MAP_BYTES_MAX: Final = 64 << 30
DUMP_TIMEOUT_S: Final = 60.0


def split_records(records: bytes) -> Iterator[tuple[int, bytes]]:
    """(payload offset, record) of records laid end to end; stops at what has no possible length."""
    at = 0
    while at + RECORD_FIXED_BYTES <= len(records):
        (length,) = struct.unpack_from("<I", records, at + RECORD_LENGTH_AT)
        if length < RECORD_FIXED_BYTES or at + length > len(records):
            return
        (offset,) = struct.unpack_from("<Q", records, at + RECORD_OFFSET_AT)
        yield offset, records[at : at + length]
        at += length


def read_left_index(path: Path) -> bytes | None:
    """Records that an earlier process left, end to end; None where there is no index, or none that can be read. Damaged
    rows are left out.
    """
    if not (path / "data.mdb").exists():
        return None
    command = [sys.executable, "-I", index_dump.__file__, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=DUMP_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("file tier: the index in %s could not be read: %s", path, error)
        return None
    rows, complete = index_dump.unframe(done.stdout)
    if not complete:  # it died on the way, or could not begin
        log.warning("file tier: the index in %s is damaged: dropped, headers are read instead", path)
        return None
    records, damaged = native.whole_records(rows)
    if damaged:
        log.warning("file tier: the index in %s: %d damaged rows left out", path, damaged)
    return records


class FileIndex:
    """A fresh index at `path` with the given rows; it takes the place of what was there once it is durable."""

    def __init__(self, path: Path, tier_bytes: int, records: bytes = b"") -> None:
        """Raises OSError."""
        fresh = path.with_name(path.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        map_bytes = min(max(tier_bytes // 8, MAP_BYTES_MIN), MAP_BYTES_MAX)
        self.rows = 0
        try:
            self._env = lmdb.open(str(fresh), map_size=map_bytes, max_dbs=0, lock=False)
        except lmdb.Error as error:
            raise OSError(f"index: {error}") from error
        try:
            self._load(records)
            shutil.rmtree(path, ignore_errors=True)
            fresh.rename(path)
        except OSError:
            self._env.close()
            raise

    def _load(self, records: bytes) -> None:
        rows = sorted((struct.pack(">Q", offset), record) for offset, record in split_records(records))
        try:
            with self._env.begin(write=True) as txn:
                with txn.cursor() as cursor:
                    cursor.putmulti(rows)
                self.rows = txn.stat()["entries"]
        except lmdb.Error as error:
            raise OSError(f"index: {error}") from error

    def apply(self, freed: Iterable[int], records: bytes) -> None:
        """One durable transaction: removes the freed offsets, then puts the records. Raises OSError: nothing done."""
        try:
            with self._env.begin(write=True) as txn:
                for offset in freed:
                    txn.delete(struct.pack(">Q", offset))
                for offset, record in split_records(records):
                    txn.put(struct.pack(">Q", offset), record)
                self.rows = txn.stat()["entries"]
        except lmdb.Error as error:
            raise OSError(f"index: {error}") from error

    def close(self) -> None:
        self._env.close()
