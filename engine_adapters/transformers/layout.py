"""The KV layout of a transformers model, as the store's namespace wants it."""

from __future__ import annotations

import hashlib
import json

import transformers

from kvstore import KVLayout

# What a block's bytes mean: (layer, K|V, head, token, dim), keys after rotary embedding. Another meaning, another name.
CONTENT_FORMAT = "transformers-dynamic-cache/1"


def config_digest(config: transformers.PretrainedConfig) -> str:
    """Sixteen hex digits over everything in the configuration: a rope scaling changed is another model's KV."""
    fields = {key: value for key, value in config.to_dict().items() if key != "transformers_version"}
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode()).hexdigest()[:16]


def layout_of(model: transformers.PreTrainedModel, *, revision: str, block_tokens: int) -> KVLayout:
    """`revision` names the weights (a commit hash, a digest, a seed); blocks of other weights must not be found.

    Raises ValueError for a model whose layers are not all full attention, since their caches are not prefix-complete,
    and for one that is not on the CPU: blocks are copied to and from host memory.
    """
    if model.device.type != "cpu":
        raise ValueError(f"model: on {model.device}: this adapter takes models on the CPU")
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if kinds != {"full_attention"} or getattr(config, "sliding_window", None):
        raise ValueError(f"model: layer types {sorted(kinds)}: only full attention is supported by this adapter")
    heads = int(config.num_attention_heads)
    return KVLayout.uniform(
        engine="transformers",
        model=str(config.name_or_path or config.model_type),
        revision=f"{revision}/{config_digest(config)}",
        dtype=str(model.dtype).removeprefix("torch."),
        content_format=CONTENT_FORMAT,
        block_tokens=block_tokens,
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(config, "head_dim", None) or config.hidden_size // heads),
    )
