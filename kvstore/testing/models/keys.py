"""Keys by hashlib, as docs/format/keys.md says; and checksums by xxhash. Both independent of the native code."""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import xxhash

LEAF_BYTES = 4096


class Extra(NamedTuple):
    """What else decides the content: applies to the tokens [first, end) of the call, which may begin before it."""

    kind: int  # 1 LoRA, 2 salt, 3 multimodal, 4 embeds
    first: int
    end: int
    value: bytes


def hmac_sha256(secret: bytes, message: bytes) -> bytes:
    return hmac.new(secret, message, hashlib.sha256).digest()


def chain_keys(seed: bytes, tokens: Sequence[int], block_tokens: int, extras: Sequence[Extra] = ()) -> list[bytes]:
    """Keys of all full blocks."""
    blocks = len(tokens) // block_tokens
    encoded = {block: encode_extras(extras, block, block_tokens) for block in range(blocks)}
    return chain_keys_encoded(seed, tokens, block_tokens, encoded)


def chain_keys_encoded(
    seed: bytes, tokens: Sequence[int], block_tokens: int, extras: Mapping[int, bytes]
) -> list[bytes]:
    """The same with the extras of each block encoded already."""
    keys: list[bytes] = []
    before = seed
    for block in range(len(tokens) // block_tokens):
        own = tokens[block * block_tokens : (block + 1) * block_tokens]
        more = extras.get(block, b"")
        text = b"kvk1" + before + struct.pack(f"<I{block_tokens}I", block_tokens, *own)
        before = hashlib.sha256(text + struct.pack("<I", len(more)) + more).digest()
        keys.append(before)
    return keys


def chain_keys_of_hashes(seed: bytes, hashes: Sequence[bytes]) -> list[bytes]:
    """One engine hash a block."""
    keys: list[bytes] = []
    before = seed
    for value in hashes:
        before = hashlib.sha256(b"kvh1" + before + struct.pack("<I", len(value)) + value).digest()
        keys.append(before)
    return keys


def encode_extras(extras: Sequence[Extra], block: int, block_tokens: int) -> bytes:
    """Records sorted as byte strings, equal ones once; the same wherever a call begins."""
    start, end = block * block_tokens, (block + 1) * block_tokens
    records = set()
    for extra in extras:
        if extra.end <= start or extra.first >= end:
            continue
        first, last = max(extra.first, start), min(extra.end, end)
        placed = extra.kind in (3, 4)  # of an image it matters which of its tokens these are
        before = max(0, start - extra.first) if placed else 0
        head = struct.pack("<BIIQI", extra.kind, first - start, last - start, before, len(extra.value))
        records.add(head + extra.value)
    return b"".join(sorted(records))


def part_checksum(data: bytes | memoryview) -> int:
    """XXH3-64 over the XXH3-64s of the 4 KiB leaves."""
    leaves = [xxhash.xxh3_64_intdigest(data[at : at + LEAF_BYTES]) for at in range(0, len(data), LEAF_BYTES)]
    return xxhash.xxh3_64_intdigest(struct.pack(f"<{len(leaves)}Q", *leaves))


def part_checksums(data: bytes | memoryview, parts: Sequence[int]) -> list[int]:
    """One a part, of one block."""
    out, at = [], 0
    for size in parts:
        out.append(part_checksum(data[at : at + size]))
        at += size
    return out
