"""A Llama-family model with seeded random weights: nothing is downloaded, and every process builds the same one."""

from __future__ import annotations

import torch
import transformers

SEED = 20251
VOCABULARY = 8192
# Wider than the usual 0.02, so that a random model's attention is not flat and its tokens depend on every block.
INITIALIZER_RANGE = 0.05


def build_model(layers: int = 12) -> transformers.LlamaForCausalLM:
    """float32, about 85 million weights at 12 layers; prefilling 3,000 tokens takes seconds on two cores."""
    torch.manual_seed(SEED)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        intermediate_size=2048,
        num_hidden_layers=layers,
        num_attention_heads=12,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=8192,
        initializer_range=INITIALIZER_RANGE,
        attn_implementation="sdpa",
        name_or_path="demo-llama",
    )
    model: transformers.LlamaForCausalLM = transformers.LlamaForCausalLM(config).eval()
    return model


def revision(layers: int) -> str:
    return f"seed-{SEED}-layers-{layers}"
