"""What a text model on a CPU calls of sgl_kernel, in torch."""

from __future__ import annotations

import torch

__all__ = ["assign_req_to_token_pool_cpu"]


def assign_req_to_token_pool_cpu(
    requests: torch.Tensor,
    table: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
    places: torch.Tensor,
    width: int,
) -> None:
    """Row `requests[i]` of the table gets, from start[i] to end[i], the next of `places`."""
    del width
    done = 0
    for row, first, last in zip(requests.tolist(), start.tolist(), end.tolist(), strict=True):
        table[row, first:last] = places[done : done + last - first].to(table.dtype)
        done += last - first
