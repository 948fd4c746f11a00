"""The store over verbs: a real node, clients of it that map nothing, and what they put and get by RDMA."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import AsyncClient, Client, Ended, Extents, Namespace
from kvstore.client.sync import Client as SyncClient
from kvstore.config import TransferConfig
from kvstore.transfers import device_settings
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from tests.rdma.rails import Rail
from transfer.paths import Path as Way
from transfer.testing.device import SimulatedDevice, simulated_devices

OURS = TransferConfig(rdma="on", rdma_devices=("rxe_a0", "rxe_a1"))
BLOCKS = 24


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    sets = ("transfer.rdma=on", "transfer.rdma_devices=rxe_b0,rxe_b1")
    with NodeProcess(tmp_path, *sets, address="127.0.0.1:0", metrics="127.0.0.1:0") as node:
        yield node


@pytest.fixture(autouse=True)
def _as_from_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else both would share memory."""
    monkeypatch.setattr("transfer.offers.Home.same_files", lambda *_: False)


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Client]:
    with Client(node.facts["address"], transfers=OURS, deadline_s=60) as client:
        yield client


def way_of(client: SyncClient) -> Way | None:
    """By which path its bytes move."""
    reached = client._channel._away._ways._reached  # type: ignore[attr-defined]
    return reached[1].fetching.chosen.path if reached is not None else None


def moved(node: NodeProcess, direction: str) -> int:
    """By RDMA, as the node counts it."""
    import urllib.request

    where = next(one for one in node.facts["addresses"] if one.endswith("/metrics"))
    with urllib.request.urlopen(where, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    (line,) = [
        one
        for one in lines
        if one.startswith("kvstore_transfer_bytes_total{") and f'"{direction}"' in one and '"rdma"' in one
    ]
    return int(float(line.split()[-1]))


def check(ns: Namespace, seed: int, blocks: int = BLOCKS) -> None:
    """Put, and got back bit by bit."""
    chain = ns.chain(tokens(blocks, seed))
    expected, into = blocks_of(chain), np.zeros((blocks, SIZE), np.uint8)
    assert ns.put(chain, expected).stored == blocks
    got = ns.get(chain, into)
    assert (got.blocks, got.ended) == (blocks, Ended.COMPLETE)
    assert np.array_equal(into, expected)


def test_put_and_get_move_by_rdma_and_are_counted(node: NodeProcess, client: Client) -> None:
    ns = client.namespace(layout())
    check(ns, seed=1)
    assert way_of(client) is Way.RDMA
    eventually(lambda: moved(node, "served") == BLOCKS * SIZE)
    assert moved(node, "read") == BLOCKS * SIZE
    assert (node.holds(), node.tier()["reserved"]) == (0, 0)


def test_what_is_held_is_got_layer_by_layer(node: NodeProcess, client: Client) -> None:
    ns = client.namespace(layout())
    check(ns, seed=2)
    chain, part = ns.chain(tokens(BLOCKS, 2)), SIZE // 4
    eventually(lambda: moved(node, "served") == BLOCKS * SIZE)
    with ns.hold(chain) as held:
        assert (held.blocks, node.holds()) == (BLOCKS, 1)
        for first, end in ((2, 4), (0, 1), (1, 2)):
            into = np.zeros((BLOCKS, (end - first) * part), np.uint8)
            assert ns.get(chain, into, parts=(first, end)).ended is Ended.COMPLETE
            assert np.array_equal(into, blocks_of(chain)[:, first * part : end * part])
    assert way_of(client) is Way.RDMA
    eventually(lambda: moved(node, "served") == 2 * BLOCKS * SIZE)
    eventually(lambda: node.holds() == 0)


def test_blocks_of_an_engine_lie_layer_by_layer(client: Client) -> None:
    ns = client.namespace(layout())
    chain, piece = ns.chain(tokens(6, seed=2)), SIZE // 4
    layers = [np.random.default_rng(i).integers(256, size=(40, piece), dtype=np.uint8) for i in range(4)]
    into = [np.zeros((40, piece), np.uint8) for _ in range(4)]
    rows, back = np.arange(6) * 5 + 1, np.arange(6)[::-1] * 2
    with client.register([*layers, *into]):  # registered with the devices once, for both calls
        assert ns.put(chain, Extents.strided(layers, rows * piece, piece)).stored == 6
        assert ns.get(chain, Extents.strided(into, back * piece, piece)).blocks == 6
    for source, arrived in zip(layers, into, strict=True):
        assert np.array_equal(source[rows], arrived[back])


def test_device_memory_is_staged_where_no_nic_reaches_it(node: NodeProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simulated device's, registered for the calls of an engine: layers, and as much around them as a cache has."""
    device = SimulatedDevice()
    monkeypatch.setattr("kvstore.transfers.devices_of", lambda told: simulated_devices(device, device_settings(told)))
    with Client(node.facts["address"], transfers=OURS, deadline_s=60) as client:
        ns = client.namespace(layout())
        chain, piece = ns.chain(tokens(6, seed=20)), SIZE // 4
        expected, at = blocks_of(chain), (np.arange(6) * 5 + 1) * piece
        sources, targets = ([device.array(40 * piece) for _ in range(4)] for _ in range(2))
        for part, (_, content) in enumerate(sources):
            for block, offset in enumerate(at):
                content[offset : offset + piece] = expected[block, part * piece : (part + 1) * piece]
        with client.register([array for array, _ in (*sources, *targets)]):
            assert ns.put(chain, Extents.strided([one for one, _ in sources], at, piece)).stored == 6
            assert ns.get(chain, Extents.strided([one for one, _ in targets], at, piece)).blocks == 6
        assert way_of(client) is Way.RDMA
        for (_, there), (_, here) in zip(sources, targets, strict=True):
            assert np.array_equal(there, here)
        whole = np.zeros_like(expected)
        assert ns.get(chain, whole).blocks == 6 and np.array_equal(whole, expected)


def test_slots_are_filled_part_by_part(client: Client) -> None:
    ns = client.namespace(layout())
    chain, part = ns.chain(tokens(3, seed=3)), SIZE // 4
    expected, into = blocks_of(chain), np.zeros((3, SIZE), np.uint8)
    with ns.reserve(chain) as slots:
        for i in range(4):
            slots.write(i, [block[i * part : (i + 1) * part] for block in expected])
            slots.publish(i)
        assert slots.seal().stored == 3
    assert ns.get(chain, into).blocks == 3 and np.array_equal(into, expected)


def test_bytes_that_changed_are_never_handed_out(node: NodeProcess, client: Client) -> None:
    ns = client.namespace(layout())
    with Client(node.address) as near:
        beside = near.namespace(layout())
        chain = ns.chain(tokens(3, seed=4))
        expected, into = blocks_of(chain), np.zeros((3, SIZE), np.uint8)
        with beside.reserve(chain) as slots:
            arrays = [slots.array(block) for block in slots.granted]
            for array, block in zip(arrays, expected, strict=True):
                array[:] = block
            slots.seal()
        arrays[1][SIZE - 1] ^= 1
        got = ns.get(chain, into)
    assert (got.blocks, got.ended) == (1, Ended.CORRUPT) and np.array_equal(into[0], expected[0])
    eventually(lambda: ns.lookup(chain).blocks == 1)


def test_a_lost_link_costs_nothing_but_time(client: Client, rail: Rail) -> None:
    ns = client.namespace(layout())
    check(ns, seed=5)
    with rail.down(rail.near):
        for seed in range(6, 9):
            check(ns, seed=seed)
        assert way_of(client) is Way.RDMA
    check(ns, seed=9)


def test_a_node_that_was_killed_is_found_again(node: NodeProcess, client: Client) -> None:
    ns = client.namespace(layout())
    check(ns, seed=10)
    node.kill()
    node._flags[node._flags.index("--address") + 1] = node.facts["address"]  # the same port
    node.start()
    chain = ns.chain(tokens(BLOCKS, seed=10))
    into = np.zeros((BLOCKS, SIZE), np.uint8)

    def back() -> bool:
        got = ns.get(chain, into)
        return got.blocks == BLOCKS and np.array_equal(into, blocks_of(chain))

    eventually(back, within_s=60)
    assert way_of(client) is Way.RDMA


async def test_a_cancelled_get_leaves_memory_quiet(node: NodeProcess) -> None:
    async with AsyncClient(node.facts["address"], transfers=OURS, deadline_s=60) as client:
        ns = await client.namespace(layout())
        chain = ns.chain(tokens(BLOCKS, seed=11))
        expected = blocks_of(chain)
        assert (await ns.put(chain, expected)).stored == BLOCKS
        for delay in range(8):
            into = np.zeros((BLOCKS, SIZE), np.uint8)
            task = asyncio.ensure_future(ns.get(chain, into))
            for _ in range(4 * delay):
                await asyncio.sleep(0)
            task.cancel()
            done = (await asyncio.gather(task, return_exceptions=True))[0]
            before = into.copy()
            await asyncio.sleep(0.05)
            assert np.array_equal(into, before), "written to after the answer"
            assert isinstance(done, asyncio.CancelledError) or done.blocks == BLOCKS
        await asyncio.to_thread(eventually, lambda: node.holds() == 0)
