"""What SGLang's host pools hold, as the store's layout: one cache group a pool, one shard a rank.

A page of the engine is a block. Its bytes belong to the engine (host layout, attention backend, release), so it is
opaque, and everything that may change what it means is part of the layout's fingerprint: what is unknown or has
changed misses.

Rules
- A pool is one that all ranks share (LATENT: written by one, read by all) only where it is known to be: MLA and what
  comes with it. Any other pool is its rank's own; where the engine lets one rank alone write it, the others miss.
- Pipeline stages and context-parallel ranks hold other layers or tokens under the same hashes: each has a namespace
  of its own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from engine_adapters.sglang.pages import Pages, PagesUnknown, pages_of
from kvstore.layout import CacheGroup, GroupKind, KVLayout

if TYPE_CHECKING:
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig

    from engine_adapters.sglang.engine import EngineFacts

__all__ = ["KV", "Group", "Unsupported", "describe"]

KV: Final = "kv"
_REPLICATED: Final = frozenset(
    {"MLATokenToKVPoolHost", "DSAIndexerPoolHost", "DeepSeekV4PagedHostPool", "DeepSeekV4StateHostPool"}
)
_REFUSED: Final = {
    "PageInterleaveHostPool": "pages of one prompt lie on several ranks",
    "UnifiedPageEnvelopeHostPool": "its pages hold several pools in one",
}
# What says how a pool's bytes are to be read, beside their number; pools have some of them.
_ASPECTS: Final = (
    "layout",
    "dtype",
    "page_size",
    "layer_num",
    "target_layer_num",
    "start_layer",
    "end_layer",
    "head_num",
    "head_dim",
    "v_head_dim",
    "head_group_num",
    "kv_lora_rank",
    "qk_rope_head_dim",
    "kv_cache_dim",
    "indexer_dtype",
    "indexer_page_stride_size",
    "num_mamba_layers",
    "conv_state_shapes",
    "temporal_state_shape",
    "conv_dtype",
    "temporal_dtype",
    "storage_format_tag",
)


class Unsupported(Exception):
    """This model or configuration cannot use the store; the message says why."""


class Group(NamedTuple):
    """One pool. shard: this rank's."""

    name: str
    pages: Pages
    shard: int


def describe(
    config: HiCacheStorageConfig, pools: Mapping[str, Any], facts: EngineFacts, *, direct: bool
) -> tuple[KVLayout, dict[str, Group]]:
    """The layout that all ranks agree on, and this rank's groups by the pools' names. A pool without memory (an anchor
    that only counts) has no group. direct: pages are moved where they lie, by the engine's v1 interface; else the
    primary pool's are copied. Raises Unsupported.
    """
    pages: dict[str, Pages] = {}
    for name, pool in pools.items():
        classes = _classes(pool)
        for refused, why in _REFUSED.items():
            if refused in classes:
                raise Unsupported(f"pool {name}: {refused}: {why}")
        if name != KV or getattr(pool, "kv_buffer", None) is not None:
            try:
                pages[name] = pages_of(pool, direct=direct or name != KV)
            except PagesUnknown as error:
                raise Unsupported(f"pool {name}: {error}") from error
    try:
        layout = KVLayout(
            engine="sglang",
            model=facts.model,
            revision=facts.revision,
            dtype=facts.dtype,
            content_format=_content_format(config, pools, pages, facts),
            block_tokens=int(getattr(pools[KV], "logical_page_size", 0) or pools[KV].page_size),
            groups=tuple(_group(config, name, pools[name], found, facts) for name, found in sorted(pages.items())),
            tensor_parallel=config.tp_size,
        )
    except ValueError as error:
        raise Unsupported(str(error)) from error
    groups = {name: Group(name, found, layout.shard_of(config.tp_rank, name)) for name, found in pages.items()}
    return layout, groups


def _group(config: HiCacheStorageConfig, name: str, pool: Any, pages: Pages, facts: EngineFacts) -> CacheGroup:
    kind = _kind_of(config, name, pool)
    axes = ("layer", "block", "bytes") if len(pages.layer_bytes) > 1 else ("block", "layer", "bytes")
    if kind is GroupKind.STATE:
        return CacheGroup(name=name, kind=kind, layer_bytes=pages.layer_bytes, axes=axes)
    heads = 1 if kind is GroupKind.LATENT else int(getattr(pool, "head_num", 0) or 1) * config.tp_size
    width = getattr(pool, "kv_cache_dim", 0) if kind is GroupKind.LATENT else getattr(pool, "head_dim", 0)
    block = int(getattr(pool, "page_size", 0) or 1)
    return CacheGroup(
        name=name,
        kind=kind,
        layer_bytes=pages.layer_bytes,
        kv_heads=heads,
        head_dim=int(width or 1),
        window_tokens=(facts.window_tokens or block) if kind is GroupKind.WINDOW else 0,
        axes=axes,
    )


def _kind_of(config: HiCacheStorageConfig, name: str, pool: Any) -> GroupKind:
    classes = _classes(pool)
    if "MambaPoolHost" in classes:
        return GroupKind.STATE
    if config.is_mla_model and classes & _REPLICATED:
        return GroupKind.LATENT
    return GroupKind.WINDOW if "swa" in name else GroupKind.FULL


def _classes(pool: Any) -> frozenset[str]:
    return frozenset(kind.__name__ for kind in type(pool).__mro__)


def _content_format(
    config: HiCacheStorageConfig, pools: Mapping[str, Any], pages: Mapping[str, Pages], facts: EngineFacts
) -> str:
    """Engine, its release, and a digest of whatever decides what the bytes mean."""
    import sglang

    said = {
        "engine": dict(facts.others),
        "stage": [config.pp_rank, config.pp_size, config.attn_cp_rank, config.attn_cp_size],
        "pools": {
            name: {
                "class": type(pool).__name__,
                "pages": pages[name].form if name in pages else "none",
                **{aspect: str(getattr(pool, aspect)) for aspect in _ASPECTS if hasattr(pool, aspect)},
            }
            for name, pool in pools.items()
        },
    }
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return f"sglang/{getattr(sglang, '__version__', 'unknown')}/{digest}"
