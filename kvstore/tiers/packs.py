"""Packs: aligned groups of a chain's blocks as one object, named from the chain alone. No I/O here.

Rules
- A pack holds blocks [position, position + n) of one chain, of one shard, where position is a multiple of the
  namespace's `pack_blocks` and 1 <= n <= pack_blocks. It is named by namespace digest, shard and the key of its last
  block, so whoever knows a chain knows the names of its packs and needs no index: a node with an empty disk finds every
  one.
- Packs are immutable: the same name is the same content, written with create-if-absent. Chains that part within a group
  share the blocks before the fork by having them in both packs, at most pack_blocks - 1 of them.
- A pack describes itself (docs/format/pack.md): a head with keys, checksums and meta, and the blocks in chain order.
- The head is checked by its own checksum and against the name it was read under; blocks by their parts' checksums.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kvstore import native
from kvstore.tiers.base import Checksums, Keys

MAGIC: Final = b"KVPK"
VERSION: Final = 1
ALIGN: Final = 4096
KEY_BYTES: Final = 32
PACK_BYTES: Final = 32 << 20  # what a full pack aims at: first-byte latency is paid once a request
PACK_BLOCKS_MAX: Final = 64
PARTS_MAX: Final = 256
META_BYTES_MAX: Final = 1024

_FIXED: Final = struct.Struct("<4sHHIIHHIQ32s32s")  # 96 bytes
HEAD_BYTES_MAX: Final = 256 << 10


class DamagedPackError(ValueError):
    """The bytes are not a pack of this name: torn, altered, or of a later version."""


@dataclass(frozen=True, slots=True)
class PackHead:
    """What a pack says of itself. Block i lies at head_bytes + i * block_bytes."""

    digest: bytes
    shard: int
    position: int
    parent: bytes  # key of the block before the first; zeros at a chain's start
    block_bytes: int
    keys: Keys
    checksums: Checksums
    metas: tuple[bytes, ...]
    head_bytes: int

    @property
    def blocks(self) -> int:
        return int(self.keys.shape[0])

    def range_of(self, first: int, count: int) -> tuple[int, int]:
        """Start and length, in the object, of blocks [first, first + count)."""
        return self.head_bytes + first * self.block_bytes, count * self.block_bytes


def pack_blocks(block_bytes: int) -> int:
    """How many blocks a full pack of a namespace's shard has: a power of two, a function of the block size alone."""
    blocks = 1
    while blocks < PACK_BLOCKS_MAX and 2 * blocks * block_bytes <= PACK_BYTES:
        blocks *= 2
    return blocks


def namespace_prefix(digest: bytes) -> str:
    return f"v{VERSION}/{digest.hex()}"


def cleared_name(digest: bytes) -> str:
    """Of the empty object that says that this generation is over, whoever still finds packs of it."""
    return f"{namespace_prefix(digest)}/cleared"


def pack_name(digest: bytes, shard: int, last_key: bytes) -> str:
    """Two digits of the key come first: stores that shard by prefix spread the load over them."""
    name = last_key.hex()
    return f"{namespace_prefix(digest)}/{shard:02x}/{name[:2]}/{name}"


def group_ends(start: int, count: int, per_pack: int) -> list[int]:
    """Indices, into keys that begin at chain position `start`, of the last block of each group that ends there.

    The blocks after the last of these are a tail, which may lie in a partial pack.
    """
    return list(range(per_pack - 1 - start % per_pack, count, per_pack))


def head_bytes_of(blocks: int, parts: int, metas: Sequence[bytes]) -> int:
    plain = _FIXED.size + blocks * (KEY_BYTES + 4 + 8 * parts) + sum(map(len, metas)) + 8
    return -(-plain // ALIGN) * ALIGN


def encode_head(head: PackHead) -> bytes:
    """The head padded to ALIGN, with its own checksum last. `head.head_bytes` must be head_bytes_of its contents."""
    blocks, parts = head.checksums.shape
    assert head.keys.shape == (blocks, KEY_BYTES) and len(head.metas) == blocks
    assert 1 <= blocks <= PACK_BLOCKS_MAX and 1 <= parts <= PARTS_MAX
    assert all(len(meta) <= META_BYTES_MAX for meta in head.metas)
    assert head.head_bytes == head_bytes_of(blocks, parts, head.metas)
    counts = (head.head_bytes, head.position, blocks, parts, 0, head.block_bytes)
    fixed = _FIXED.pack(MAGIC, VERSION, head.shard, *counts, head.digest, head.parent)
    lengths = np.array([len(meta) for meta in head.metas], dtype="<u4")
    rows = (np.ascontiguousarray(head.keys).tobytes(), lengths.tobytes(), head.checksums.astype("<u8").tobytes())
    padded = b"".join((fixed, *rows, *head.metas)).ljust(head.head_bytes - 8, b"\0")
    return padded + struct.pack("<Q", native.xxh3_64(padded))


def head_size(start: bytes | memoryview) -> int:
    """How long the head is that starts with these bytes (at least 96); raises DamagedPackError."""
    if len(start) < _FIXED.size:
        raise DamagedPackError(f"{len(start)} bytes are no head")
    magic, version, _, size, *_ = _FIXED.unpack_from(start)
    if magic != MAGIC:
        raise DamagedPackError("not a pack")
    if version > VERSION:
        raise DamagedPackError(f"version {version}, this release reads up to {VERSION}")
    if not ALIGN <= size <= HEAD_BYTES_MAX or size % ALIGN:
        raise DamagedPackError(f"a head of {size} bytes")
    return int(size)


def decode_head(data: bytes | memoryview, digest: bytes, shard: int, last_key: bytes) -> PackHead:
    """The head in data[:head_size(data)], checked against the name it was found under; raises DamagedPackError."""
    size = head_size(data)
    if len(data) < size:
        raise DamagedPackError(f"head cut at {len(data)} of {size} bytes")
    head = memoryview(data)[:size]
    (stored,) = struct.unpack_from("<Q", head, size - 8)
    if native.xxh3_64(head[: size - 8]) != stored:
        raise DamagedPackError("head checksum")
    _, _, found_shard, _, position, blocks, parts, _, block_bytes, found_digest, parent = _FIXED.unpack_from(head)
    if (found_digest, found_shard) != (digest, shard):
        raise DamagedPackError("of another namespace or shard")
    if not 1 <= blocks <= PACK_BLOCKS_MAX or not 1 <= parts <= PARTS_MAX or block_bytes < 1:
        raise DamagedPackError(f"{blocks} blocks of {parts} parts")
    if _FIXED.size + blocks * (KEY_BYTES + 4 + 8 * parts) + 8 > size:
        raise DamagedPackError("rows beyond the head")
    at = _FIXED.size
    keys = np.frombuffer(head, np.uint8, blocks * KEY_BYTES, at).reshape(blocks, KEY_BYTES).copy()
    at += keys.nbytes
    lengths = np.frombuffer(head, "<u4", blocks, at)
    at += lengths.nbytes
    checksums = np.frombuffer(head, "<u8", blocks * parts, at).reshape(blocks, parts).astype(np.uint64)
    at += checksums.nbytes
    if keys[-1].tobytes() != last_key:
        raise DamagedPackError("of another chain")
    metas = _metas(head[at : size - 8], lengths)
    return PackHead(digest, shard, position, parent, block_bytes, keys, checksums, metas, size)


def _metas(area: memoryview, lengths: npt.NDArray[np.uint32]) -> tuple[bytes, ...]:
    if int(lengths.max()) > META_BYTES_MAX or int(lengths.sum()) > len(area):
        raise DamagedPackError("meta beyond the head")
    ends = np.cumsum(lengths)
    return tuple(bytes(area[int(end - length) : int(end)]) for end, length in zip(ends, lengths, strict=True))
