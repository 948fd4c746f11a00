"""What SGLang says of its model and of itself, as far as the bytes of its cache depend on it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from engine_adapters.base.weights import name_of, revision_of

__all__ = ["EngineFacts", "facts_of"]

# Arguments that change what a cache's bytes mean, where the pools do not show it. Releases differ in which they have.
_ARGUMENTS: Final = (
    "device",
    "dtype",
    "quantization",
    "quantization_param_path",
    "kv_cache_dtype",
    "json_model_override_args",
    "load_format",
    "attention_backend",
    "prefill_attention_backend",
    "decode_attention_backend",
    "speculative_algorithm",
    "enable_page_major_kv_layout",
)
_VOLATILE: Final = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})


class EngineFacts(NamedTuple):
    """model, revision: as KVLayout has them. window_tokens: of sliding layers, 0 where there are none or nobody says.
    others: go into the fingerprint.
    """

    model: str
    revision: str
    dtype: str
    window_tokens: int
    others: Mapping[str, object]


def facts_of(revision: str) -> EngineFacts:
    """revision: as the settings name the weights. Raises WeightsUnknown."""
    from sglang.srt.runtime_context import get_server_args

    arguments = get_server_args()
    path = str(arguments.model_path)
    config = _config(path)
    others: dict[str, object] = {name: str(getattr(arguments, name, None)) for name in _ARGUMENTS}
    others["architecture"] = {key: value for key, value in config.items() if key not in _VOLATILE}
    if others["load_format"] == "dummy":  # weights are made from a seed
        others["seed"] = str(getattr(arguments, "random_seed", None))
    draft = getattr(arguments, "speculative_draft_model_path", None)
    if draft:
        pinned = getattr(arguments, "speculative_draft_model_revision", None)
        others["draft"] = revision_of(str(draft), pinned, str(others["load_format"]), "")
    window = next((config.get(key) for key in ("sliding_window", "sliding_window_size") if config.get(key)), 0)
    return EngineFacts(
        name_of(path),
        revision_of(path, getattr(arguments, "revision", None), str(others["load_format"]), revision),
        str(config.get("torch_dtype") or config.get("dtype") or others["dtype"]),
        int(window or 0),
        others,
    )


def _config(path: str) -> dict[str, Any]:
    """The model's config.json, with its text part where it has several; empty where it is no folder: then the revision
    names it.
    """
    file = Path(path) / "config.json"
    if not file.is_file():
        return {}
    read = json.loads(file.read_text())
    inner = read.get("text_config")
    return {**read, **inner} if isinstance(inner, dict) else read
