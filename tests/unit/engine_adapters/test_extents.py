"""The extents of a transformers cache name exactly the bytes of each block, in the stored order."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (make test installs it)")

from engine_adapters.transformers.extents import block_table  # noqa: E402

HEADS, TOKENS, DIM, BLOCK = 3, 40, 8, 16


def gathered(tensors: list[torch.Tensor], rows: np.ndarray) -> bytes:
    raw = [t.numpy().view(np.uint8).reshape(-1) for t in tensors]
    return b"".join(raw[index][offset : offset + length].tobytes() for index, offset, length in rows)


@pytest.mark.parametrize("first", [0, 1])
def test_a_block_is_layer_then_keys_values_then_head(first: int) -> None:
    tensors = [torch.randn(1, HEADS, TOKENS, DIM) for _ in range(4)]
    blocks = 2 - first
    table = block_table(tensors, first, blocks, BLOCK)
    assert table.shape == (blocks, 4 * HEADS, 3)
    for block in range(blocks):
        tokens = slice((first + block) * BLOCK, (first + block + 1) * BLOCK)
        expected = b"".join(t[0, :, tokens].contiguous().numpy().tobytes() for t in tensors)
        assert gathered(tensors, table[block]) == expected


def test_what_does_not_fit_is_named() -> None:
    good = torch.zeros(1, HEADS, TOKENS, DIM)
    with pytest.raises(ValueError, match=r"tensors\[1\]: 8 tokens, needs 32"):
        block_table([good, good[:, :, :8].contiguous()], 0, 2, BLOCK)
    with pytest.raises(ValueError, match=r"tensors\[0\]: must be contiguous"):
        block_table([good[:, :, :32]], 0, 2, BLOCK)
    with pytest.raises(ValueError, match=r"tensors\[0\]: shape"):
        block_table([good[0]], 0, 2, BLOCK)
