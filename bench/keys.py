"""Keys of a long prompt, against SHA-256 of as many bytes in one go and against the way engines do it in Python."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import numpy as np

from bench.harness import Row, at_most, measure, timed
from kvstore import native
from kvstore.identity import Extra, Lora, Multimodal, chain_keys, chain_keys_from_hashes

__all__ = ["rows"]

PROMPT_TOKENS = 128 << 10
BLOCK_TOKENS = 16
HASHED_BYTES = PROMPT_TOKENS // BLOCK_TOKENS * 128  # two SHA-256 blocks a key
SEED = bytes(32)


def by_hashlib(tokens: np.ndarray[tuple[int], np.dtype[np.uint32]]) -> bytes:
    """The same chain made of Python calls over raw bytes; extras left out, which favours it."""
    raw, parent, step = tokens.tobytes(), SEED, 4 * BLOCK_TOKENS
    for at in range(0, len(raw), step):
        parent = hashlib.sha256(b"kvk1" + parent + b"\x10\0\0\0" + raw[at : at + step] + b"\0\0\0\0").digest()
    return parent


def rows(quick: bool) -> list[Row]:
    tokens = np.random.default_rng(1).integers(0, 128_000, PROMPT_TOKENS, np.uint32)
    assert chain_keys(SEED, tokens, BLOCK_TOKENS)[-1].tobytes() == by_hashlib(tokens)
    message = bytes(HASHED_BYTES)
    hashes = [hashlib.sha256(bytes([i % 256])).digest() for i in range(PROMPT_TOKENS // BLOCK_TOKENS)]
    extras: list[Extra] = [Lora("adapter"), Multimodal(bytes(32), 100, 3000)]
    wide = tokens.astype(np.int64)
    cases: dict[str, Callable[[], object]] = {
        "as uint32": lambda: chain_keys(SEED, tokens, BLOCK_TOKENS),
        "as int64": lambda: chain_keys(SEED, wide, BLOCK_TOKENS),
        "with a LoRA and an image": lambda: chain_keys(SEED, tokens, BLOCK_TOKENS, extras),
        "of engine hashes": lambda: chain_keys_from_hashes(SEED, hashes),
    }
    return [
        measure(
            f"keys of 128 K tokens, {name}",
            unit="ms",
            ours=partial(timed, work, scale=1e3),
            limit=lambda: timed(lambda: native.sha256(message), scale=1e3),
            limit_is="SHA-256 of as many bytes at once",
            target=at_most(4, "ms"),
            peers={"hashlib": lambda: timed(lambda: by_hashlib(tokens), scale=1e3)},
            rounds=5 if quick else 51,
        )
        for name, work in cases.items()
    ]
