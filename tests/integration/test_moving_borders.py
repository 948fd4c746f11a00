"""What a peer that maps nothing may not do with what is another's, and what it costs the node to be slow: nothing.

As test_door_borders.py, for blocks that move by transfers. `test_moving.py` has what leases and pulls are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from kvstore.wire import framed, store
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.test_moving import Refused, Stranger
from transfer.batch import Batch
from transfer.errors import TransferError
from transfer.offers import Carrier

KIB = 1 << 10
LEASE_MS = 3_000
LAPSE_MS = 4_000
LIMIT = 192  # blocks that one connection may have under way: more than sockets and buffers keep
LEAF = 4_096


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    sets = (
        f"limits.lease_ms_max={LEASE_MS}",
        f"limits.reserve_lapse_ms={LAPSE_MS}",
        f"limits.moving_bytes_max={LIMIT * SIZE}",
        "limits.window_bytes=1GiB",
    )
    with NodeProcess(tmp_path, *sets, memory="64MiB", address="127.0.0.1:0") as node:
        yield node


@pytest.fixture
async def stranger(node: NodeProcess) -> AsyncIterator[Stranger]:
    """By TCP, unknown: it has the tenant `default` and no other."""
    stranger = Stranger(node, by_tcp=True)
    try:
        yield stranger
    finally:
        await stranger.close()


@pytest.fixture
def near(node: NodeProcess) -> Iterator[Client]:
    """Of the node's own user."""
    with Client(node.address, deadline_s=20) as client:
        yield client


def chain_of(blocks: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(blocks, 32), dtype=np.uint8)


# ---- what is another's ----------------------------------------------------------------------------------------------


async def test_another_tenants_namespace_is_as_one_that_is_not_there(
    node: NodeProcess, stranger: Stranger, near: Client
) -> None:
    ns = near.namespace(layout(), tenant="acme")
    chain = ns.chain(tokens(3))
    assert ns.put(chain, blocks_of(chain)).stored == 3
    source = await stranger.source(blocks_of(chain))
    told = []
    for digest in (ns.digest, bytes(32)):
        named = {"namespace": digest, "chain": store.Chain(keys=chain.tobytes())}
        for method, request in (
            (store.METHOD_LEASE, framed.LeaseRequest(**named, carrier=int(Carrier.TCP), lease=1)),
            (store.METHOD_PULL, framed.PullRequest(**named, source=source, deadline_ms=1_000)),
            (store.METHOD_RESERVE, framed.ReserveRequest(**named, reservation=1)),
        ):
            with pytest.raises(Refused, match="STALE_NAMESPACE") as refused:
                stranger.ask(method, request)
            told.append(str(refused.value))
    assert told[:3] == told[3:]
    assert node.holds() == 0 and (node.tier()["sealed"], node.tier()["reserved"]) == (3, 0)


async def test_a_reservation_is_its_connections(node: NodeProcess, stranger: Stranger) -> None:
    chain = chain_of(2, 1)
    request = framed.ReserveRequest(
        namespace=stranger.opened.digest, chain=store.Chain(keys=chain.tobytes()), reservation=7
    )
    stranger.ask(store.METHOD_RESERVE, request)
    other = Stranger(node, by_tcp=True)
    try:
        for method, message in (
            (store.METHOD_FILL, framed.FillRequest(reservation=7, source=await other.source(blocks_of(chain)))),
            (store.METHOD_PUBLISH, framed.PublishRequest(reservation=7)),
            (store.METHOD_SEAL, framed.SealRequest(reservation=7)),
        ):
            with pytest.raises(Refused, match=r"BAD_INPUT reservation: 7 .* none of this connection's"):
                other.ask(method, message)
        other.ask(store.METHOD_ABORT, framed.AbortRequest(reservation=7))
        assert node.tier()["reserved"] == 2
        stranger.ask(store.METHOD_ABORT, framed.AbortRequest(reservation=7))
        assert node.tier()["reserved"] == 0
    finally:
        await other.close()


async def test_what_a_connection_puts_is_limited_together_with_what_it_leases(
    node: NodeProcess, stranger: Stranger, near: Client
) -> None:
    ns = near.namespace(layout())
    held = ns.chain(tokens(LIMIT - 1))
    ns.put(held, blocks_of(held))
    await stranger.connected()
    lease = stranger.lease(held)
    assert len(lease.offsets) == LIMIT - 1
    chain = chain_of(2, 2)
    source = await stranger.source(blocks_of(chain))
    reserve = framed.ReserveRequest(
        namespace=stranger.opened.digest, chain=store.Chain(keys=chain.tobytes()), reservation=1
    )
    with pytest.raises(Refused, match="REJECTED moving_bytes_max"):
        await stranger.pull(chain, source)
    with pytest.raises(Refused, match="REJECTED moving_bytes_max"):
        stranger.ask(store.METHOD_RESERVE, reserve)
    assert node.tier()["reserved"] == 0
    stranger.ask(store.METHOD_RELEASE, framed.ReleaseRequest(lease=stranger.number))
    assert (await stranger.pull(chain, source)).outcomes == bytes(2)


# ---- peers that are slow --------------------------------------------------------------------------------------------


class Gate:
    """Between a peer's transport and the node's: after so many bytes one direction passes nothing until opened."""

    def __init__(self, address: str, *, of_the_node: bool, passes: int) -> None:
        self._host, _, port = address.removeprefix("tcp://").rpartition(":")
        self._port, self._of_the_node, self._passes = int(port), of_the_node, passes
        self.opened, self.reached = asyncio.Event(), asyncio.Event()
        self._server: asyncio.Server
        self._lanes: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, limit=64 * KIB)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._host, self._port, limit=64 * KIB)
        ways = self._pump(reader, back, gated=not self._of_the_node), self._pump(there, writer, gated=self._of_the_node)
        self._lanes |= {asyncio.create_task(way) for way in ways}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, gated: bool) -> None:
        passed = 0
        try:
            while data := await reader.read(64 * KIB):
                passed += len(data)
                if gated and passed > self._passes:
                    self.reached.set()
                    await self.opened.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async def close(self) -> None:
        self._server.close()
        for lane in self._lanes:
            lane.cancel()
        await asyncio.gather(*self._lanes, return_exceptions=True)
        await asyncio.sleep(0)  # what was aborted is closed with the next turn


@contextlib.asynccontextmanager
async def slow(stranger: Stranger, *, reader: bool) -> AsyncIterator[tuple[Gate, object]]:
    """The gate, and a way to the node that leads through it."""
    gate = Gate(stranger.address(), of_the_node=reader, passes=256 * KIB)
    try:
        yield gate, await stranger.transport.connect(await gate.start(), deadline_s=5)
    finally:
        await gate.close()


def fill(client: Client) -> None:
    """Others need the room, all of it."""
    ns = client.namespace(layout("others"))
    for seed in range(8):
        chain = ns.chain(tokens(128, 1 + seed))
        ns.put(chain, np.full((128, SIZE), 0xEE, np.uint8))


async def test_a_slow_reader_neither_keeps_what_it_leased_nor_gets_what_came_after(
    node: NodeProcess, stranger: Stranger, near: Client
) -> None:
    ns = near.namespace(layout())
    chain = ns.chain(tokens(LIMIT))
    expected, into = blocks_of(chain), np.zeros((LIMIT, SIZE), np.uint8)
    ns.put(chain, expected)
    async with slow(stranger, reader=True) as (gate, way):
        lease = stranger.lease(chain)
        assert len(lease.offsets) == LIMIT
        region = await stranger.transport.register(into)
        (shown,) = await way.present([lease.descriptor], deadline_s=5, fresh=True)  # type: ignore[attr-defined]
        table = [(region.id, i * SIZE, shown.handle, at, SIZE) for i, at in enumerate(lease.offsets)]
        reading = asyncio.ensure_future(way.read(Batch(np.array(table, np.int64)), deadline_s=20))  # type: ignore[attr-defined]
        await gate.reached.wait()
        await asyncio.to_thread(eventually, lambda: node.holds() == 0)
        await asyncio.to_thread(fill, near)
        assert ns.lookup(chain).blocks == 0, "its slots have others' blocks now"
        gate.opened.set()
        with contextlib.suppress(TransferError):  # expired, or all of it was on its way when the lease ended
            await reading
    leaves, right = into.reshape(-1, LEAF), expected.reshape(-1, LEAF)
    came = (leaves == right).all(axis=1)
    assert came.any() and not leaves[~came].any(), "its own bytes or none"


async def test_a_slow_writer_keeps_no_slot_and_its_late_bytes_land_nowhere(
    node: NodeProcess, stranger: Stranger, near: Client
) -> None:
    chain = chain_of(LIMIT, 3)
    async with slow(stranger, reader=False) as (gate, _):
        pulling = asyncio.ensure_future(stranger.pull(chain, await stranger.source(blocks_of(chain)), 60_000))
        await gate.reached.wait()
        assert node.tier()["reserved"] == LIMIT
        told = await pulling
        assert LIMIT / 2 < told.outcomes.count(5) <= LIMIT and told.failure
        await asyncio.to_thread(eventually, lambda: (node.tier()["reserved"], node.tier()["retired"]) == (0, 0))
        await asyncio.to_thread(fill, near)
        gate.opened.set()
        await asyncio.sleep(0.3)  # what it had sent comes now
    ns, into = near.namespace(layout("others")), np.zeros((128, SIZE), np.uint8)
    there = 0
    for seed in range(8):
        others = ns.chain(tokens(128, 1 + seed))
        got = ns.get(others, into)
        assert (into[: got.blocks] == 0xEE).all() and got.blocks == ns.lookup(others).blocks
        there += got.blocks
    assert there >= LIMIT
