"""The checkpoint of a file tier's index: one LMDB row a slot, payload offset (8 bytes, big-endian) to slot record.

Rules
- It is a hint. Rows may be missing (a slot is forgotten) or stale (the header says so at the next read). Nothing waits
  for it.
- One row more says up to where epochs may have been counted (docs/format/files.md): the next process counts on above,
  so that what it writes wins over every header that this one leaves, should headers be all that is left one day.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import lmdb
import xxhash

from kvstore import native
from kvstore.tiers import index_dump

__all__ = ["EPOCHS_AHEAD", "FileIndex", "LeftIndex", "epochs_after", "read_left_index", "split_records"]

log = logging.getLogger(__name__)

RECORD_LENGTH_AT: Final = 8  # docs/format/slot.md
RECORD_EPOCH_AT: Final = 28  # the upper half of the sequence
RECORD_OFFSET_AT: Final = 32
RECORD_FIXED_BYTES: Final = 152
MAP_BYTES_MIN: Final = 256 << 20
MAP_BYTES_MAX: Final = 64 << 30
DUMP_TIMEOUT_S: Final = 60.0
# So many epochs may be counted before the next transaction is durable: 4 TiB written, in slabs of 64 MiB.
EPOCHS_AHEAD: Final = 1 << 16
EPOCHS_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class LeftIndex:
    """What an earlier process left: its records, end to end, and up to which epoch it may have written."""

    records: bytes
    epochs: int


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


def _encode_epochs(epochs: int) -> bytes:
    word = struct.pack("<Q", min(epochs, EPOCHS_MAX))
    return word + struct.pack("<Q", xxhash.xxh3_64_intdigest(word))


def _decode_epochs(row: bytes) -> int | None:
    """None: there is none, or it is damaged."""
    word, check = row[:8], row[8:]
    epochs: int = struct.unpack("<Q", word)[0]
    return epochs if check == struct.pack("<Q", xxhash.xxh3_64_intdigest(word)) and epochs <= EPOCHS_MAX else None


def epochs_after(records: bytes) -> int:
    """Up to where epochs may have been counted, as far as records tell: the latest of theirs, and EPOCHS_AHEAD more."""
    latest = max(
        (struct.unpack_from("<I", record, RECORD_EPOCH_AT)[0] for _, record in split_records(records)), default=0
    )
    return min(latest + EPOCHS_AHEAD, EPOCHS_MAX)


def read_left_index(path: Path) -> LeftIndex | None:
    """None where there is no index, or none that can be read. Damaged rows are left out; an index of before epochs were
    kept, or whose row of them is damaged, is taken for what its records say.
    """
    if not (path / "data.mdb").exists():
        return None
    command = [sys.executable, "-I", index_dump.__file__, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=DUMP_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        log.warning("file tier: the index in %s could not be read: %s", path, error)
        return None
    rows, epochs_row, complete = index_dump.unframe(done.stdout)
    if not complete:  # it died on the way, or could not begin
        log.warning("file tier: the index in %s is damaged: dropped, headers are read instead", path)
        return None
    records, damaged = native.whole_records(rows)
    if damaged:
        log.warning("file tier: the index in %s: %d damaged rows left out", path, damaged)
    epochs = _decode_epochs(epochs_row)
    return LeftIndex(records, epochs_after(records) if epochs is None else epochs)


class FileIndex:
    """A fresh index at `path` with the given rows; it takes the place of what was there once it is durable."""

    def __init__(self, path: Path, tier_bytes: int, records: bytes = b"", epochs: int = 0) -> None:
        """epochs: up to where this process may count before the first `apply`. Raises OSError."""
        fresh = path.with_name(path.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        map_bytes = min(max(tier_bytes // 8, MAP_BYTES_MIN), MAP_BYTES_MAX)
        try:
            self._env = lmdb.open(str(fresh), map_size=map_bytes, max_dbs=0, lock=False)
        except lmdb.Error as error:
            raise OSError(f"index: {error}") from error
        try:
            self._load(records, epochs)
            shutil.rmtree(path, ignore_errors=True)
            fresh.rename(path)
        except OSError:
            self._env.close()
            raise

    def _load(self, records: bytes, epochs: int) -> None:
        rows = sorted((struct.pack(">Q", offset), record) for offset, record in split_records(records))
        try:
            with self._env.begin(write=True) as txn:
                with txn.cursor() as cursor:
                    cursor.putmulti(rows)
                txn.put(index_dump.EPOCHS_KEY, _encode_epochs(epochs))
        except lmdb.Error as error:
            raise OSError(f"index: {error}") from error

    def apply(self, freed: Iterable[int], records: bytes, epochs: int) -> None:
        """One durable transaction: removes the freed offsets, then puts the records. epochs: up to where this process
        may count before the next. Raises OSError: nothing done.
        """
        try:
            with self._env.begin(write=True) as txn:
                for offset in freed:
                    txn.delete(struct.pack(">Q", offset))
                for offset, record in split_records(records):
                    txn.put(struct.pack(">Q", offset), record)
                txn.put(index_dump.EPOCHS_KEY, _encode_epochs(epochs))
        except lmdb.Error as error:
            raise OSError(f"index: {error}") from error

    def close(self) -> None:
        self._env.close()
