"""What a node says of where blocks lie while its object store does not answer."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.node import questions
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.questions import Questions
from kvstore.wire import admin, store


async def test_a_store_that_does_not_answer_costs_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not once for each shard: whoever asks waits ten seconds, and would be told nothing at all."""
    monkeypatch.setattr(questions, "PACKS_S", 0.05)
    keys = np.arange(64, dtype=np.uint8).reshape(2, 32)
    waited: list[float] = []

    async def find_packs(_ns: int, _shard: int, _keys: object, _position: int, wait_s: float) -> None:
        waited.append(wait_s)
        await asyncio.sleep(wait_s)

    core = SimpleNamespace(find=lambda _tier, _ns, shard, _keys: [shard == 1, False])
    host: Any = SimpleNamespace(
        namespaces=SimpleNamespace(find=lambda _digest: SimpleNamespace(handle=0, shards=range(20))),
        bridge=SimpleNamespace(core=core),
        tiers=lambda: [SimpleNamespace(tier=MEMORY_TIER)],
        limits=SimpleNamespace(hold_wait_ms_max=10_000),
        in_packs=lambda _ns, _shard, keys: np.zeros(len(keys), np.bool_),
        find_packs=find_packs,
    )
    handlers: Any = SimpleNamespace(keys=lambda _opened, _chain: keys)
    began = time.monotonic()
    told = await Questions(host, handlers).locate(admin.LocateRequest(chain=store.Chain(keys=keys.tobytes())))
    assert time.monotonic() - began < 0.5 and waited == [0.05] * 20
    assert [(block.memory_shards, block.object_shards) for block in told.blocks] == [(0b10, 0), (0, 0)]
