"""Prompts and KV that both processes can make for themselves, so that the reader can check every byte. Pure.

Three users share a system prompt and talk for some turns; each turn's prompt is all that was said before and more.
The KV of a block is drawn from its key, and a key stands for the whole prefix, as real KV does.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from kvstore.layout import KVLayout

BLOCK_TOKENS: Final = 16
SYSTEM_TOKENS: Final = 1024
SAID_TOKENS: Final = 256
USERS: Final = 3
TURNS: Final = 3
VOCABULARY: Final = 32_000

LAYOUT_MODEL: Final = "synthetic"


def layout() -> KVLayout:
    """Half a MiB a block: 16 layers of 32 KiB."""
    return KVLayout.uniform(
        engine="kvstore-demo",
        model=LAYOUT_MODEL,
        revision="1",
        dtype="bfloat16",
        block_tokens=BLOCK_TOKENS,
        layers=16,
        kv_heads=8,
        head_dim=64,
    )


def prompt(user: int, turn: int) -> npt.NDArray[np.uint32]:
    """The system prompt, then what this user has said up to and with this turn."""
    pieces = [_tokens(0, SYSTEM_TOKENS)]
    pieces += [_tokens(1 + user * TURNS + said, SAID_TOKENS) for said in range(turn + 1)]
    return np.concatenate(pieces)


def _tokens(seed: int, count: int) -> npt.NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(VOCABULARY, size=count, dtype=np.uint32)


def kv_of(key: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """The bytes that a prefill would have made for the prefix of this key."""
    seed = int.from_bytes(key[:16].tobytes(), "little")
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype=np.uint8)
