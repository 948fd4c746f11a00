"""Tiny models for the engines, made on the spot: random weights from a seed, a tokenizer built in code, no network.

    build/engines/vllm/bin/python -m tests.engines.models [NAME]...      (an engine's Python: it takes transformers)

Each lies in build/engines/models/NAME-DIGEST, where DIGEST is that of its definition, so that a changed definition is
another folder, and one that is there is whole. The folder is all that an engine is given: weights, configuration,
tokenizer and a chat template.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.engines.venvs import ENGINES, RECIPES

__all__ = ["MODELS", "VOCABULARY", "Model", "model"]

MAKE_MAX_S = 300.0
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = 512
# What the engine's OpenAI server makes of messages: every word is one token.
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
FORMAT = 1  # of what is written beside the definition: tokenizer, template


@dataclass(frozen=True, slots=True)
class Model:
    """`config`: the class in transformers; `fields`: what it is given. Weights are drawn from `seed`.
    `spread`: their standard deviation; wide enough that greedy decoding does not repeat one token for ever, and that
    other KV gives other tokens."""

    name: str
    config: str
    fields: dict[str, Any]
    dtype: str = "float32"
    seed: int = 7
    spread: float = 0.12

    @property
    def digest(self) -> str:
        definition = [FORMAT, self.config, self.fields, self.dtype, self.seed, self.spread, VOCABULARY, CHAT_TEMPLATE]
        return hashlib.sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return ENGINES / "models" / f"{self.name}-{self.digest}"


_IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LONG = {"max_position_embeddings": 8192, "tie_word_embeddings": False}

MODELS = {
    model.name: model
    for model in (
        # Grouped-query attention: 4 heads on 2 KV heads, which TP=2 parts.
        Model("llama", "LlamaConfig", {
            **_IDS, **_LONG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        }),
        # One latent of 512 + 64 numbers a token for all heads, the only size that vLLM has a kernel for on a CPU; a
        # layer without and layers with experts.
        Model("mla", "DeepseekV3Config", {
            **_IDS, **_LONG, "hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
            "q_lora_rank": 64, "kv_lora_rank": 512, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32,
            "topk_method": "noaux_tc",  # transformers' only way, which vLLM wants named
        }),
        # Every third layer looks at everything, the others at the last 64 tokens.
        Model("sliding", "Gemma3TextConfig", {
            **_IDS, **_LONG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32,
            "sliding_window": 64, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        }),
        # The same for SGLang: its own kind of rope for MLA on a CPU; no experts, whose kernels it has not there.
        Model("mla-dense", "DeepseekV3Config", {
            **_IDS, **_LONG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 3, "moe_intermediate_size": 64,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
            "q_lora_rank": 64, "kv_lora_rank": 512, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32,
            "moe_layer_freq": 1, "rope_parameters": {
                "rope_type": "yarn", "type": "yarn", "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
                "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 8192, "rope_theta": 10000.0,
            },
        }),
        # Two of three layers look at the last 64 tokens only; one of the few that SGLang gives a pool of their own.
        Model("windows", "LagunaConfig", {
            **_IDS, **_LONG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 64, "gating": True,
            "num_attention_heads_per_layer": [4] * 6, "mlp_layer_types": ["dense"] * 6,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 2,
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        }),
        # For measurements: thousands of tokens take seconds to prefill on two cores, and a block of 128 tokens has
        # 128 * 2 * 4 * 64 numbers of 4 bytes a layer: 256 KiB, and 3 MiB in all.
        Model("slow", "LlamaConfig", {
            **_IDS, **_LONG, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
            "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64,
        }, spread=0.04),
    )
}  # fmt: skip


def tokenizer() -> Any:
    """Words `w0`, `w1`, ... and a chat's roles; the ids of the words follow those of SPECIAL."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    roles = ("system", "user", "assistant")
    words = (*SPECIAL, *roles)
    ids = {word: number for number, word in enumerate((*words, *(f"w{n}" for n in range(VOCABULARY - len(words)))))}
    plain = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=CHAT_TEMPLATE, **named)


def make(wanted: Model) -> None:
    """Into its folder, whole or not at all."""
    import torch
    import transformers

    config = getattr(transformers, wanted.config)(**wanted.fields, initializer_range=wanted.spread)
    torch.manual_seed(wanted.seed)
    torch.set_default_dtype(getattr(torch, wanted.dtype))
    made = transformers.AutoModelForCausalLM.from_config(config)
    temporary = wanted.folder.with_name(f".{wanted.folder.name}-{os.getpid()}")
    made.save_pretrained(temporary)
    tokenizer().save_pretrained(temporary)
    # Greedy, whatever an engine would take from here.
    (temporary / "generation_config.json").unlink(missing_ok=True)
    try:
        temporary.rename(wanted.folder)
    except OSError:  # somebody else was first
        shutil.rmtree(temporary)


def model(name: str) -> Path:
    """The folder of a model, which is made first where it is not there: by the first engine's Python that there is."""
    wanted = MODELS[name]
    if not wanted.folder.exists():
        python = next(recipe.python for recipe in RECIPES.values() if recipe.python.exists())
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [python, "-m", "tests.engines.models", name]
        made = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=MAKE_MAX_S, check=False)
        if made.returncode:
            raise RuntimeError(f"{name} could not be made: {made.stderr[-2000:]}")
    return wanted.folder


if __name__ == "__main__":
    for given in sys.argv[1:] or MODELS:
        if not MODELS[given].folder.exists():
            make(MODELS[given])
        print(MODELS[given].folder)
