"""Real transports joined by the best path there is, and what is told where it is not the best."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np
import pytest

from transfer.base import Batch, Extent, Rights, Transport
from transfer.errors import PeerUnreachable, TransferCancelled, TransferError, TransferFailed
from transfer.local import LocalTransport
from transfer.native import MappedSegment
from transfer.offers import Carrier, Home, Lack, Offer, Route, home_of, parse_offer
from transfer.paths import Connection, Connector, Path
from transfer.tcp import TcpTransport
from transfer.testing.loop import run_virtual
from transfer.testing.parties import OwnerProcess, pattern
from transfer.testing.simulated import SimulatedNetwork, SimulatedTransport

SIZE = 1 << 20
NO_RDMA = (Lack(Carrier.RDMA, "pyverbs missing"),)


@dataclass
class Side:
    """A process with both transports, memory, and what it offers."""

    local: LocalTransport
    tcp: TcpTransport
    connector: Connector

    def of(self, path: Path) -> Transport:
        return self.local if path.carrier is Carrier.LOCAL else self.tcp

    async def descriptor(self, path: Path, rights: Rights = Rights.READ) -> bytes:
        segment = MappedSegment.create(SIZE, name="paths")
        segment.writable_array(0, SIZE)[:] = pattern(SIZE, 1)
        region = await self.of(path).register(segment)
        return (await self.of(path).grant(region, [(0, SIZE)], rights=rights, lifetime_s=60.0)).descriptor


@asynccontextmanager
async def side() -> AsyncIterator[Side]:
    local, tcp = LocalTransport(), TcpTransport()
    home = home_of()
    offer = Offer(
        home,
        (Route(Carrier.LOCAL, local.address), Route(Carrier.TCP, tcp.address)),
        lacks=NO_RDMA,
        trusted_uids=(home.uid,),
    )
    try:
        yield Side(local, tcp, Connector({Carrier.LOCAL: local, Carrier.TCP: tcp}, offer))
    finally:
        await local.close()
        await tcp.close()


async def moved(here: Side, there: Side, connection: Connection) -> None:
    """Reads all of the peer's memory over the connection."""
    memory = np.zeros(SIZE, dtype=np.uint8)
    region = await connection.transport.register(memory)
    (presented,) = await connection.present([await there.descriptor(connection.chosen.path)], deadline_s=10.0)
    batch = Batch.of([(Extent(region.id, 0, SIZE), presented.extent(0, SIZE))])
    landed = await connection.read(batch, deadline_s=10.0)
    assert landed.bytes == SIZE and (memory == pattern(SIZE, 1)).all()
    await connection.transport.deregister(region)


def neighbour(offer: Offer) -> Offer:
    """The same offer, as another process of this host would make it."""
    return replace(offer, home=replace(offer.home, pid=offer.home.pid + 1))


async def test_two_transports_of_one_process() -> None:
    async with side() as here, side() as there:
        offer = parse_offer(there.connector.offer.encode())
        connection = await here.connector.connect(offer, deadline_s=10.0)
        assert connection.chosen.path is Path.PROCESS and connection.chosen.reasons == ()
        await moved(here, there, connection)
        counts = here.connector.counts[Path.PROCESS]
        assert (counts.endpoints, counts.connects, counts.bytes_read, counts.bytes_written) == (1, 1, SIZE, 0)
        await connection.close()
        await connection.close()
        assert (counts.endpoints, counts.connects) == (0, 1)


async def test_a_neighbour_by_shared_memory_and_a_stranger_by_tcp() -> None:
    async with side() as here, side() as there:
        offer = neighbour(there.connector.offer)
        connection = await here.connector.connect(offer, deadline_s=10.0)
        assert str(connection.chosen) == "host; not process: another process"
        await moved(here, there, connection)
        stranger = replace(offer, trusted_uids=(offer.home.uid + 1,))
        slow = await here.connector.connect(stranger, deadline_s=10.0)
        assert slow.chosen.path is Path.TCP
        reasons = dict(slow.chosen.reasons)
        assert list(reasons) == [Path.PROCESS, Path.HOST, Path.RDMA]
        assert "not the same user" in reasons[Path.HOST] and reasons[Path.RDMA] == "no rdma here: pyverbs missing"
        await moved(here, there, slow)
        assert here.connector.counts[Path.TCP].bytes_read == here.connector.counts[Path.HOST].bytes_read == SIZE


async def test_two_processes_of_this_host() -> None:
    owner = await OwnerProcess.start("local")
    try:
        async with side() as here:
            routes = (Route(Carrier.LOCAL, owner.address),)
            there = replace(neighbour(here.connector.offer), routes=routes)
            connection = await here.connector.connect(there, deadline_s=10.0)
            assert connection.chosen.path is Path.HOST
            await owner.memory("m", SIZE, seed=1)
            shown = await owner.grant("m", [(0, SIZE)], rights=Rights.READ, lifetime_s=60.0)
            assert len(await connection.present([shown], deadline_s=10.0)) == 1
            await connection.close()
    finally:
        await owner.close()


async def test_a_way_that_fails_is_a_reason_and_the_next_is_taken() -> None:
    async with side() as here, side() as there:
        gone = Route(Carrier.LOCAL, "unix:/nowhere/at/all.sock")
        odd = Route(Carrier.TCP, "tcp://no-port")
        with socket.create_server(("127.0.0.1", 0)) as server:
            closed = Route(Carrier.TCP, f"tcp://127.0.0.1:{server.getsockname()[1]}")
        offer = neighbour(there.connector.offer)
        offer = replace(offer, routes=(gone, closed, odd, offer.routes[1]))
        connection = await here.connector.connect(offer, deadline_s=10.0)
        assert (connection.chosen.path, connection.chosen.address) == (Path.TCP, there.tcp.address)
        assert "/nowhere" in dict(connection.chosen.reasons)[Path.HOST]
        assert here.connector.counts[Path.HOST].refusals == 1 and here.connector.counts[Path.TCP].refusals == 2
        await moved(here, there, connection)
        with pytest.raises(PeerUnreachable) as caught:
            await here.connector.connect(replace(offer, routes=(gone, closed, odd)), deadline_s=10.0)
        for word in ("process: another process", "/nowhere", "no rdma here", closed.address, "no-port"):
            assert word in str(caught.value)


async def test_what_landed_is_counted_and_nothing_else() -> None:
    async with side() as here, side() as there:
        connection = await here.connector.connect(neighbour(there.connector.offer), deadline_s=10.0)
        counts = here.connector.counts[Path.HOST]
        both = Rights.READ | Rights.WRITE
        (presented,) = await connection.present([await there.descriptor(Path.HOST, both)], deadline_s=10.0)
        region = await here.local.register(np.zeros(SIZE, dtype=np.uint8))
        batch = Batch.of([(Extent(region.id, 0, 1000), presented.extent(0, 1000))])
        write = connection.write(batch, deadline_s=10.0)
        await write
        assert write.done and (await write).bytes == 1000
        assert (counts.bytes_read, counts.bytes_written) == (0, 1000)
        beyond = Batch.of([(Extent(region.id, 0, 10), presented.extent(SIZE - 5, 10))])
        with pytest.raises(TransferFailed):
            await connection.read(beyond, deadline_s=10.0)
        assert counts.bytes_read == 0


async def test_a_cancelled_transfer_is_cancelled_behind_the_counter() -> None:
    async with side() as here, side() as there:
        connection = await here.connector.connect(neighbour(there.connector.offer), deadline_s=10.0)
        (presented,) = await connection.present([await there.descriptor(Path.HOST)], deadline_s=10.0)
        memory = np.zeros(SIZE, dtype=np.uint8)
        region = await here.local.register(memory)
        batch = Batch.of([(Extent(region.id, 0, SIZE), presented.extent(0, SIZE))] * 200)
        counts, arrived, cancelled = here.connector.counts[Path.HOST], 0, 0
        for _ in range(4):
            transfer = connection.read(batch, deadline_s=10.0)
            transfer.cancel()
            try:
                arrived += (await transfer).bytes
            except TransferError as error:
                assert isinstance(error, TransferCancelled)
                arrived += int(error.arrived.sum()) * SIZE
                cancelled += 1
            assert counts.bytes_read == arrived
        assert cancelled, "no batch was long enough to be cancelled"
        task = asyncio.ensure_future(_awaited(connection, batch))
        await asyncio.sleep(0.001)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        memory[:] = 0xA5
        await asyncio.sleep(0.03)
        assert (memory == 0xA5).all(), "bytes landed after the task had ended"


async def _awaited(connection: Connection, batch: Batch) -> None:
    await connection.read(batch, deadline_s=10.0)


def test_a_way_that_hangs_leaves_time_for_the_next() -> None:
    async def main() -> None:
        network = SimulatedNetwork(1)
        here, fast, slow = (SimulatedTransport(network, name) for name in ("here", "fast", "slow"))
        network.cut("here", "fast")
        elsewhere = Offer(Home(b"c" * 16), (Route(Carrier.RDMA, "fast"), Route(Carrier.TCP, "slow")))
        connector = Connector({Carrier.RDMA: here, Carrier.TCP: here}, Offer(Home(b"b" * 16)))
        loop = asyncio.get_running_loop()
        connection = await connector.connect(elsewhere, deadline_s=4.0)
        assert connection.chosen.path is Path.TCP and 2.0 <= loop.time() < 2.1
        assert "did not answer" in dict(connection.chosen.reasons)[Path.RDMA]
        network.cut("here", "slow")
        with pytest.raises(PeerUnreachable, match=r"rdma: fast did not answer.*tcp: slow did not answer"):
            await connector.connect(elsewhere, deadline_s=4.0)
        assert 6.0 <= loop.time() < 6.2
        network.heal("here", "fast")
        assert (await connector.connect(elsewhere, deadline_s=4.0)).chosen.path is Path.RDMA
        for transport in (here, fast, slow):
            await transport.close()

    run_virtual(main)
