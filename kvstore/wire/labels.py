"""Labels as numbers: how a family's or a session's text travels where only 64 bits do."""

from __future__ import annotations

import hashlib


def label_id(label: int | str) -> int:
    """The number itself, or the first 8 bytes of the text's SHA-256, little-endian; 0 only for 0 and for no text."""
    if isinstance(label, int):
        return label
    return int.from_bytes(hashlib.sha256(label.encode()).digest()[:8], "little") or 1 if label else 0
