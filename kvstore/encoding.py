"""Canonical encoding: the one byte string of a description, so that its digest is the same in every process and
language.

Integers are little-endian and of fixed size; texts and byte strings have their length in front (u32); lists their
count. No two descriptions encode alike. Used by `identity` and `layout`; docs/format/keys.md lists the fields.
"""

import hashlib
import struct

__all__ = ["Canonical"]


class Canonical:
    """Appends fields in the order they are given. The tag names what is encoded and in which version."""

    def __init__(self, tag: bytes) -> None:
        assert len(tag) == 4
        self._fields = [tag]

    def u32(self, value: int) -> "Canonical":
        self._fields.append(struct.pack("<I", value))
        return self

    def u64(self, value: int) -> "Canonical":
        self._fields.append(struct.pack("<Q", value))
        return self

    def data(self, value: bytes) -> "Canonical":
        self._fields.append(struct.pack("<I", len(value)) + value)
        return self

    def text(self, value: str) -> "Canonical":
        return self.data(value.encode())

    def u32s(self, values: tuple[int, ...]) -> "Canonical":
        self.u32(len(values))
        self._fields.append(struct.pack(f"<{len(values)}I", *values))
        return self

    def encoded(self) -> bytes:
        return b"".join(self._fields)

    def digest(self) -> bytes:
        return hashlib.sha256(self.encoded()).digest()
