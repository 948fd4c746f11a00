"""Made in an engine's Python: what upstream's tests take from the hub.

python -m tests.engines.upstream.stand_in model FOLDER      in the place of their default model: its configuration,
                                                            small, and a tokenizer; they run it never
python -m tests.engines.upstream.stand_in letters FOLDER    a tokenizer for our models, of which every letter is a
                                                            token: upstream's prompts are many blocks then
"""

from __future__ import annotations

import sys
from pathlib import Path

from engine_adapters.pd.demo.model import SPECIAL, VOCABULARY, tokenizer


def model(folder: Path) -> None:
    from transformers import OPTConfig

    # One head, so that upstream's cache specs of one head and of four are both whole numbers of it.
    config = OPTConfig(
        hidden_size=16, ffn_dim=16, word_embed_proj_dim=16, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=16_384, vocab_size=50_272, architectures=["OPTForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def letters(folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids = {name: number for number, name in enumerate([*known, *(f"~{n}" for n in range(VOCABULARY - len(known)))])}
    plain = Tokenizer(models.BPE(ids, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=plain, **named).save_pretrained(folder)


if __name__ == "__main__":
    what, name = {"model": model, "letters": letters}[sys.argv[1]], Path(sys.argv[2])
    what(name.with_name(f".{name.name}"))
    name.with_name(f".{name.name}").rename(name)
