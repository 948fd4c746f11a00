"""Both faces of the client over host:port: the same verbs as over the socket, their bytes in messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

import kvstore
from kvstore import AsyncClient, Client, Ended, Extents, Hints, KVLayout, Need, NeedKind, PutOutcome
from kvstore.config import MIB, GrpcConfig
from kvstore.errors import Rejected, Unavailable
from kvstore.node.node import Node
from tests.integration.grpc_node import config_for, running, tcp_address

LAYOUT = KVLayout.uniform(
    engine="e",
    model="m",
    revision="1",
    dtype="float16",
    block_tokens=4,
    layers=3,
    kv_heads=4,
    head_dim=100,
    tensor_parallel=2,
)
SIZE = LAYOUT.shards[0].bytes
TOKENS = list(range(1000, 1043))
BLOCKS = len(TOKENS) // 4


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with running(config_for(tmp_path)) as started:
        yield started


def payload(blocks: int, seed: int = 0, size: int = SIZE) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (blocks, size), dtype=np.uint8)


async def test_the_async_face(node: Node) -> None:
    async with AsyncClient(tcp_address(node)) as client:
        ns = await client.namespace(LAYOUT)
        chain, data = ns.chain(TOKENS), payload(BLOCKS)
        assert (await ns.lookup(chain)).blocks == 0
        told = await ns.put(chain[:6], data[:6])
        assert (told.stored, told.ended) == (6, Ended.COMPLETE)
        told = await ns.put(chain, data)
        assert (told.held, told.stored) == (6, BLOCKS - 6)
        assert list(told.outcomes) == [PutOutcome.HELD] * 6 + [PutOutcome.STORED] * (BLOCKS - 6)
        assert (await ns.put(chain, data)).held == BLOCKS
        found = await ns.lookup(chain, [Need(0), Need(1, NeedKind.LAST, 2)])
        assert found.blocks == 0
        found = await ns.lookup(chain)
        assert (found.blocks, found.tokens) == (BLOCKS, BLOCKS * 4) and found.fetch_s > 0

        into = np.zeros((BLOCKS, SIZE), np.uint8)
        got = await ns.get(chain, into)
        assert (got.blocks, got.tokens, got.ended) == (BLOCKS, BLOCKS * 4, Ended.COMPLETE)
        assert np.array_equal(into, data)
        longer = ns.chain([*TOKENS, *range(50)])
        into = np.zeros((len(longer), SIZE), np.uint8)
        got = await ns.get(longer, into, wait_s=0)
        assert (got.blocks, got.ended) == (BLOCKS, Ended.MISS) and np.array_equal(into[:BLOCKS], data)


async def test_the_sync_face(node: Node) -> None:
    def use() -> None:
        with Client(tcp_address(node)) as client:
            ns = client.namespace(LAYOUT)
            chain, data = ns.chain(TOKENS), payload(BLOCKS, 1)
            hints = Hints(session="s", turn=2, family="system", priority=1, expected_return_s=1.5)
            assert ns.put(chain, data, hints=hints).stored == BLOCKS
            into = np.zeros((BLOCKS, SIZE), np.uint8)
            assert ns.get(chain, into, hints=hints).blocks == BLOCKS and np.array_equal(into, data)
            assert ns.prefetch(chain, shards=[0]) == BLOCKS
            before = ns.digest
            assert ns.clear() == 1 and ns.generation == 1 and ns.digest != before
            assert ns.lookup(ns.chain(TOKENS)).blocks == 0

    await asyncio.to_thread(use)


async def test_both_doors_serve_the_same_blocks(node: Node) -> None:
    async with AsyncClient(tcp_address(node)) as far, AsyncClient(f"unix:{node.socket}") as near:
        there, here = await far.namespace(LAYOUT), await near.namespace(LAYOUT)
        assert there.digest == here.digest
        data, into = payload(BLOCKS, 2), np.zeros((BLOCKS, SIZE), np.uint8)
        chain = here.chain(TOKENS)
        assert np.array_equal(chain, there.chain(TOKENS))
        assert (await there.put(chain[:4], data[:4])).stored == 4
        assert (await here.put(chain, data)).held == 4
        assert (await there.get(chain, into)).blocks == BLOCKS and np.array_equal(into, data)
        into[:] = 0
        assert (await here.get(chain, into)).blocks == BLOCKS and np.array_equal(into, data)


async def test_blocks_scattered_over_layers(node: Node) -> None:
    async with AsyncClient(tcp_address(node)) as client:
        ns = await client.namespace(LAYOUT)
        chain, piece = ns.chain(TOKENS), SIZE // 3
        layers = [np.random.default_rng(i).integers(0, 256, (40, piece), dtype=np.uint8) for i in range(3)]
        rows = np.arange(BLOCKS) * 3 + 1
        assert (await ns.put(chain, Extents.strided(layers, rows * piece, piece))).stored == BLOCKS
        into = [np.zeros((40, piece), np.uint8) for _ in range(3)]
        back = np.arange(BLOCKS)[::-1] * 2
        assert (await ns.get(chain, Extents.strided(into, back * piece, piece))).blocks == BLOCKS
        for source, arrived in zip(layers, into, strict=True):
            assert np.array_equal(source[rows], arrived[back])


async def test_a_put_of_several_windows_and_blocks_larger_than_messages(tmp_path: Path) -> None:
    layout = KVLayout.uniform(
        engine="e", model="big", revision="1", dtype="int8", block_tokens=1, layers=3, kv_heads=1, head_dim=MIB
    )
    door = GrpcConfig(address="127.0.0.1:0", window_bytes=8 * MIB)
    async with (
        running(config_for(tmp_path, door=door, memory_bytes=256 * MIB)) as node,
        AsyncClient(tcp_address(node)) as client,
    ):
        ns = await client.namespace(layout)
        chain, data = ns.chain(list(range(12))), payload(12, 3, 6 * MIB)  # 72 MiB
        assert (await ns.put(chain, data)).stored == 12
        into = np.zeros_like(data)
        assert (await ns.get(chain, into)).blocks == 12 and np.array_equal(into, data)


async def test_views_and_reservations_say_where_to_go(node: Node) -> None:
    async with AsyncClient(tcp_address(node)) as client:
        ns = await client.namespace(LAYOUT)
        with pytest.raises(Rejected, match="unix:PATH"):
            await ns.view(ns.chain(TOKENS))
        with pytest.raises(Rejected, match="unix:PATH"):
            await ns.reserve(ns.chain(TOKENS))


async def test_a_node_restarted_under_a_client(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    data, into = payload(BLOCKS, 4), np.zeros((BLOCKS, SIZE), np.uint8)
    async with running(config, keep=True) as node:
        at = tcp_address(node)
        client = AsyncClient(at, deadline_s=20)
        ns = await client.namespace(LAYOUT)
        chain = ns.chain(TOKENS)
        await ns.put(chain, data)
    with pytest.raises(Unavailable):
        await ns.get(chain, into, deadline_s=1)
    door = GrpcConfig(address=at)
    async with running(config_for(tmp_path, door=door)):
        while True:  # calls fail at once until gRPC tries to connect again; the suite's time limit ends it
            try:
                got = await ns.get(chain, into)
                break
            except Unavailable:
                await asyncio.sleep(0.05)
        assert got.blocks == BLOCKS and np.array_equal(into, data)
    await client.close()


async def test_a_clear_by_another_is_noticed(node: Node) -> None:
    async with AsyncClient(tcp_address(node)) as one, AsyncClient(tcp_address(node)) as other:
        ns, theirs = await one.namespace(LAYOUT), await other.namespace(LAYOUT)
        chain = ns.chain(TOKENS)
        await ns.put(chain, payload(BLOCKS))
        await theirs.clear()
        got = await ns.get(chain, np.zeros((BLOCKS, SIZE), np.uint8))
        assert (got.blocks, got.ended) == (0, Ended.CLEARED)
        assert ns.generation == 1
        assert (await ns.put(ns.chain(TOKENS), payload(BLOCKS))).stored == BLOCKS


async def test_nobody_there(tmp_path: Path) -> None:
    async with AsyncClient("127.0.0.1:1", deadline_s=2) as client:
        with pytest.raises(Unavailable):
            await client.namespace(LAYOUT)


def test_the_socket_client_never_loads_grpc() -> None:
    import subprocess
    import sys

    code = "import sys, kvstore; kvstore.Client('unix:/nowhere'); print('grpc' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "False"
    assert kvstore.__version__
