"""The io backend "direct" between device and host pools, by torch indexing. Which function copies which layouts:

                                        source                          destination
    transfer_kv_direct                  layers of [token, ...]          layers of [token, ...]
    ..._per_layer_direct_pf_lf          pages [page, layer, token, ..]  one layer of [token, ...]
    ..._all_layer_direct_lf_pf          layers of [token, ...]          pages [page, layer, token, ...]

Indices are of tokens, whole pages in order; a page's first index tells which page of a page-first pool it is. Keys and
values come as lists, keys first.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

__all__ = ["complete"]

Layers = Sequence[torch.Tensor]


def transfer_kv_direct(
    src_layers: Layers, dst_layers: Layers, src_indices: torch.Tensor, dst_indices: torch.Tensor, page_size: int
) -> None:
    for source, into in zip(src_layers, dst_layers, strict=True):
        into[dst_indices] = source[src_indices]


def transfer_kv_per_layer_direct_pf_lf(
    src_ptrs: Layers,
    dst_ptrs: Layers,
    src_indices: torch.Tensor,
    dst_indices: torch.Tensor,
    layer_id: int,
    page_size: int,
) -> None:
    pages = src_indices[::page_size] // page_size
    for source, into in zip(src_ptrs, dst_ptrs, strict=True):
        into[dst_indices] = source[pages, layer_id].reshape(-1, *into.shape[1:])


def transfer_kv_all_layer_direct_lf_pf(
    src_ptrs: Layers, dst_ptrs: Layers, src_indices: torch.Tensor, dst_indices: torch.Tensor, page_size: int
) -> None:
    pages = dst_indices[::page_size] // page_size
    layers = len(src_ptrs) // len(dst_ptrs)
    for number, into in enumerate(dst_ptrs):
        for layer, source in enumerate(src_ptrs[number * layers : (number + 1) * layers]):
            into[pages, layer] = source[src_indices].reshape(len(pages), page_size, *source.shape[1:])


_COPIES = (transfer_kv_direct, transfer_kv_per_layer_direct_pf_lf, transfer_kv_all_layer_direct_lf_pf)


def _names(function: Any) -> tuple[str, ...]:
    return getattr(getattr(function, "__code__", None), "co_varnames", ())


_never = property(lambda pool: False, lambda pool, wanted: None)


def complete(module: ModuleType) -> None:
    """Gives a module of pools the copies that it could not import, and pools that pin no memory: torch refuses to
    without a device, and CUDA is not there to be told."""
    for copy in _COPIES:
        if not hasattr(module, copy.__name__):
            setattr(module, copy.__name__, copy)
    for pool in [value for value in vars(module).values() if isinstance(value, type)]:
        if pool.__module__ == module.__name__ and "pin_memory" in _names(pool.__init__):
            pool.pin_memory = _never
