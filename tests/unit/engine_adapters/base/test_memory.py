"""Addresses in an engine's tensors, as extents of the store."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from engine_adapters.base.memory import Memories


def test_views_of_one_storage_are_one_buffer_and_addresses_are_found_in_the_right_one() -> None:
    one, other = torch.arange(64, dtype=torch.float32), torch.zeros(32, dtype=torch.uint8)
    memories = Memories([one[8:16], one.view(8, 8)[1], other, torch.empty(0)])
    assert sorted(buffer.nbytes for buffer in memories.buffers) == [32, 256]
    addresses = np.array([[one.data_ptr() + 12, other.data_ptr()], [one.data_ptr(), other.data_ptr() + 30]])
    table = memories.table(addresses, np.array([[8, 4], [256, 2]]))
    assert table.shape == (2, 2, 3)
    for row, address, length in zip(table.reshape(-1, 3), addresses.reshape(-1), (8, 4, 256, 2), strict=True):
        buffer = memories.buffers[row[0]]
        assert buffer.__array_interface__["data"][0] + row[1] == address
        assert row[2] == length
    assert (memories.buffers[table[0, 0, 0]][12:20].view(np.float32) == [3.0, 4.0]).all()


@pytest.mark.parametrize(("offset", "length"), [(-1, 4), (0, 257), (256, 1), (253, 4)])
def test_a_piece_outside_is_refused(offset: int, length: int) -> None:
    tensor = torch.zeros(64, dtype=torch.float32)
    with pytest.raises(ValueError, match="outside"):
        Memories([tensor]).table(np.array([tensor.data_ptr() + offset]), np.array([length]))


def test_nothing_has_no_places() -> None:
    with pytest.raises(ValueError, match="outside"):
        Memories([]).table(np.array([4096]), np.array([1]))
