"""What vLLM's cache holds and where, as the store's layout and pieces. Called by a worker, which has the tensors.

Bytes inside a block belong to the attention backend: on CPU a head's keys lie transposed before its values, on a GPU
it is another order, and both change between releases. So a block is opaque, and everything that may change what it
means is part of the layout's fingerprint: what is unknown or has changed misses.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import vllm
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.v1 import kv_cache_interface as specs
from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

from engine_adapters.base.pieces import LayerPlace, Pieces
from engine_adapters.base.weights import WeightsUnknown, name_of, revision_of
from kvstore.layout import CacheGroup, GroupKind, KVLayout

__all__ = ["Geometry", "Unsupported", "describe", "geometry_of", "group_ids_of"]

# Releases between which the same backend writes the same bytes: seen by tests that write with one and read with the
# other. Any other release is its own.
CONTENTS: Final = {"0.31": "packed/1", "0.32": "packed/1"}


class Unsupported(Exception):
    """This model or configuration cannot use the store; the message says why."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """block_tokens: of the store's blocks and of the scheduler's hits. hashes: of the engine's, how many a block has.
    ratios: for each group how many of the engine's blocks make one of the store's.
    """

    block_tokens: int
    hashes: int
    groups: tuple[int, ...]
    ratios: tuple[int, ...]


def group_ids_of(config: specs.KVCacheConfig) -> tuple[int, ...]:
    """The cache groups that go to the store."""
    ids = getattr(config, "prefix_cacheable_group_ids", None)
    return tuple(range(len(config.kv_cache_groups))) if ids is None else tuple(ids)


def geometry_of(vllm_config: VllmConfig, config: specs.KVCacheConfig) -> Geometry:
    """Raises Unsupported; known to the scheduler, too."""
    parallel = vllm_config.parallel_config
    for name in ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Unsupported(f"{name} = {getattr(parallel, name)}: blocks of one prompt lie on several ranks")
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        raise Unsupported("calculate_kv_scales: every engine has scales of its own, which blocks do not tell")
    algorithm = str(vllm_config.cache_config.prefix_caching_hash_algo)
    if not algorithm.startswith("sha256"):
        raise Unsupported(
            f"prefix_caching_hash_algo = {algorithm}: collides between tenants; choose sha256_cbor or sha256"
        )
    groups = group_ids_of(config)
    if not groups:
        raise Unsupported("no cache group can be found by a prefix")
    block_tokens, hash_tokens = resolve_kv_cache_block_sizes(config, vllm_config)
    sizes = [config.kv_cache_groups[group].kv_cache_spec.block_size for group in groups]
    for group, size in zip(groups, sizes, strict=True):
        if block_tokens % size or block_tokens % hash_tokens:
            raise Unsupported(f"group {group}: blocks of {size} tokens do not divide {block_tokens}")
        _kind_of(group, config.kv_cache_groups[group].kv_cache_spec)
    return Geometry(block_tokens, block_tokens // hash_tokens, groups, tuple(block_tokens // size for size in sizes))


def describe(
    vllm_config: VllmConfig, config: specs.KVCacheConfig, caches: Mapping[str, torch.Tensor], revision: str
) -> tuple[KVLayout, list[Pieces]]:
    """The layout that all ranks agree on, and where this rank's blocks lie, group by group. Raises Unsupported."""
    geometry = geometry_of(vllm_config, config)
    model = vllm_config.model_config
    heads = model.get_total_num_kv_heads()
    storages: dict[int, int] = {}
    buffers: list[object] = []
    pieces: list[Pieces] = []
    groups: list[CacheGroup] = []
    for index, ratio in zip(geometry.groups, geometry.ratios, strict=True):
        group = config.kv_cache_groups[index]
        places = [_place(name, caches, config.num_blocks, storages, buffers) for name in group.layer_names]
        found = Pieces.of(buffers, places, ratio)
        pieces.append(found)
        groups.append(_group(index, group.kv_cache_spec, found, heads))
    try:
        layout = KVLayout(
            engine="vllm",
            model=name_of(model.model),
            revision=revision_of(model.model, model.revision, str(vllm_config.load_config.load_format), revision),
            dtype=str(model.dtype).removeprefix("torch."),
            content_format=_content_format(vllm_config, config, caches),
            block_tokens=geometry.block_tokens,
            groups=tuple(groups),
            tensor_parallel=vllm_config.parallel_config.tensor_parallel_size,
        )
    except (ValueError, WeightsUnknown) as error:
        raise Unsupported(str(error)) from error
    return layout, pieces


def _place(
    name: str, caches: Mapping[str, torch.Tensor], blocks: int, storages: dict[int, int], buffers: list[object]
) -> LayerPlace:
    """One layer's tensor, [blocks, ...] or [blocks * n, ...] where a kernel's blocks are smaller."""
    tensor = caches.get(name)
    if not isinstance(tensor, torch.Tensor):
        raise Unsupported(f"layer {name}: its cache is {type(tensor).__name__}, not one tensor")
    if tensor.shape[0] != blocks:
        if tensor.shape[0] % blocks:
            raise Unsupported(f"layer {name}: {tensor.shape[0]} blocks, the engine has {blocks}")
        tensor = tensor.unflatten(0, (blocks, -1))
    storage = tensor.untyped_storage()
    if storage.data_ptr() not in storages:
        storages[storage.data_ptr()] = len(buffers)
        flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        buffers.append(flat.numpy() if tensor.device.type == "cpu" else flat)
    item = tensor.element_size()
    return LayerPlace(
        storages[storage.data_ptr()],
        tensor.storage_offset() * item,
        tensor.stride(0) * item,
        tuple(tensor.shape[1:]),
        tuple(stride * item for stride in tensor.stride()[1:]),
        item,
    )


def _kind_of(index: int, spec: specs.KVCacheSpec) -> GroupKind:
    inner = next(iter(spec.kv_cache_specs.values())) if isinstance(spec, specs.UniformTypeKVCacheSpecs) else spec
    if type(inner) is specs.SlidingWindowSpec:
        return GroupKind.WINDOW
    if type(inner) is specs.MLAAttentionSpec:
        return GroupKind.LATENT
    if type(inner) is specs.FullAttentionSpec:
        return GroupKind.FULL
    raise Unsupported(f"group {index}: {type(inner).__name__} is not supported yet")


def _group(index: int, spec: specs.KVCacheSpec, pieces: Pieces, heads: int) -> CacheGroup:
    inner = next(iter(spec.kv_cache_specs.values())) if isinstance(spec, specs.UniformTypeKVCacheSpecs) else spec
    kind = _kind_of(index, spec)
    return CacheGroup(
        name=f"group{index}",
        kind=kind,
        layer_bytes=pieces.layer_bytes,
        kv_heads=1 if kind is GroupKind.LATENT else heads,
        head_dim=inner.head_size,
        window_tokens=inner.sliding_window if kind is GroupKind.WINDOW else 0,
    )


def _content_format(vllm_config: VllmConfig, config: specs.KVCacheConfig, caches: Mapping[str, torch.Tensor]) -> str:
    """Engine, its content's version, and a digest of whatever decides what the bytes mean."""
    model, cache = vllm_config.model_config, vllm_config.cache_config
    backends = _backends(vllm_config)
    facts = {
        "architecture": _config_of(model.hf_config),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "cache_dtype": str(cache.cache_dtype),
        "layout": str(getattr(config, "kv_cache_layout", None)),
        "backends": backends,
        "specs": [repr(config.kv_cache_groups[index].kv_cache_spec) for index in group_ids_of(config)],
        "layers": [config.kv_cache_groups[index].layer_names for index in group_ids_of(config)],
        "inside": {name: _inside(tensor) for name, tensor in caches.items()},
        "device": str(next(iter(caches.values())).device.type),
        "draft": _draft_of(vllm_config),
        "dummy": str(model.seed) if str(vllm_config.load_config.load_format) == "dummy" else "",
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]
    version = ".".join(vllm.__version__.split(".")[:2])
    return f"vllm/{CONTENTS.get(version, vllm.__version__)}/{digest}"


def _draft_of(vllm_config: VllmConfig) -> str:
    """A draft model's layers have caches, too."""
    speculative = vllm_config.speculative_config
    return "" if speculative is None else f"{speculative.method}/{speculative.model}"


def _inside(tensor: torch.Tensor) -> list[object]:
    """How a block lies, without how many there are of them: an axis that is cut by blocks strides over all of them."""
    axes = sorted(range(1, tensor.dim()), key=tensor.stride, reverse=True)
    return [list(tensor.shape[1:]), axes, str(tensor.dtype)]


def _backends(vllm_config: VllmConfig) -> dict[str, str]:
    """Which code wrote each layer's bytes: the backend, and on CPU the instruction set it packs for."""
    layers = get_layers_from_vllm_config(vllm_config, AttentionLayerBase)
    said = {}
    for name, layer in layers.items():
        implementation = getattr(layer, "impl", None)
        packed = getattr(implementation, "isa", "") or getattr(layer, "isa", "")
        said[name] = f"{layer.get_attn_backend().get_name()}/{packed}"
    return said


_VOLATILE: Final = frozenset({"_name_or_path", "name_or_path", "transformers_version", "torch_dtype", "dtype"})


def _config_of(config: Any) -> object:
    """Everything in a model's configuration: a rope scaling changed is another model's cache."""
    return {key: value for key, value in config.to_dict().items() if key not in _VOLATILE}
