"""Packs: what is written is read, what is altered is refused, and names come from the chain alone."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstore.tiers import packs
from kvstore.tiers.packs import (
    DamagedPackError,
    PackHead,
    decode_head,
    encode_head,
    group_ends,
    head_bytes_of,
    pack_blocks,
)

DIGEST = hashlib.sha256(b"namespace").digest()


def head_of(blocks: int, parts: int, metas: tuple[bytes, ...], seed: int = 0, shard: int = 3) -> PackHead:
    rng = np.random.default_rng(seed)
    keys = rng.integers(0, 256, (blocks, 32), dtype=np.uint8)
    checksums = rng.integers(0, 2**63, (blocks, parts), dtype=np.uint64)
    return PackHead(DIGEST, shard, 32, b"p" * 32, 8192, keys, checksums, metas, head_bytes_of(blocks, parts, metas))


@given(st.integers(1, 64), st.integers(1, 256), st.data())
def test_a_head_comes_back_as_it_was(blocks: int, parts: int, data: st.DataObject) -> None:
    metas = tuple(data.draw(st.lists(st.binary(max_size=1024), min_size=blocks, max_size=blocks)))
    head = head_of(blocks, parts, metas)
    encoded = encode_head(head)
    assert len(encoded) == head.head_bytes == packs.head_size(encoded) <= packs.HEAD_BYTES_MAX
    # The witness of the checksum is another library.
    assert struct.unpack_from("<Q", encoded, len(encoded) - 8)[0] == xxhash.xxh3_64_intdigest(encoded[:-8])
    back = decode_head(encoded + b"payload", DIGEST, 3, head.keys[-1].tobytes())
    assert (back.keys == head.keys).all()
    assert (back.checksums == head.checksums).all()
    assert (back.metas, back.position, back.parent) == (head.metas, head.position, head.parent)


@given(st.integers(0, 4095), st.integers(1, 255))
def test_any_altered_byte_is_refused(at: int, flip: int) -> None:
    head = head_of(4, 3, (b"a", b"", b"bc", b""))
    encoded = bytearray(encode_head(head))
    encoded[at] ^= flip
    with pytest.raises(DamagedPackError):
        decode_head(bytes(encoded), DIGEST, 3, head.keys[-1].tobytes())


@given(st.binary(max_size=9000))
def test_no_bytes_are_anything_but_damaged(data: bytes) -> None:
    with pytest.raises(DamagedPackError):
        decode_head(data, DIGEST, 3, b"k" * 32)


def test_another_name_is_refused() -> None:
    head = head_of(2, 1, (b"", b""))
    encoded, last = encode_head(head), head.keys[-1].tobytes()
    for digest, shard, key in ((b"x" * 32, 3, last), (DIGEST, 4, last), (DIGEST, 3, head.keys[0].tobytes())):
        with pytest.raises(DamagedPackError):
            decode_head(encoded, digest, shard, key)


def test_a_later_version_is_told() -> None:
    encoded = bytearray(encode_head(head_of(1, 1, (b"",))))
    struct.pack_into("<H", encoded, 4, 2)
    with pytest.raises(DamagedPackError, match="version 2"):
        decode_head(bytes(encoded), DIGEST, 3, b"k" * 32)


@pytest.mark.parametrize(
    ("block_bytes", "blocks"), [(4096, 64), (2 << 20, 16), (3 << 20, 8), (32 << 20, 1), (64 << 20, 1)]
)
def test_pack_size_is_a_function_of_the_block_size(block_bytes: int, blocks: int) -> None:
    assert pack_blocks(block_bytes) == blocks


def test_names_come_from_the_chain_alone() -> None:
    key = bytes(range(32))
    assert packs.pack_name(DIGEST, 3, key) == f"v1/{DIGEST.hex()}/03/00/{key.hex()}"
    assert group_ends(16, 40, 16) == [15, 31]
    assert group_ends(0, 15, 16) == []
