"""Reads an index in a process of its own, because a damaged LMDB file may end the process that reads it.

Run as a program: `python -I index_dump.py PATH` writes the rows of PATH, each behind its length, so framed that a
reader sees whether all of them came. Imports nothing of the package: it starts in the time of an interpreter.
"""

from __future__ import annotations

import struct
import sys

MAGIC = b"KVSROWS2"
END = b"KVSEND02"
EPOCHS_KEY = b"\xff" * 8  # where no payload lies: the one row that is no slot's. docs/format/files.md
EPOCHS_BYTES = 16


def unframe(framed: bytes) -> tuple[bytes, bytes, bool]:
    """The rows, each behind its length (4 bytes); the row of epochs as it lay there, zeros where there was none; and
    whether all of it came.
    """
    tail = len(END) + 8 + EPOCHS_BYTES
    if len(framed) < len(MAGIC) + tail or not framed.startswith(MAGIC) or framed[-tail : 8 - tail] != END:
        return b"", bytes(EPOCHS_BYTES), False
    rows = framed[len(MAGIC) : -tail]
    (written,) = struct.unpack_from("<Q", framed, len(framed) - tail + len(END))
    return rows, framed[-EPOCHS_BYTES:], written == len(rows)


def main(path: str) -> int:
    import lmdb

    out = sys.stdout.buffer
    out.write(MAGIC)
    written = 0
    epochs = bytes(EPOCHS_BYTES)
    # No lock: whoever calls holds the directory's. Writable is not needed, so nothing here can make it worse.
    with lmdb.open(path, readonly=True, lock=False, max_dbs=0) as env, env.begin() as txn, txn.cursor() as cursor:
        for key, row in cursor:
            if key == EPOCHS_KEY:
                epochs = row[:EPOCHS_BYTES].ljust(EPOCHS_BYTES, b"\0")
                continue
            out.write(struct.pack("<I", len(row)))
            out.write(row)
            written += 4 + len(row)
    out.write(END + struct.pack("<Q", written) + epochs)
    out.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
