"""Extents of an engine's blocks, against the bytes that indexing the tensor gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapters.base.pieces import LayerPlace, Pieces, runs

LAYERS, BLOCKS, HEADS, TOKENS, CONTENT = 3, 5, 2, 4, 6
ORDERS = list(itertools.permutations(range(5)))  # of layer, block, head, token, content


def cache(order: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A cache whose axes lie in memory in this order, and a view of it as (layer, block, head, token, content)."""
    sizes = (LAYERS, BLOCKS, HEADS, TOKENS, CONTENT)
    memory = np.arange(int(np.prod(sizes)), dtype=np.uint16).reshape([sizes[axis] for axis in order])
    return memory, memory.transpose([order.index(axis) for axis in range(5)])


def places(memory: np.ndarray, view: np.ndarray) -> list[LayerPlace]:
    base = memory.__array_interface__["data"][0]
    return [
        LayerPlace(
            0, layer.__array_interface__["data"][0] - base, layer.strides[0], layer.shape[1:], layer.strides[1:], 2
        )
        for layer in view
    ]


def gathered(memory: np.ndarray, table: np.ndarray) -> list[bytes]:
    flat = memory.view(np.uint8).reshape(-1)
    return [b"".join(flat[offset : offset + length].tobytes() for _, offset, length in block) for block in table]


def in_order_of_address(block: np.ndarray) -> bytes:
    axes = sorted(range(block.ndim), key=lambda axis: -block.strides[axis])
    return np.ascontiguousarray(block.transpose(axes)).tobytes()


@given(st.sampled_from(ORDERS), st.lists(st.integers(0, BLOCKS - 1), min_size=1, max_size=7))
def test_a_table_names_every_byte_of_a_block_layer_after_layer(order: tuple[int, ...], blocks: list[int]) -> None:
    memory, view = cache(order)
    pieces = Pieces.of([memory], places(memory, view))
    wanted = [b"".join(in_order_of_address(layer[block]) for layer in view) for block in blocks]
    assert gathered(memory, pieces.table(np.array(blocks))) == wanted
    assert pieces.layer_bytes == (HEADS * TOKENS * CONTENT * 2,) * LAYERS


@given(st.sampled_from(ORDERS), st.integers(0, LAYERS), st.integers(0, LAYERS))
def test_layers_of_a_block_are_what_the_whole_has_there(order: tuple[int, ...], one: int, other: int) -> None:
    first, end = sorted((one, other))
    memory, view = cache(order)
    pieces = Pieces.of([memory], places(memory, view))
    size = HEADS * TOKENS * CONTENT * 2
    (whole,) = gathered(memory, pieces.table(np.array([3])))
    (part,) = gathered(memory, pieces.table(np.array([3]), first, end)) or (b"",)
    assert part == whole[first * size : end * size]


@given(st.sampled_from(ORDERS))
def test_several_of_the_engines_blocks_make_one(order: tuple[int, ...]) -> None:
    memory, view = cache(order)
    pieces = Pieces.of([memory], places(memory, view), ratio=2)
    (got,) = gathered(memory, pieces.table(np.array([4, 1])))
    assert got == b"".join(in_order_of_address(layer[block]) for layer in view for block in (4, 1))


def test_an_engine_that_keeps_a_blocks_layers_together_is_read_in_one_piece() -> None:
    memory, view = cache((1, 0, 2, 3, 4))
    assert Pieces.of([memory], places(memory, view)).table(np.array([0, 2])).shape == (2, 1, 3)


def test_layers_apart_are_a_piece_each_and_heads_apart_several() -> None:
    memory, view = cache((0, 1, 2, 3, 4))
    assert Pieces.of([memory], places(memory, view)).table(np.array([0])).shape == (1, LAYERS, 3)
    memory, view = cache((0, 2, 1, 3, 4))
    assert Pieces.of([memory], places(memory, view)).table(np.array([0])).shape == (1, LAYERS * HEADS, 3)


def test_pieces_that_overlap_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap"):
        runs(LayerPlace(0, 0, 64, (4, 4), (4, 2), 2))
