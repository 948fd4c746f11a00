"""A file tier's medium as its pages: which header or which piece of which block each holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from kvstore.testing.models.records import Record

PAGE: Final = 4096
Torn = Literal["", "no header", "no payload"]


@dataclass(slots=True)
class DiskModel:
    """`headers` by the page they lie on, as bytes and as read; `pieces`: (record without flags, piece) by page."""

    headers: dict[int, tuple[bytes, Record]] = field(default_factory=dict)
    pieces: dict[int, tuple[Record, int]] = field(default_factory=dict)

    def write(self, raw: bytes, record: Record, torn: Torn = "") -> None:
        """A header and its payload: two operations, so that a cut may leave either alone."""
        first = record.offset // PAGE
        if torn != "no header":
            self.headers[first - 1] = (raw, record)
            self.pieces.pop(first - 1, None)
        if torn != "no payload":
            for piece in range(pages_of(record)):
                self.headers.pop(first + piece, None)
                self.pieces[first + piece] = (record, piece)

    def reads_back(self, record: Record) -> bool:
        """Whether a reader who goes by this record finds its header and every piece of its block."""
        first = record.offset // PAGE
        there = self.headers.get(first - 1)
        if there is None or identity(there[1]) != identity(record):
            return False
        pieces = [self.pieces.get(first + piece) for piece in range(pages_of(record))]
        return all(
            found is not None and (identity(found[0]), found[1]) == (identity(record), piece)
            for piece, found in enumerate(pieces)
        )


def identity(record: Record) -> tuple[object, ...]:
    """What decides which bytes they are: a reader compares no more."""
    return record.name, record.payload_bytes, record.offset, record.checksums


def pages_of(record: Record) -> int:
    return -(-record.payload_bytes // PAGE)
