"""The tiny models that tests give to engines; what such a model is, engine_adapters.pd.demo.model says.

    build/engines/vllm/bin/python -m tests.engines.models [NAME]...      (an engine's Python: it takes transformers)

They lie in build/engines/models.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from engine_adapters.pd.demo.model import IDS, LONG, SLOW, VOCABULARY, Model, make
from tests.engines.venvs import ENGINES, RECIPES

__all__ = ["MODELS", "VOCABULARY", "Model", "model"]

MAKE_MAX_S = 300.0
FOLDER = ENGINES / "models"

MODELS = {
    model.name: model
    for model in (
        # Grouped-query attention: 4 heads on 2 KV heads, which TP=2 parts.
        Model("llama", "LlamaConfig", {
            **IDS, **LONG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        }),
        # One latent of 512 + 64 numbers a token for all heads, the only size that vLLM has a kernel for on a CPU; a
        # layer without and layers with experts.
        Model("mla", "DeepseekV3Config", {
            **IDS, **LONG, "hidden_size": 128, "intermediate_size": 256, "moe_intermediate_size": 64,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4, "first_k_dense_replace": 1,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
            "q_lora_rank": 64, "kv_lora_rank": 512, "qk_nope_head_dim": 32, "qk_rope_head_dim": 64, "v_head_dim": 32,
            "topk_method": "noaux_tc",  # transformers' only way, which vLLM wants named
        }),
        # Every third layer looks at everything, the others at the last 64 tokens.
        Model("sliding", "Gemma3TextConfig", {
            **IDS, **LONG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "query_pre_attn_scalar": 32,
            "sliding_window": 64, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        }),
        # The same for SGLang: its own kind of rope for MLA on a CPU; no experts, whose kernels it has not there.
        Model("mla-dense", "DeepseekV3Config", {
            **IDS, **LONG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
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
            **IDS, **LONG, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": 64, "gating": True,
            "num_attention_heads_per_layer": [4] * 6, "mlp_layer_types": ["dense"] * 6,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"] * 2,
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
            "shared_expert_intermediate_size": 64,
        }),
        SLOW,
    )
}  # fmt: skip


def model(name: str) -> Path:
    """The folder of a model, which is made first where it is not there: by the first engine's Python that there is."""
    wanted = MODELS[name]
    if not wanted.within(FOLDER).exists():
        python = next(recipe.python for recipe in RECIPES.values() if recipe.python.exists())
        quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        command = [python, "-m", "tests.engines.models", name]
        made = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=MAKE_MAX_S, check=False)
        if made.returncode:
            raise RuntimeError(f"{name} could not be made: {made.stderr[-2000:]}")
    return wanted.within(FOLDER)


if __name__ == "__main__":
    for given in sys.argv[1:] or MODELS:
        print(make(MODELS[given], FOLDER))
