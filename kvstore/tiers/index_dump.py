"""Reads an index in a process of its own, because a damaged LMDB file may end the process that reads it.

Run as a program: `python -I index_dump.py PATH` writes the rows of PATH, each behind its length, so framed that a
reader sees whether all of them came. Imports nothing of the package: it starts in the time of an interpreter.
"""

from __future__ import annotations

import struct
import sys

MAGIC = b"KVSROWS1"
END = b"KVSEND01"


def unframe(framed: bytes) -> tuple[bytes, bool]:
    """The rows, each behind its length (4 bytes), and whether they are all there."""
    tail = len(END) + 8
    if len(framed) < len(MAGIC) + tail or not framed.startswith(MAGIC) or framed[-tail:-8] != END:
        return b"", False
    rows = framed[len(MAGIC) : -tail]
    return rows, struct.unpack("<Q", framed[-8:])[0] == len(rows)


def main(path: str) -> int:
    import lmdb

    out = sys.stdout.buffer
    out.write(MAGIC)
    written = 0
    # No lock: whoever calls holds the directory's. Writable is not needed, so nothing here can make it worse.
    with lmdb.open(path, readonly=True, lock=False, max_dbs=0) as env, env.begin() as txn, txn.cursor() as cursor:
        for _, row in cursor:
            out.write(struct.pack("<I", len(row)))
            out.write(row)
            written += 4 + len(row)
    out.write(END + struct.pack("<Q", written))
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
