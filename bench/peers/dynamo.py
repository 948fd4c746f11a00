"""Dynamo's RadixTree: the longest prefix of one prompt, from Python, which is the only face it has there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from dynamo.llm import RadixTree

from bench.peers.serve import Works, serve
from bench.peers.work import HELD_KEYS, LONGEST, PREFIX

PROMPTS = 500  # a figure


@contextmanager
def peer() -> Iterator[Works]:
    """Prompts of PREFIX blocks that have nothing in common, held by one worker."""
    random = np.random.default_rng(1)
    shape = (HELD_KEYS // PREFIX, PREFIX)
    tokens, blocks = (random.integers(1, 1 << 62, shape).tolist() for _ in range(2))
    tree = RadixTree()
    for number, (hashes, names) in enumerate(zip(tokens, blocks, strict=True)):
        stored = [{"block_hash": n, "tokens_hash": h} for n, h in zip(names, hashes, strict=True)]
        event = {"event_id": number, "data": {"stored": {"parent_hash": None, "blocks": stored}}, "dp_rank": 0}
        tree.apply_event(1, json.dumps(event).encode())
    for hashes in tokens:
        if list(tree.find_matches(hashes).scores.values()) != [PREFIX]:
            raise RuntimeError("a held prefix was not found")

    def longest() -> float:
        some = [tokens[i] for i in random.permutation(len(tokens))[:PROMPTS]]
        start = time.perf_counter()
        for hashes in some:
            tree.find_matches(hashes)
        return (time.perf_counter() - start) * 1e6 / len(some)

    yield {LONGEST: longest}


if __name__ == "__main__":
    serve(peer)
