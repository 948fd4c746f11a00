"""The async face of the client against a real node process, by every way that its bytes take."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import AsyncClient, Ended
from kvstore.errors import Rejected, Unavailable
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), "limits.keys_per_call_max=1000", address="127.0.0.1:0") as node:
        yield node


async def test_the_async_face_does_all_that(way: str, address: str) -> None:
    async with AsyncClient(address) as client:
        ns = await client.namespace(layout(f"async {way}"))
        chain = ns.chain(tokens(6))
        expected = blocks_of(chain)
        assert (await ns.put(chain[:4], expected[:4])).stored == 4
        assert (await ns.lookup(chain)).blocks == 4
        into = np.zeros((6, SIZE), np.uint8)
        got = await ns.get(chain, into)
        assert (got.blocks, got.ended) == (4, Ended.MISS)
        assert np.array_equal(into[:4], expected[:4])
        if way == "mapped":
            with await ns.view(chain) as view:
                assert np.array_equal(np.stack(view.blocks), expected[:4])
        else:
            with pytest.raises(Rejected, match="views need the node's own machine"):
                await ns.view(chain)
        async with await ns.reserve(chain[4:], parent=chain[3], position=4) as slots:
            for part in range(4):
                cut = slice(part * SIZE // 4, (part + 1) * SIZE // 4)
                await slots.write(part, [block[cut] for block in expected[4:]])
                await slots.publish(part)
            assert (await slots.seal()).stored == 2
        assert (await ns.get(chain, into)).ended is Ended.COMPLETE
        assert np.array_equal(into, expected)
        assert await ns.prefetch(chain) == 6
        assert (await ns.clear()).generation == 1
        assert (await ns.lookup(chain)).blocks == 0


async def test_many_awaited_at_once(address: str) -> None:
    async with AsyncClient(address) as client:
        ns = await client.namespace(layout(f"gathered {address}"))

        async def one(seed: int) -> bool:
            chain = ns.chain(tokens(5, seed=seed))
            await ns.put(chain, blocks_of(chain))
            into = np.zeros((5, SIZE), np.uint8)
            got = await ns.get(chain, into)
            return bool(np.array_equal(into[: got.blocks], blocks_of(chain[: got.blocks]))) and got.blocks > 0

        assert all(await asyncio.gather(*(one(seed) for seed in range(30))))


async def test_a_cancelled_call_leaves_memory_quiet(address: str) -> None:
    async with AsyncClient(address) as client:
        ns = await client.namespace(layout(f"cancelled {address}"))
        chain = ns.chain(tokens(60))
        expected = blocks_of(chain)
        await ns.put(chain, expected)
        for delay in range(20):
            into = np.zeros((60, SIZE), np.uint8)
            task = asyncio.ensure_future(ns.get(chain, into))
            for _ in range(delay):
                await asyncio.sleep(0)
            task.cancel()
            done = (await asyncio.gather(task, return_exceptions=True))[0]
            before = into.copy()
            await asyncio.sleep(0.01)
            assert np.array_equal(into, before), "written to after the answer"
            assert isinstance(done, asyncio.CancelledError) or done.blocks == 60
        into = np.zeros((60, SIZE), np.uint8)
        assert (await ns.get(chain, into)).blocks == 60
        assert np.array_equal(into, expected)


async def test_a_cancelled_call_leaves_no_hold_and_no_slot(node: NodeProcess, way: str, address: str) -> None:
    """Whenever it is cancelled, and however often: what the node gave and nobody took goes back."""
    async with AsyncClient(address) as client:
        ns = await client.namespace(layout(f"cancelled view {way}"))
        chain = ns.chain(tokens(8))
        into = np.zeros((4, SIZE), np.uint8)
        await ns.put(chain[:4], blocks_of(chain[:4]))
        for delay in range(20):
            held = ns.view(chain[:4]) if way == "mapped" else ns.get(chain[:4], into)
            calls = [asyncio.ensure_future(held), asyncio.ensure_future(ns.reserve(chain[4:]))]
            for _ in range(delay):
                await asyncio.sleep(0)
            for _ in range(2):
                for call in calls:
                    call.cancel()
                await asyncio.sleep(0)
            view, slots = await asyncio.gather(*calls, return_exceptions=True)
            if not isinstance(slots, BaseException):
                await slots.abort()
            del view, slots, calls
            await asyncio.to_thread(eventually, lambda: node.holds() == 0)
        # A reservation that was under way in its thread ends with it.
        await asyncio.to_thread(eventually, lambda: node.tier()["reserved"] == 0)
        assert (await ns.put(chain, blocks_of(chain))).stored == 4


async def test_the_async_face_without_a_node(tmp_path: Path) -> None:
    async with AsyncClient(f"unix:{tmp_path}/none.sock") as client:
        with pytest.raises(Unavailable):
            await client.namespace(layout())
