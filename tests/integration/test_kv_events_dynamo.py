"""Dynamo's own router, as its package has it, fed by a real node: it counts as many blocks as the node's lookups find.

Skipped where `ai-dynamo-runtime` is not installed; `make test` installs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore import Client, Namespace
from tests.integration.event_router import BLOCK_TOKENS
from tests.integration.nodes import SIZE, NodeProcess, eventually, layout, tokens
from tests.integration.test_kv_events import endpoints, put
from tests.ports import free_ports

dynamo = pytest.importorskip("dynamo._core", reason="a real router: pip install --group routers")


class Dynamo:
    """Its selection service, which subscribes to the publishers of its workers: the node is one."""

    def __init__(self) -> None:
        self._service = dynamo.SelectionService(indexer_threads=1)

    async def follow(self, publisher: str, replay: str) -> None:
        worker = {"worker_id": 1, "model_name": "m", "endpoint": "http://127.0.0.1:1", "block_size": BLOCK_TOKENS}
        await self._service.upsert_worker({**worker, "kv_events_endpoint": publisher, "replay_endpoint": replay})

    async def blocks(self, prompt: np.ndarray) -> tuple[int, int]:
        """Of a prompt's beginning: in memory; on disk, where they are not in memory."""
        found: dict[str, Any] = await self._service.overlap_scores({"model_name": "m", "token_ids": prompt.tolist()})
        (worker,) = found["workers"] or [{"host_pinned_blocks": 0, "disk_blocks": 0}]
        return worker["host_pinned_blocks"], worker["disk_blocks"]

    async def until(self, ns: Namespace, prompts: Sequence[np.ndarray]) -> list[int]:
        """Waits until it agrees with lookups; returns what those say."""
        async with asyncio.timeout(30):
            while True:
                wanted = [ns.lookup(ns.chain(prompt)).blocks for prompt in prompts]
                if [max(await self.blocks(prompt)) for prompt in prompts] == wanted:
                    return wanted
                await asyncio.sleep(0.05)

    def close(self) -> None:
        self._service.shutdown()


async def test_dynamo_routes_on_what_the_node_holds(tmp_path: Path) -> None:
    ports = [f"tcp://127.0.0.1:{port}" for port in free_ports(2)]
    sets = (f"events.zmq={ports[0]}", f"events.replay={ports[1]}", "file.enabled=true", "file.bytes=64MiB")
    prompts = [tokens(40, seed=seed) for seed in range(6)]
    node = NodeProcess(tmp_path, *sets, "file.admission=always", memory="8MiB")
    router = Dynamo()
    with node:
        assert endpoints(node) == ports
        await router.follow(*ports)
        with Client(node.address) as client:
            ns = client.namespace(layout())
            put(ns, prompts[0])
            assert await router.until(ns, prompts) == [40, 0, 0, 0, 0, 0]
            for at, prompt in enumerate(prompts[1:], 2):
                put(ns, prompt)
                # Files take what memory has no room for; it is put no faster than they do.
                least = (at * 40 - 144) * SIZE
                await asyncio.to_thread(eventually, lambda least=least: node.counters(2)["used"] >= least)
            assert sum(await router.until(ns, prompts)) > 150
        await asyncio.to_thread(node.restart)
        with Client(node.address) as client:
            ns = client.namespace(layout())
            assert sum(await router.until(ns, prompts)) > 100, "what outlived the restart"
            ns.clear()
            assert await router.until(ns, prompts) == [0] * 6
            put(ns, prompts[3])
            assert await router.until(ns, prompts) == [0, 0, 0, 40, 0, 0]
    router.close()
