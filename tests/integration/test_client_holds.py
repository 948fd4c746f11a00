"""What a client holds stays in the node's memory until it is let go: by every way that the bytes take."""

from __future__ import annotations

import asyncio
import gc
import math
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import AsyncClient, Client, Ended, Held, Namespace
from kvstore.errors import Rejected, Unavailable
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.patience import SLOW_S, written_behind

LEASE_MS = 2_500  # long enough to be asked about before it ends
MEMORY, WINDOW, HELD_MAX = 256, 64, 128  # blocks: of the tier, a quarter, half
FILES = ("file.enabled=true", "file.bytes=64MiB", "file.slab_bytes=4MiB", "file.admission=always")


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path_factory.mktemp("node"), address="127.0.0.1:0") as node:
        yield node


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, deadline_s=20) as client:
        yield client


@pytest.fixture
def ns(client: Client, request: pytest.FixtureRequest) -> Namespace:
    return client.namespace(layout(request.node.name[:200]))


@pytest.fixture
def idle(node: NodeProcess) -> int:
    """Holds of others."""
    eventually(lambda: node.holds() == 0)
    return 0


def stored(ns: Namespace, blocks: int, seed: int = 0) -> np.ndarray:
    chain = ns.chain(tokens(blocks, seed=seed))
    assert ns.put(chain, blocks_of(chain)).rejected == 0
    return chain


def fill(ns: Namespace, seed: int = 1000) -> None:
    """With more than the memory tier has."""
    for i in range(4):
        chain = ns.chain(tokens(MEMORY // 2, seed=seed + i))
        ns.put(chain, blocks_of(chain))


def fetched(ns: Namespace, chain: np.ndarray) -> int:
    """How many blocks come, all of them right."""
    into = np.zeros((len(chain), SIZE), np.uint8)
    got = ns.get(chain, into)
    assert np.array_equal(into[: got.blocks], blocks_of(chain[: got.blocks]))
    return got.blocks


def test_what_is_held_stays_while_memory_fills(way: str, node: NodeProcess, idle: int, ns: Namespace) -> None:
    kept, other = stored(ns, 20), stored(ns, 20, seed=1)
    asked = time.monotonic()
    with ns.hold(kept) as held:
        assert (held.blocks, len(held), held.tokens, held.tiers.tolist()) == (20, 20, 80, [1] * 20)
        assert held.expires_s == math.inf if way == "mapped" else 50 < held.expires_s - asked <= 60 + SLOW_S
        fill(ns)
        assert ns.lookup(other).blocks == 0
        assert fetched(ns, kept) == 20
    assert held.closed
    held.close()
    eventually(lambda: node.holds() == idle)
    fill(ns, seed=2000)
    assert ns.lookup(kept).blocks == 0


def test_what_is_not_there_is_not_held(node: NodeProcess, idle: int, ns: Namespace) -> None:
    chain = ns.chain(tokens(10))
    none = ns.hold(chain)
    assert (none.blocks, none.tokens, none.tiers.tolist(), none.closed) == (0, 0, [], True)
    assert ns.hold(chain[:0]).blocks == 0
    stored(ns, 7)
    with ns.hold(chain) as held:
        assert held.blocks == 7
    with ns.hold(chain[3:], position=3) as held:
        assert held.blocks == 4


def test_a_chain_of_many_windows_is_held_whole(node: NodeProcess, idle: int, ns: Namespace) -> None:
    chain = stored(ns, 120)
    assert len(chain) > WINDOW
    with ns.hold(chain) as held:
        assert held.blocks == 120
        assert node.holds() == idle + 2
        fill(ns)
        assert fetched(ns, chain) == 120
    eventually(lambda: node.holds() == idle)


def test_what_a_connection_may_hold_is_limited(
    address: str, node: NodeProcess, idle: int, ns: Namespace, request: pytest.FixtureRequest
) -> None:
    """By a shorter run. A block counts once, and what is fetched does not count."""
    chain = stored(ns, 200)
    first = ns.hold(chain)
    assert first.blocks == HELD_MAX
    again = ns.hold(chain[:100])
    assert again.blocks == 100, "they are held already"
    assert fetched(ns, chain) == 200
    beyond = ns.hold(chain[HELD_MAX:], position=HELD_MAX)
    assert beyond.blocks == 0
    with Client(address) as another:
        theirs = another.namespace(layout(request.node.name[:200]))
        with theirs.hold(chain[HELD_MAX:], position=HELD_MAX) as held:
            assert held.blocks == 200 - HELD_MAX
    first.close()
    eventually(lambda: node.holds() == idle + 2)
    with ns.hold(chain[100:], position=100) as held:
        assert held.blocks == HELD_MAX - 100
    again.close()
    eventually(lambda: node.holds() == idle)
    with ns.hold(chain[100:], position=100) as held:
        assert held.blocks == 100


def test_a_hold_that_is_forgotten_ends(node: NodeProcess, idle: int, ns: Namespace) -> None:
    chain = stored(ns, 5)
    held = ns.hold(chain)
    assert node.holds() == idle + 1
    cycle: list[object] = [held]
    cycle.append(cycle)
    del held, cycle
    gc.collect()
    eventually(lambda: node.holds() == idle)


def test_a_hold_ends_with_its_connection(way: str, address: str, node: NodeProcess, idle: int) -> None:
    client = Client(address)
    ns = client.namespace(layout(f"ends {way}"))
    chain = stored(ns, 5)
    held = ns.hold(chain)
    assert node.holds() == idle + 1
    client.close()
    eventually(lambda: node.holds() == idle)
    held.close()


def _closes(held: Held) -> None:
    held.close()


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_of_fork_ends_no_hold(node: NodeProcess, idle: int, ns: Namespace) -> None:
    with ns.hold(stored(ns, 3)):
        before = node.holds()
        child = multiprocessing.get_context("fork").Process(target=_closes, args=(ns.hold(stored(ns, 3)),))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert before == idle + 1
        eventually(lambda: node.holds() == idle + 1)
        time.sleep(0.05)
        assert node.holds() == idle + 1


def test_a_cleared_namespace_holds_nothing(node: NodeProcess, idle: int, ns: Namespace) -> None:
    chain = stored(ns, 5)
    held = ns.hold(chain)
    ns.clear()
    assert ns.hold(chain).blocks == 0
    held.close()
    eventually(lambda: node.holds() == idle)


def test_what_the_caller_got_wrong_is_named(ns: Namespace) -> None:
    chain = np.zeros((2, 32), np.uint8)
    with pytest.raises(ValueError, match="shard: 1, must be 0 to 0"):
        ns.hold(chain, shard=1)
    with pytest.raises(ValueError, match="wait_s: -1"):
        ns.hold(chain, wait_s=-1)
    with pytest.raises(TypeError, match="chain: bytes"):
        ns.hold(b"")
    with pytest.raises(Rejected, match="chain: 70000 keys, at most 65536"):
        ns.hold(np.zeros((70_000, 32), np.uint8))


async def test_holds_that_are_awaited(way: str, address: str, node: NodeProcess, idle: int) -> None:
    async with AsyncClient(address) as client:
        ns = await client.namespace(layout(f"async {way}"))
        chains = [ns.chain(tokens(6, seed=seed)) for seed in range(8)]
        for chain in chains:
            assert (await ns.put(chain, blocks_of(chain))).stored == 6
        holds = await asyncio.gather(*(ns.hold(chain) for chain in chains))
        assert [held.blocks for held in holds] == [6] * 8
        assert node.holds() == idle + 8
        for held in holds[1:]:
            held.close()
        with holds[0]:
            into = np.zeros((6, SIZE), np.uint8)
            assert (await ns.get(chains[0], into)).ended is Ended.COMPLETE
        await asyncio.to_thread(eventually, lambda: node.holds() == idle)


async def test_a_hold_that_is_given_up_leaves_none(way: str, address: str, node: NodeProcess, idle: int) -> None:
    """Cancelled at every moment: before it is sent, while it is answered, and after."""
    async with AsyncClient(address) as client:
        ns = await client.namespace(layout(f"given up {way}"))
        chain = ns.chain(tokens(100))
        await ns.put(chain, blocks_of(chain))
        (await ns.hold(chain)).close()
        for pause_us in range(0, 3000, 100):
            task = asyncio.ensure_future(ns.hold(chain))
            await asyncio.sleep(pause_us / 1e6)
            task.cancel()
            for held in await asyncio.gather(task, return_exceptions=True):
                if isinstance(held, Held):
                    held.close()
        del task, held
        await asyncio.to_thread(eventually, lambda: node.holds() == idle)


# ---- nodes of their own ---------------------------------------------------------------------------------------------


@pytest.fixture
def place(way: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Which of a node's addresses; the way is taken as the fixture `address` has it."""
    if way == "lanes":
        monkeypatch.setattr("kvstore.client.ways._trusted_uids", set)
    if way == "tcp":
        monkeypatch.setattr("transfer.offers.Home.same_files", lambda *_: False)
    return way


def reached(node: NodeProcess, place: str) -> Client:
    return Client(node.address if place == "mapped" else str(node.facts["address"]), deadline_s=20)


def test_a_hold_of_a_node_that_was_restarted_is_harmless(place: str, tmp_path: Path) -> None:
    with NodeProcess(tmp_path, address="127.0.0.1:0") as node:
        node._flags[node._flags.index("127.0.0.1:0")] = str(node.facts["address"])  # the same port again
        with reached(node, place) as client:
            ns = client.namespace(layout())
            chain = stored(ns, 100)
            held = ns.hold(chain)
            node.restart()
            eventually(lambda: _held(ns, chain) == 100, 20)
            new = ns.hold(chain)
            assert (new.blocks, node.holds()) == (100, 2)
            held.close()
            assert node.holds() == 2, "its number means nothing to the node's next life"
            assert fetched(ns, chain) == 100
            new.close()
            eventually(lambda: node.holds() == 0)


def _held(ns: Namespace, chain: np.ndarray) -> int:
    try:
        return ns.hold(chain).blocks
    except Unavailable:
        return 0


def test_a_hold_by_lease_ends_at_its_time(place: str, tmp_path: Path) -> None:
    with (
        NodeProcess(tmp_path, f"limits.lease_ms_max={LEASE_MS}", address="127.0.0.1:0") as node,
        reached(node, place) as client,
    ):
        ns = client.namespace(layout())
        chain = stored(ns, 5)
        began = time.monotonic()
        held = ns.hold(chain)
        assert node.holds() == 1
        if place == "mapped":
            assert held.expires_s == math.inf
            time.sleep(LEASE_MS / 1e3 + 0.3)
            assert node.holds() == 1
        else:
            assert began < held.expires_s < time.monotonic() + LEASE_MS / 1e3
            eventually(lambda: node.holds() == 0)
            assert time.monotonic() > began + 0.9 * LEASE_MS / 1e3
        held.close()
        assert fetched(ns, chain) == 5


def test_blocks_below_come_up_to_be_held(place: str, tmp_path: Path) -> None:
    """Written behind, pushed out of memory, and held again: what is not up in time is not promised."""
    node = NodeProcess(tmp_path, *FILES, memory="8MiB", address="127.0.0.1:0")
    with node, reached(node, place) as client:
        ns = client.namespace(layout())
        chain = stored(ns, 30)
        for seed in range(1, 40):
            other = ns.chain(tokens(8, seed=seed))
            ns.put(other, blocks_of(other))
            written_behind(node, 30 + 8 * seed, 8 << 20)
            if (ns.lookup(chain).tiers == 2).all():
                break
        assert ns.lookup(chain).tiers.tolist() == [2] * 30
        assert ns.hold(chain, wait_s=0).blocks == 0
        with ns.hold(chain, wait_s=10) as held:
            assert (held.blocks, held.tiers.tolist()) == (30, [2] * 30)
            for seed in range(50, 60):
                other = ns.chain(tokens(60, seed=seed))
                ns.put(other, blocks_of(other))
            assert (ns.lookup(chain).tiers == 1).all()
            assert fetched(ns, chain) == 30
