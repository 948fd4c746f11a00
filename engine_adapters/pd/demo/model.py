"""Tiny models for engines, made on the spot: random weights from a seed, a tokenizer built in code, no network.

    ENGINE_PYTHON -m engine_adapters.pd.demo.model FOLDER      (it takes torch and transformers; prints where it lies)

Each lies in FOLDER/NAME-DIGEST, where DIGEST is that of its definition, so that a changed definition is another folder,
and one that is there is whole. The folder is all that an engine is given: weights, configuration, tokenizer and a chat
template.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["IDS", "LONG", "SLOW", "SPECIAL", "VOCABULARY", "Model", "make", "tokenizer"]

SPECIAL: Final = ("<pad>", "<s>", "</s>", "<unk>")
ROLES: Final = ("system", "user", "assistant")
VOCABULARY: Final = 512
WORDS: Final = VOCABULARY - len(SPECIAL) - len(ROLES)
# What the engine's OpenAI server makes of messages: every word is one token, and an answer stands in later
# turns where it was decoded, as with the templates of real models.
CHAT_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] }} {{ message['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
FORMAT: Final = 1  # of what is written beside the definition: tokenizer, template


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

    def within(self, folder: Path) -> Path:
        return folder / f"{self.name}-{self.digest}"


IDS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LONG = {"max_position_embeddings": 8192, "tie_word_embeddings": False}

# For measurements: thousands of tokens take seconds to prefill on two cores, and a block of 128 tokens is
# 128 * 2 * 4 * 64 * 12 numbers of 4 bytes: 3 MiB, 256 KiB a layer.
SLOW: Final = Model("slow", "LlamaConfig", {
    **IDS, **LONG, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 12, "num_key_value_heads": 4, "head_dim": 64,
}, spread=0.04)  # fmt: skip


def tokenizer() -> Any:
    """Words `w0`, `w1`, ... and a chat's roles; the ids of the words follow those of SPECIAL."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = (*SPECIAL, *ROLES, *(f"w{number}" for number in range(WORDS)))
    ids = {word: number for number, word in enumerate(words)}
    plain = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=CHAT_TEMPLATE, **named)


def make(wanted: Model, folder: Path) -> Path:
    """Where it lies; whole, or not at all."""
    place = wanted.within(folder)
    if place.exists():
        return place
    import torch
    import transformers

    config = getattr(transformers, wanted.config)(**wanted.fields, initializer_range=wanted.spread)
    torch.manual_seed(wanted.seed)
    torch.set_default_dtype(getattr(torch, wanted.dtype))
    made = transformers.AutoModelForCausalLM.from_config(config)
    temporary = place.with_name(f".{place.name}-{os.getpid()}")
    made.save_pretrained(temporary)
    tokenizer().save_pretrained(temporary)
    # Greedy, whatever an engine would take from here.
    (temporary / "generation_config.json").unlink(missing_ok=True)
    try:
        temporary.rename(place)
    except OSError:  # somebody else was first
        shutil.rmtree(temporary)
    return place


if __name__ == "__main__":
    print(make(SLOW, Path(sys.argv[1])))
