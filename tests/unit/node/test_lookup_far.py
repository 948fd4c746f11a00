"""Behind what other nodes hold a chain may go on in packs that this node does not know yet: they are looked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.node.auth import TRUSTED
from kvstore.node.far_lookup import FarFound
from kvstore.node.handlers import Handlers
from kvstore.wire import store

KEYS = np.arange(6 * 32, dtype=np.uint8).reshape(6, 32)
OPENED: Any = SimpleNamespace(digest=b"d" * 32, handle=3, tenant="t", shards=("a", "b"), block_tokens=4, seed=b"s" * 32)


class World:
    def __init__(self, found: int) -> None:
        self.asked: list[tuple[int, int, bytes, int, float]] = []

        async def find(opened: Any, keys: Any, needs: Any) -> FarFound:
            return FarFound(found, bytes([9]) * found, 0.0)

        async def find_packs(ns: int, shard: int, keys: Any, position: int, wait_s: float) -> None:
            self.asked.append((ns, shard, keys.tobytes(), position, wait_s))

        host: Any = SimpleNamespace(
            bridge=SimpleNamespace(core=SimpleNamespace(event_sequence=0)),
            several_tenants=lambda: False,
            limits=SimpleNamespace(keys_per_call_max=100),
            namespaces=SimpleNamespace(find=lambda _: OPENED),
            far=SimpleNamespace(find=find),
            find_packs=find_packs,
            cluster=None,
        )
        self.handlers = Handlers(host)

    async def look(self, position: int) -> int:
        chain = store.Chain(keys=KEYS.tobytes(), position=position)
        request = store.LookupRequest(namespace=OPENED.digest, chain=chain)
        return (await self.handlers.lookup_far(TRUSTED, request)).blocks


@pytest.mark.parametrize("position", [0, 10])
async def test_packs_are_looked_for_behind_what_is_far(position: int) -> None:
    world = World(4)
    assert await world.look(position) == 4
    rest = KEYS[4:].tobytes()
    assert world.asked == [(3, shard, rest, position + 4, 0.0) for shard in (0, 1)], "and nobody waits for it"


async def test_nothing_is_looked_for_where_all_was_found() -> None:
    world = World(6)
    assert await world.look(0) == 6
    assert world.asked == []
