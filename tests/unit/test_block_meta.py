"""Metas of blocks: what is said comes back, and what is nobody's is none."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.block_meta import META_BYTES_MAX, BlockMeta, metas_of, read

U64 = st.integers(0, 2**64 - 1)
I64 = st.integers(-(2**63), -1)


def one_form() -> st.SearchStrategy[list[int] | list[bytes]]:
    raw = st.integers(1, 64).flatmap(
        lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=4)
    )
    return st.one_of(st.lists(U64, min_size=1, max_size=4), st.lists(I64, min_size=1, max_size=4), raw)


@given(one_form(), st.data())
def test_what_is_said_of_a_run_comes_back_block_by_block(hashes: list[int] | list[bytes], data: st.DataObject) -> None:
    block_tokens = data.draw(st.integers(1, 40))
    top = data.draw(st.sampled_from([2**16 - 1, 2**24 - 1, 2**32 - 1]))
    count = block_tokens * len(hashes)
    tokens = data.draw(st.one_of(st.just([]), st.lists(st.integers(0, top), min_size=count, max_size=count)))
    parent = data.draw(st.sampled_from([None, hashes[-1]]))
    lora_id = data.draw(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)))
    name = data.draw(st.text(max_size=20))
    metas = metas_of(
        hashes, parent=parent, tokens=tokens, block_tokens=block_tokens, group=3, lora_id=lora_id, lora_name=name
    )
    before = parent
    for i, (meta, own) in enumerate(zip(metas, hashes, strict=True)):
        said = tuple(tokens[i * block_tokens : (i + 1) * block_tokens])
        assert read(meta) == BlockMeta(own, before, block_tokens, said, 3, lora_id, name)
        before = own


def test_a_block_of_sixteen_tokens_costs_less_than_a_hundred_bytes() -> None:
    for top, size in ((65_535, 56), (151_000, 72), (2**31, 88)):
        (meta,) = metas_of([1], parent=2, tokens=[top] * 16, block_tokens=16)
        assert len(meta) == size


def test_what_does_not_fit_is_told_as_nothing() -> None:
    tokens = list(range(70_000, 70_000 + 1_024))
    assert [len(meta) for meta in metas_of([1, 2], parent=None, tokens=tokens, block_tokens=512)] == [0, 0]
    fits = metas_of([1, 2, 3, 4], parent=None, tokens=tokens, block_tokens=256)
    assert [len(meta) for meta in fits] == [784, 792, 792, 792] and max(map(len, fits)) <= META_BYTES_MAX
    assert metas_of([b"x" * 65], parent=None, tokens=[], block_tokens=16) == [b""]
    assert metas_of([1], parent=b"x", tokens=[], block_tokens=16) == [b""]
    assert metas_of([2**64], parent=None, tokens=[], block_tokens=16) == [b""]
    assert metas_of([1], parent=None, tokens=[], block_tokens=16, lora_name="x" * 256) == [b""]
    (tokenless,) = metas_of([1], parent=None, tokens=[-1] * 16, block_tokens=16)
    assert read(tokenless) == BlockMeta(1, None, 16)
    with pytest.raises(ValueError, match="tokens: 3, must be 16"):
        metas_of([1], parent=None, tokens=[1, 2, 3], block_tokens=16)


def test_what_is_nobodys_is_none() -> None:
    (good,) = metas_of([5], parent=6, tokens=np.arange(16), block_tokens=16, lora_id=1, lora_name="ä")
    assert read(good) is not None
    for cut in range(len(good)):
        assert read(good[:cut]) is None
    assert read(good + b"\0") is None and read(b"\2" + good[1:]) is None
    draw = random.Random(1)
    for _ in range(20_000):
        mangled = bytearray(good)
        for _ in range(draw.randint(1, 3)):
            mangled[draw.randrange(12)] = draw.randrange(256)
        read(bytes(mangled))  # whatever it answers, it answers
