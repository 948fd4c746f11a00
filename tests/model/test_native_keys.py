"""Native keys and checksums against hashlib and xxhash."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from kvstore import native
from kvstore.testing.models import keys as model

SEEDS = st.binary(min_size=32, max_size=32)
TOKENS = st.builds(
    lambda length, start, step: [(start + number * step) % 2**32 for number in range(length)],
    st.integers(0, 70),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 65_537, 2**31 + 11]),
)
BLOCK_TOKENS = st.sampled_from([1, 2, 3, 4, 5, 8, 16, 33])
EXTRAS = st.lists(
    st.builds(
        lambda kind, first, length, value: model.Extra(kind, first, first + length, value),
        st.integers(1, 4),
        st.integers(-20, 60),
        st.integers(1, 60),
        st.sampled_from([b"a", b"b", b"lora", bytes(range(40))]) | st.binary(min_size=1, max_size=50),
    ),
    max_size=6,
)


def listed(keys: npt.NDArray[np.uint8]) -> list[bytes]:
    return [row.tobytes() for row in keys]


@given(SEEDS, TOKENS, BLOCK_TOKENS, EXTRAS)
def test_chains(seed: bytes, tokens: list[int], block_tokens: int, extras: list[model.Extra]) -> None:
    found = native.keys_chain(seed, np.array(tokens, np.uint32), block_tokens, extras)
    assert listed(found) == model.chain_keys(seed, tokens, block_tokens, extras)


@given(SEEDS, TOKENS, BLOCK_TOKENS, EXTRAS, st.integers(0, 8))
def test_a_chain_in_two_calls(
    seed: bytes, tokens: list[int], block_tokens: int, extras: list[model.Extra], blocks: int
) -> None:
    """The second call begins at a block's end, and its extras count from there."""
    whole = model.chain_keys(seed, tokens, block_tokens, extras)
    blocks = min(blocks, len(whole))
    cut = blocks * block_tokens
    first = listed(native.keys_chain(seed, np.array(tokens[:cut], np.uint32), block_tokens, extras))
    moved = [model.Extra(e.kind, e.first - cut, e.end - cut, e.value) for e in extras]
    parent = first[-1] if first else seed
    second = listed(native.keys_chain(parent, np.array(tokens[cut:], np.uint32), block_tokens, moved))
    assert first + second == whole


@given(SEEDS, st.lists(st.binary(min_size=1, max_size=64), max_size=8))
def test_chains_of_hashes(seed: bytes, hashes: list[bytes]) -> None:
    assert listed(native.keys_chain_hashes(seed, hashes)) == model.chain_keys_of_hashes(seed, hashes)


@given(SEEDS, TOKENS, BLOCK_TOKENS, st.dictionaries(st.integers(0, 9), st.binary(min_size=1, max_size=90)))
def test_chains_with_extras_encoded(
    seed: bytes, tokens: list[int], block_tokens: int, extras: dict[int, bytes]
) -> None:
    found = native.keys_chain_encoded(seed, np.array(tokens, np.uint32), block_tokens, sorted(extras.items()))
    assert listed(found) == model.chain_keys_encoded(seed, tokens, block_tokens, extras)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_hmac(secret: bytes, message: bytes) -> None:
    assert native.hmac_sha256(secret, message) == model.hmac_sha256(secret, message)


@given(st.lists(st.integers(1, 9_000), min_size=1, max_size=5))
def test_checksums_of_parts(sizes: list[int]) -> None:
    data = np.random.default_rng(sum(sizes)).bytes(sum(sizes))
    assert native.part_checksums(data, sizes).tolist() == model.part_checksums(data, sizes)
