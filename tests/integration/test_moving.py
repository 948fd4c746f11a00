"""Blocks that move by transfers, as a node sees it: what leases and pulls hold, when they end, what strangers get."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import AsyncClient, Client, native
from kvstore.wire import framed, store
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually, layout, tokens
from transfer.batch import Batch
from transfer.errors import TransferError
from transfer.offers import Carrier, parse_offer
from transfer.tcp import TcpConfig, TcpTransport

LEASE_MS, SHORT_MS = 30_000, 700  # of those that a test waits for
LAPSE_MS = 5_000
BLOCKS = 6


@pytest.fixture
def node(tmp_path: Path) -> Iterator[NodeProcess]:
    with NodeProcess(tmp_path, *sets(LEASE_MS)) as node:
        yield node


def sets(lease_ms: int) -> tuple[str, ...]:
    return (
        f"limits.lease_ms_max={lease_ms}",
        f"limits.reserve_lapse_ms={LAPSE_MS}",
        f"limits.moving_bytes_max={8 * SIZE}",
    )


class Stranger:
    """A framed connection used by hand, and a TCP transport beside it."""

    def __init__(self, node: NodeProcess, *, by_tcp: bool = False) -> None:
        if by_tcp:
            host, _, port = node.facts["address"].rpartition(":")
            self.session = native.Session(host=host, port=int(port))
        else:
            self.session = native.Session(str(node.socket))
        self.number = 0  # of the last lease
        body = self.ask(
            store.METHOD_OPEN_NAMESPACE, store.OpenNamespaceRequest(layout=_layout_message(), tenant="default")
        )
        self.opened = store.OpenNamespaceResponse.FromString(body)
        self.transport = TcpTransport(TcpConfig(listens=False))

    def ask(self, method: int, message: object, within_s: float = 10.0) -> bytes:
        told = self.session.call(method, message.SerializeToString(), within_s)  # type: ignore[attr-defined]
        if told.status:
            raise Refused(f"{native.Status(told.status).name} {told.field}: {told.reason}")
        return told.body

    def address(self) -> str:
        offer = parse_offer(store.OfferResponse.FromString(self.ask(store.METHOD_OFFER, store.OfferRequest())).offer)
        (address,) = [route.address for route in offer.routes if route.address.startswith("tcp:")]
        return address

    async def connected(self) -> object:
        return await self.transport.connect(self.address(), deadline_s=5)

    def lease(self, chain: np.ndarray, carrier: int = Carrier.TCP, wait_ms: int = 0) -> framed.LeaseResponse:
        self.number += 1
        request = framed.LeaseRequest(
            namespace=self.opened.digest,
            chain=store.Chain(keys=chain.tobytes()),
            carrier=int(carrier),
            lease=self.number,
            wait_ms=wait_ms,
        )
        return framed.LeaseResponse.FromString(self.ask(store.METHOD_LEASE, request))

    async def pull(self, chain: np.ndarray, source: framed.Source, deadline_ms: int = 5_000) -> framed.PullResponse:
        request = framed.PullRequest(
            namespace=self.opened.digest,
            chain=store.Chain(keys=chain.tobytes()),
            source=source,
            deadline_ms=deadline_ms,
        )
        body = await asyncio.to_thread(self.ask, store.METHOD_PULL, request)
        return framed.PullResponse.FromString(body)

    async def source(self, data: np.ndarray) -> framed.Source:
        """One piece a block, all granted."""
        region = await self.transport.register(data, writable=False)
        grant = await self.transport.grant(region, [(0, data.nbytes)], lifetime_s=60)
        pieces = np.array([(0, i * SIZE, SIZE) for i in range(len(data))], "<i8")
        return framed.Source(
            carrier=int(Carrier.TCP),
            incarnation=self.transport.incarnation,
            descriptors=[grant.descriptor],
            pieces=pieces.tobytes(),
        )

    def hang_up(self) -> None:
        """The node is told when nothing of the session is left."""
        self.session.close()
        self.session = None  # type: ignore[assignment]

    async def close(self) -> None:
        if self.session is not None:
            self.hang_up()
        await self.transport.close()


class Refused(Exception):
    pass


def _layout_message() -> store.Layout:
    from kvstore.wire import convert

    return convert.layout_message(layout())


@pytest.fixture
async def stranger(node: NodeProcess) -> AsyncIterator[Stranger]:
    stranger = Stranger(node)
    try:
        yield stranger
    finally:
        await stranger.close()


@pytest.fixture
async def held(node: NodeProcess) -> AsyncIterator[np.ndarray]:
    """A chain whose blocks the node has."""
    async with AsyncClient(node.address) as client:
        ns = await client.namespace(layout())
        chain = ns.chain(tokens(BLOCKS))
        assert (await ns.put(chain, blocks_of(chain))).stored == BLOCKS
        yield chain


async def read(stranger: Stranger, way: object, lease: framed.LeaseResponse) -> np.ndarray:
    into = np.zeros((len(lease.offsets), SIZE), np.uint8)
    region = await stranger.transport.register(into)
    (shown,) = await way.present([lease.descriptor], deadline_s=5, fresh=True)  # type: ignore[attr-defined]
    table = [(region.id, i * SIZE, shown.handle, at, SIZE) for i, at in enumerate(lease.offsets)]
    await way.read(Batch(np.array(table, np.int64)), deadline_s=5)  # type: ignore[attr-defined]
    return into


async def test_a_lease_opens_its_blocks_until_it_is_released(
    node: NodeProcess, stranger: Stranger, held: np.ndarray
) -> None:
    way = await stranger.connected()
    lease = stranger.lease(held)
    assert node.holds() == 1
    assert np.array_equal(await read(stranger, way, lease), blocks_of(held))
    stranger.ask(store.METHOD_RELEASE, framed.ReleaseRequest(lease=stranger.number))
    eventually(lambda: node.holds() == 0)
    with pytest.raises(TransferError, match="revoked"):
        await read(stranger, way, lease)


async def test_a_lease_ends_by_itself(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, *sets(SHORT_MS)) as node, Client(node.address) as client:
        ns = client.namespace(layout())
        held = ns.chain(tokens(BLOCKS))
        assert ns.put(held, blocks_of(held)).stored == BLOCKS
        stranger = Stranger(node)
        way, began = await stranger.connected(), time.monotonic()
        lease = stranger.lease(held)
        eventually(lambda: node.holds() == 0)
        assert time.monotonic() - began > SHORT_MS / 1e3 * 0.9
        with pytest.raises(TransferError, match=r"expired|revoked"):
            await read(stranger, way, lease)
        await stranger.close()


async def test_a_lease_ends_with_its_connection(node: NodeProcess, stranger: Stranger, held: np.ndarray) -> None:
    way = await stranger.connected()
    lease = stranger.lease(held)
    stranger.hang_up()
    eventually(lambda: node.holds() == 0, within_s=LEASE_MS / 1e3 / 2)
    with pytest.raises(TransferError, match="revoked"):
        await read(stranger, way, lease)


async def test_a_lease_opens_nothing_beside_its_blocks(stranger: Stranger, held: np.ndarray) -> None:
    way = await stranger.connected()
    lease = stranger.lease(held[:2])
    assert len(lease.offsets) == 2
    others = framed.LeaseResponse()
    others.CopyFrom(lease)
    outside = [at for at in range(0, 16 << 20, SIZE) if at not in lease.offsets]
    others.offsets[:] = outside[:2]
    with pytest.raises(TransferError, match="out_of_bounds"):
        await read(stranger, way, others)


async def test_what_a_connection_may_have_leased_is_limited(stranger: Stranger, held: np.ndarray) -> None:
    first, number = stranger.lease(held), stranger.number
    second = stranger.lease(held)  # 8 blocks may be out, 6 are
    assert (len(first.offsets), len(second.offsets), second.window_full) == (6, 2, True)
    with pytest.raises(Refused, match="REJECTED moving_bytes_max"):
        stranger.lease(held)
    stranger.ask(store.METHOD_RELEASE, framed.ReleaseRequest(lease=number))
    assert len(stranger.lease(held).offsets) == 6


async def test_a_number_names_one_lease(stranger: Stranger, held: np.ndarray) -> None:
    stranger.lease(held[:1])
    stranger.number -= 1
    with pytest.raises(Refused, match="BAD_INPUT lease: 1 is the number of another one"):
        stranger.lease(held[:1])


async def test_leases_are_not_shared(node: NodeProcess, stranger: Stranger, held: np.ndarray) -> None:
    lease = stranger.lease(held)
    other = Stranger(node)
    other.ask(store.METHOD_RELEASE, framed.ReleaseRequest(lease=stranger.number, corrupt=list(lease.tickets)))
    assert node.holds() == 1 and node.tier()["sealed"] == BLOCKS
    await other.close()


async def test_a_block_told_corrupt_is_looked_at_and_kept_if_it_is_not(
    node: NodeProcess, stranger: Stranger, held: np.ndarray
) -> None:
    lease = stranger.lease(held)
    stranger.ask(store.METHOD_RELEASE, framed.ReleaseRequest(lease=stranger.number, corrupt=list(lease.tickets)))
    eventually(lambda: node.holds() == 0)
    assert len(stranger.lease(held).offsets) == BLOCKS


async def test_the_node_reads_what_is_put(node: NodeProcess, stranger: Stranger) -> None:
    await stranger.connected()
    chain = np.random.default_rng(1).integers(256, size=(3, 32), dtype=np.uint8)
    told = await stranger.pull(chain, await stranger.source(blocks_of(chain)))
    assert told.outcomes == bytes(3) and not told.failure
    way = await stranger.connected()
    assert np.array_equal(await read(stranger, way, stranger.lease(chain)), blocks_of(chain))
    again = await stranger.pull(chain, await stranger.source(blocks_of(chain)))
    assert again.outcomes == bytes((1, 1, 1))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: setattr(s, "carrier", 9), "source.carrier: 9"),
        (lambda s: setattr(s, "carrier", int(Carrier.LOCAL)), "no way back"),
        (lambda s: setattr(s, "pieces", b""), "source.pieces: 0 bytes"),
        (lambda s: setattr(s, "pieces", s.pieces[:-8]), "source.pieces"),
        (lambda s: setattr(s, "pieces", _pieces((7, 0, SIZE))), "beyond the 1 given"),
        (lambda s: setattr(s, "pieces", _pieces((0, 0, SIZE - 1))), f"add up to {SIZE}"),
        (lambda s: setattr(s, "pieces", _pieces((0, -5, SIZE))), "source.pieces"),
        (lambda s: setattr(s, "pieces", _pieces((0, 0, -1), (0, 0, SIZE + 1))), "source.pieces"),
        (lambda s: setattr(s, "pieces", _pieces((0, 0, 2**62), (0, 0, 2**62))), "source.pieces"),
    ],
)
async def test_a_source_that_makes_no_sense_is_refused_by_name(
    node: NodeProcess, stranger: Stranger, change: object, text: str
) -> None:
    await stranger.connected()
    chain = np.random.default_rng(2).integers(256, size=(1, 32), dtype=np.uint8)
    source = await stranger.source(blocks_of(chain))
    change(source)  # type: ignore[operator]
    with pytest.raises(Refused, match=f"BAD_INPUT.*{text}"):
        await stranger.pull(chain, source)
    assert node.tier()["reserved"] == 0


def _pieces(*rows: tuple[int, int, int]) -> bytes:
    return np.array(rows, "<i8").tobytes()


@pytest.mark.parametrize("what", ["revoked", "beyond", "forged", "nobody"])
async def test_what_cannot_be_read_is_not_stored(node: NodeProcess, stranger: Stranger, what: str) -> None:
    await stranger.connected()
    chain = np.random.default_rng(3).integers(256, size=(2, 32), dtype=np.uint8)
    data = blocks_of(chain)
    source = await stranger.source(data)
    match what:
        case "revoked":
            for grant in stranger.transport.book.all():
                await stranger.transport.revoke([grant])
        case "beyond":
            source.pieces = _pieces((0, 0, SIZE), (0, SIZE + 8, SIZE))
        case "forged":
            source.descriptors[0] = bytes((*source.descriptors[0][:-1], source.descriptors[0][-1] ^ 1))
        case "nobody":
            source.incarnation = bytes(16)
    told = await stranger.pull(chain, source, deadline_ms=500)
    assert told.outcomes == bytes((5, 5)) and told.failure
    assert (node.tier()["reserved"], node.tier()["sealed"]) == (0, 0)


async def test_a_pull_whose_client_is_gone_leaves_no_slot(node: NodeProcess, stranger: Stranger) -> None:
    chain = np.random.default_rng(4).integers(256, size=(2, 32), dtype=np.uint8)
    source = await stranger.source(blocks_of(chain))  # of a transport that never connects: the node waits for it
    waiting = asyncio.ensure_future(stranger.pull(chain, source, deadline_ms=60_000))
    while node.tier()["reserved"] == 0:
        await asyncio.sleep(0.01)
    stranger.hang_up()
    eventually(lambda: node.tier()["reserved"] == 0, within_s=LAPSE_MS / 1e3 / 2)
    with pytest.raises(Refused, match="UNAVAILABLE"):
        await waiting


async def test_a_way_back_outlives_the_connection_that_came_first(node: NodeProcess, stranger: Stranger) -> None:
    """A client whose connection was lost comes again, with the transport that it has."""
    await stranger.connected()
    again = Stranger(node)
    await again.transport.close()
    again.transport = stranger.transport
    chains = np.random.default_rng(7).integers(256, size=(4, 1, 32), dtype=np.uint8)
    for one, chain in ((stranger, chains[0]), (again, chains[1])):
        assert (await one.pull(chain, await one.source(blocks_of(chain)))).outcomes == bytes(1)
    lease = stranger.lease(chains[0])
    assert len(lease.offsets) == node.holds() == 1
    stranger.hang_up()
    eventually(lambda: node.holds() == 0)
    for chain in chains[2:]:
        told = await again.pull(chain, await again.source(blocks_of(chain)))
        assert told.outcomes == bytes(1), told.failure
        await asyncio.sleep(0.1)


async def test_a_pull_ends_before_its_slots_lapse(node: NodeProcess, stranger: Stranger) -> None:
    chain, began = np.random.default_rng(5).integers(256, size=(2, 32), dtype=np.uint8), time.monotonic()
    told = await stranger.pull(chain, await stranger.source(blocks_of(chain)), deadline_ms=60_000)
    assert told.outcomes == bytes((5, 5)) and time.monotonic() - began > LAPSE_MS / 1e3 / 2
    assert (node.tier()["reserved"], node.tier()["lapsed_reservations"]) == (0, 0)


async def test_an_unfilled_reservation_lapses(node: NodeProcess, stranger: Stranger) -> None:
    chain = np.random.default_rng(6).integers(256, size=(2, 32), dtype=np.uint8)
    request = framed.ReserveRequest(
        namespace=stranger.opened.digest, chain=store.Chain(keys=chain.tobytes()), reservation=7
    )
    told = framed.ReserveResponse.FromString(stranger.ask(store.METHOD_RESERVE, request))
    assert told.outcomes == bytes(2) and node.tier()["reserved"] == 2
    for method, message in (
        (store.METHOD_SEAL, framed.SealRequest(reservation=7)),
        (store.METHOD_PUBLISH, framed.PublishRequest(reservation=7)),
    ):
        with pytest.raises(Refused, match="part: 0 was not filled"):
            stranger.ask(method, message)
    eventually(lambda: node.tier()["reserved"] == 0)
    with pytest.raises(Refused, match="has lapsed"):
        stranger.ask(store.METHOD_SEAL, framed.SealRequest(reservation=7))


async def test_namespaces_of_others_are_not_told(stranger: Stranger, held: np.ndarray) -> None:
    request = framed.LeaseRequest(namespace=bytes(32), chain=store.Chain(keys=held.tobytes()), carrier=3)
    with pytest.raises(Refused, match="STALE_NAMESPACE"):
        stranger.ask(store.METHOD_LEASE, request)


async def test_two_connections_of_one_client_share_a_way_back(node: NodeProcess, stranger: Stranger) -> None:
    """The end of one does not end what the other puts."""
    await stranger.connected()
    rng = np.random.default_rng(8)
    first, second = (rng.integers(256, size=(2, 32), dtype=np.uint8) for _ in range(2))
    beside = Stranger(node)
    source = await stranger.source(blocks_of(first))
    assert (await beside.pull(first, source)).outcomes == bytes(2)
    assert (await stranger.pull(second, await stranger.source(blocks_of(second)))).outcomes == bytes(2)
    await beside.close()
    eventually(lambda: node.connections() == 1)
    third = rng.integers(256, size=(2, 32), dtype=np.uint8)
    told = await stranger.pull(third, await stranger.source(blocks_of(third)))
    assert told.outcomes == bytes(2), told.failure
