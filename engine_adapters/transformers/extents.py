"""Where the blocks of a chain lie inside a transformers cache.

A layer's keys and values are tensors of shape (1, kv_heads, tokens, head_dim). Tokens of one head are contiguous, heads
are not, so a block of one layer lies in 2 x kv_heads places. The order inside a stored block is layer, then keys before
values, then head:

    block b, layer l:  K head 0 [tokens b*B .. (b+1)*B) | K head 1 | ... | V head 0 | ...

so that a part (one layer) is contiguous in the store and its extents are in ascending order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


def block_table(
    tensors: Sequence[torch.Tensor], first_block: int, blocks: int, block_tokens: int
) -> npt.NDArray[np.int64]:
    """(blocks, k, 3) rows of (tensor index, byte offset, byte length), k = sum of kv_heads over the tensors.

    `tensors`: keys and values of each layer in turn, each (1, kv_heads, tokens, head_dim) and contiguous, holding at
    least (first_block + blocks) * block_tokens tokens. Raises ValueError naming the tensor that does not fit.
    """
    columns: list[npt.NDArray[np.int64]] = []
    starts = np.arange(first_block, first_block + blocks, dtype=np.int64) * block_tokens
    for index, tensor in enumerate(tensors):
        if tensor.dim() != 4 or tensor.shape[0] != 1:
            raise ValueError(f"tensors[{index}]: shape {tuple(tensor.shape)}, must be (1, kv_heads, tokens, head_dim)")
        if not tensor.is_contiguous():
            raise ValueError(f"tensors[{index}]: must be contiguous")
        _, heads, tokens, head_dim = tensor.shape
        if (first_block + blocks) * block_tokens > tokens:
            raise ValueError(f"tensors[{index}]: {tokens} tokens, needs {(first_block + blocks) * block_tokens}")
        token_bytes = head_dim * tensor.element_size()
        head_starts = np.arange(heads, dtype=np.int64) * (tokens * token_bytes)
        offsets = starts[:, None] * token_bytes + head_starts[None, :]
        rows = np.empty((blocks, heads, 3), dtype=np.int64)
        rows[:, :, 0] = index
        rows[:, :, 1] = offsets
        rows[:, :, 2] = block_tokens * token_bytes
        columns.append(rows)
    return np.concatenate(columns, axis=1)
