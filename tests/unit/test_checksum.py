"""Native checksums and copies against the xxhash package and plain slicing."""

from __future__ import annotations

import itertools
import struct

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from kvstore import native

LEAF = 4096


def witness(data: bytes) -> int:
    leaves = [xxhash.xxh3_64_intdigest(data[at : at + LEAF]) for at in range(0, len(data), LEAF)]
    return xxhash.xxh3_64_intdigest(struct.pack(f"<{len(leaves)}Q", *leaves))


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, (2 << 20) + 1])
def test_part_checksums_equal_the_witness(size: int) -> None:
    data = noise(size, size)
    assert native.xxh3_64(data) == xxhash.xxh3_64_intdigest(data)
    assert native.part_checksum(data) == witness(data)
    leaves = native.leaf_digests(data)
    assert leaves.tolist() == [xxhash.xxh3_64_intdigest(data[at : at + LEAF]) for at in range(0, size, LEAF)]
    assert native.combine_leaves(leaves) == witness(data)
    target = bytearray(size)
    assert native.copy_parts([target], [data], [size]).tolist() == [witness(data)]
    assert target == data


def test_known_values_never_change() -> None:
    """Bytes that are stored today must verify in years: these are part of the format."""
    assert native.part_checksum(b"") == 0x2D06800538D394C2
    stored = {1: 0x02D1D7054DB18B7D, 16: 0x5238877534B0523A, 17: 0xDBF07C04A84214CA, 512: 0x1CA8A04FF286480B}
    assert {n: native.part_checksum(bytes(range(256)) * n) for n in stored} == stored


@given(st.binary(max_size=9000), st.integers(0, 70))
def test_alignment_does_not_matter(data: bytes, shift: int) -> None:
    moved = memoryview(bytes(shift) + data)[shift:]
    assert native.xxh3_64(moved) == xxhash.xxh3_64_intdigest(data)
    assert native.part_checksum(moved) == witness(data)


def test_part_checksums_walk_blocks_and_parts() -> None:
    data = noise(3 * 10_000)
    sums = native.part_checksums(data, [6000, 4000])
    cuts = [0, 6000, 10_000, 16_000, 20_000, 26_000, 30_000]
    assert sums.tolist() == [witness(data[a:b]) for a, b in itertools.pairwise(cuts)]
    with pytest.raises(ValueError, match="whole blocks of 7000"):
        native.part_checksums(data, [6000, 1000])
    with pytest.raises(ValueError, match="part_bytes"):
        native.part_checksums(data, [2**63, 2**63, 1])


def cut(data: st.DataObject, size: int) -> list[int]:
    """Sizes of pieces that add up to `size`; some are empty."""
    edges = sorted(data.draw(st.lists(st.integers(0, size), max_size=6)))
    return [b - a for a, b in itertools.pairwise([0, *edges, size])]


@given(st.integers(0, 5 * LEAF), st.data())
def test_any_pieces_to_any_pieces(size: int, data: st.DataObject) -> None:
    payload = noise(size, size)
    shift = data.draw(st.integers(0, 65))
    room = bytearray(b"\xee" * (size + 200))
    source, target, parts = cut(data, size), cut(data, size), cut(data, size)
    pieces, at = [], 0
    for length in source:
        pieces.append(memoryview(payload)[at : at + length])
        at += length
    views, at = [], shift
    for length in target:
        views.append(memoryview(room)[at : at + length])
        at += length
    sums = native.copy_parts(views, pieces, parts)
    assert room == b"\xee" * shift + payload + b"\xee" * (200 - shift)
    edges = [0, *itertools.accumulate(parts)]
    assert sums.tolist() == [witness(payload[a:b]) for a, b in itertools.pairwise(edges)]


@given(st.integers(0, 40_000), st.integers(0, 65), st.integers(0, 65))
def test_copy_bytes(size: int, from_shift: int, to_shift: int) -> None:
    payload = noise(size + from_shift, size)
    room = bytearray(b"\xee" * (size + 200))
    native.copy_bytes(memoryview(room)[to_shift : to_shift + size], memoryview(payload)[from_shift:])
    assert room == b"\xee" * to_shift + payload[from_shift:] + b"\xee" * (200 - to_shift)


def test_buffers_are_checked() -> None:
    with pytest.raises(TypeError, match="data must be a buffer"):
        native.part_checksum("text")
    with pytest.raises(ValueError, match="to must be a contiguous, writable buffer"):
        native.copy_bytes(b"read-only", b"123456789")
    with pytest.raises(ValueError, match="data must be a contiguous buffer"):
        native.xxh3_64(memoryview(b"123456")[::2])
    with pytest.raises(ValueError, match="of one size"):
        native.copy_bytes(bytearray(3), b"four")
    with pytest.raises(ValueError, match="of one size"):
        native.copy_parts([bytearray(4)], [b"four"], [5])
    with pytest.raises(ValueError, match="blocks names one"):
        native.copy_blocks("part", bytearray(4096), bytes(4096), 4096, [1])
    with pytest.raises(ValueError, match="kind must be"):
        native.copy_blocks("other", bytearray(4096), bytes(4096), 4096, [0])
