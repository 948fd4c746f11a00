"""Lanes of the TCP transport: a cut one costs time only and comes back; a peer that starts anew is another one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import pytest

from transfer.base import Landed, Rights
from transfer.errors import GrantInvalid, PeerUnreachable, Reason, TransferFailed, TransferLate
from transfer.tcp import TcpConfig, TcpEndpoint, TcpTransport
from transfer.tcp.config import parse_address
from transfer.testing.parties import OwnerHere, Pair, pairs, pattern

MIB = 1 << 20
SIZE = 32 * MIB


class Proxy:
    """Between an endpoint and its peer, a pair of sockets a lane, so that single lanes can be cut."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self.lanes: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self.hold_after = 0  # bytes from the peer, then a lane passes nothing on; 0: never
        self.passing = asyncio.Event()  # while it is not set, no lane passes anything on
        self.passing.set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._lane, "127.0.0.1", 0, limit=4 * MIB)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _lane(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port, limit=4 * MIB)
        self.lanes.append((writer, back))
        await asyncio.gather(self._pump(reader, back, 0), self._pump(there, writer, self.hold_after))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hold_after: int) -> None:
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(MIB):
                await self.passing.wait()
                writer.write(data)
                await writer.drain()
                passed += len(data)
                if hold_after and passed >= hold_after:
                    await reader.read()  # until the lane is cut
                    break
        writer.close()

    def cut(self, index: int) -> None:
        """At once, with what is under way."""
        for writer in self.lanes[index]:
            writer.transport.abort()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for index in range(len(self.lanes)):
            self.cut(index)


@asynccontextmanager
async def proxied(lanes: int, hold_after: int = 0) -> AsyncIterator[tuple[Pair, Proxy, TcpEndpoint]]:
    owner = OwnerHere(TcpTransport(), lambda size: (memory := np.zeros(size, np.uint8), memory))
    proxy = Proxy(parse_address(owner.address)[1])
    proxy.hold_after = hold_after
    reader = TcpTransport(TcpConfig(lanes=lanes, listens=False, reconnect_s=30.0))
    try:
        endpoint = await reader.connect(await proxy.start(), deadline_s=10.0)
        yield Pair(owner, reader, endpoint), proxy, endpoint
    finally:
        await reader.close()
        await owner.close()
        await proxy.close()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20.0):
        while not holds():
            await asyncio.sleep(0.01)


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def body() -> None:
        await main()

    asyncio.run(body())


def test_a_batch_survives_a_lane() -> None:
    async def main() -> None:
        async with proxied(3) as (pair, proxy, endpoint):
            await pair.owner.memory("m", SIZE, seed=1)
            region, memory = await pair.memory(SIZE)
            presented, _ = await pair.shown("m", [(0, SIZE)])
            for lane in range(3):
                # All lanes that were cut before have come back, however long that took: only the last one ends a batch.
                await until(lambda lane=lane: endpoint.lanes == 3 and len(proxy.lanes) == 3 + lane)
                memory[:] = 0
                batch = pairs(region, presented, [(i * MIB, i * MIB, MIB) for i in range(SIZE // MIB)])
                transfer = endpoint.read(batch, deadline_s=60.0, parts=[MIB] * (SIZE // MIB))
                await until(lambda: bool(memory.any()))  # it has begun
                proxy.cut(lane)
                landed = await transfer
                assert landed.bytes == SIZE
                assert (memory == pattern(SIZE, 1)).all()
            await until(lambda: endpoint.lanes == 3)  # and they come back
            await endpoint.read(pairs(region, presented, [(0, 0, SIZE)]), deadline_s=60.0)

    run(main)


def test_the_last_lane_ends_what_is_out_and_grants_outlive_it() -> None:
    async def main() -> None:
        async with proxied(1, hold_after=4 * MIB) as (pair, proxy, endpoint):
            await pair.owner.memory("m", SIZE, seed=2)
            region, memory = await pair.memory(SIZE)
            presented, _ = await pair.shown("m", [(0, SIZE)])
            batch = pairs(region, presented, [(0, 0, SIZE)])
            transfer = endpoint.read(batch, deadline_s=60.0)
            await until(lambda: bool(memory.any()))
            proxy.hold_after = 0
            proxy.cut(0)
            with pytest.raises(TransferFailed) as caught:
                await transfer
            assert {failure.reason for failure in caught.value.failures} == {Reason.PEER_GONE}
            assert caught.value.elsewhere
            memory[:] = 0xA5
            await until(lambda: endpoint.lanes == 1)
            assert (memory == 0xA5).all()
            await endpoint.read(batch, deadline_s=60.0)
            assert (memory == pattern(SIZE, 2)).all()

    run(main)


def test_a_peer_that_has_started_anew_is_another_one() -> None:
    async def main() -> None:
        first = OwnerHere(TcpTransport(), lambda size: (memory := np.zeros(size, np.uint8), memory))
        reader = TcpTransport(TcpConfig(lanes=2, listens=False))
        endpoint = await reader.connect(first.address, deadline_s=10.0)
        await first.memory("m", MIB, seed=1)
        descriptor = await first.grant("m", [(0, MIB)], rights=Rights.READ, lifetime_s=60.0)
        (presented,) = await endpoint.present([descriptor], deadline_s=10.0)
        port = parse_address(first.address)[1]
        await first.close()
        second = TcpTransport(TcpConfig(port=port))
        await asyncio.sleep(0.5)  # it is found, and found to be another
        assert endpoint.lanes == 0
        region = await reader.register(np.zeros(MIB, np.uint8))
        with pytest.raises(TransferFailed):
            await endpoint.read(pairs(region, presented, [(0, 0, MIB)]), deadline_s=5.0)
        anew = await reader.connect(second.address, deadline_s=10.0)
        with pytest.raises(GrantInvalid):
            await anew.present([descriptor], deadline_s=5.0)
        await reader.close()
        await second.close()

    run(main)


def test_who_refuses_costs_one_deadline() -> None:
    async def main() -> None:
        reader = TcpTransport(TcpConfig(listens=False))
        nobody = TcpTransport()
        await nobody.close()
        with pytest.raises(PeerUnreachable, match=r"(?i)refused"):
            await reader.connect(nobody.address, deadline_s=5.0)
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(PeerUnreachable, match="in time"):
            await reader.connect(f"tcp://127.0.0.1:{silent.getsockname()[1]}", deadline_s=0.3)
        await reader.close()

    run(main)


def test_reads_in_the_calling_thread() -> None:
    async def main() -> None:
        async with proxied(2) as (pair, proxy, endpoint):
            await pair.owner.memory("m", SIZE, seed=3)
            region, memory = await pair.memory(SIZE)
            presented, _ = await pair.shown("m", [(0, SIZE)])
            loop = asyncio.get_running_loop()
            for size in (1, 4096, 100_000, 5 * MIB):
                batch = pairs(region, presented, [(7, 3, size)])
                # In a thread, since the proxy lives on this loop.
                landed = await loop.run_in_executor(
                    None, lambda batch=batch, size=size: endpoint.read_now(batch, deadline_s=20.0, parts=[size])
                )
                assert landed.bytes == size and len(landed.checksums) == 1
                assert (memory[7 : 7 + size] == pattern(SIZE, 3)[3 : 3 + size]).all()
            batch = pairs(region, presented, [(0, 0, SIZE)])
            proxy.passing.clear()
            with pytest.raises(Exception, match="late"):
                await loop.run_in_executor(None, lambda: endpoint.read_now(batch, deadline_s=0.1))
            proxy.passing.set()
            memory[:] = 0xA5
            await asyncio.sleep(0.1)
            assert (memory == 0xA5).all()

    run(main)


def test_reads_at_once_by_a_grant_that_was_never_presented() -> None:
    async def main() -> None:
        async with proxied(2) as (pair, proxy, endpoint):
            owner = pair.owner
            await owner.memory("m", SIZE, seed=3)
            descriptor = await owner.grant("m", [(0, MIB)], rights=Rights.READ, lifetime_s=60.0)
            loop, memory = asyncio.get_running_loop(), np.zeros(MIB, np.uint8)
            at, half = int(memory.ctypes.data), MIB // 2

            async def read(rows: list[tuple[int, int, int]], deadline_s: float = 20.0) -> Landed:
                table = np.array([(span, offset, 0, remote, 4096) for span, offset, remote in rows], np.int64)
                spans, parts = [(at, half), (at + half, half)], [4096] * len(rows)
                ask = partial(endpoint.read_at_once, descriptor, spans, table, deadline_s=deadline_s, parts=parts)
                return await loop.run_in_executor(None, ask)

            landed = await read([(0, 5, 9), (1, 0, 5000)])
            assert landed.bytes == 8192 and len(landed.checksums) == 2
            assert (memory[5:4101] == pattern(SIZE, 3)[9:4105]).all()
            assert (memory[half : half + 4096] == pattern(SIZE, 3)[5000:9096]).all()
            with pytest.raises(ValueError, match="out of bounds"):
                await read([(0, half - 1, 0)])
            with pytest.raises(TransferFailed, match="out_of_bounds"):
                await read([(0, 0, MIB)])
            proxy.passing.clear()
            with pytest.raises(TransferLate):
                await read([(0, 0, 0)] * 64, deadline_s=0.1)
            proxy.passing.set()
            await owner.revoke(descriptor)
            with pytest.raises(TransferFailed, match="revoked"):
                await read([(0, 0, 0)])
            memory[:] = 0xA5
            await asyncio.sleep(0.1)
            assert (memory == 0xA5).all()
            with pytest.raises(GrantInvalid, match="of another peer"):
                others = descriptor[:8] + bytes(16) + descriptor[24:]
                endpoint.read_at_once(others, [(at, 1)], np.zeros((1, 5), np.int64), deadline_s=1.0)
            await endpoint.close()
            with pytest.raises(TransferFailed, match="peer_gone"):
                await read([(0, 0, 0)])

    run(main)


def test_a_way_back_that_nobody_comes_back_to_ends() -> None:
    """By time, and by number where there are as many as connections may come in."""

    async def main() -> None:
        node = TcpTransport(TcpConfig(reconnect_s=3.0, connections_max=3))

        async def visit(client: TcpTransport) -> TcpEndpoint:
            there = await client.connect(node.address, deadline_s=10.0)
            back = await node.back(client.incarnation, deadline_s=10.0)
            assert back.lanes == 1 and not back.closing
            await there.close()
            await until(lambda: back.lanes == 0)
            return back

        clients = [TcpTransport(TcpConfig(listens=False, lanes=1)) for _ in range(5)]
        first = await visit(clients[0])
        assert await visit(clients[0]) is first, "it came back in time"
        rest = [await visit(client) for client in clients[1:]]
        assert [back.closing for back in (first, *rest)] == [True, True, False, False, False]
        await until(lambda: all(back.closing for back in rest))
        assert await visit(clients[4]) is not rest[-1]
        for one in (*clients, node):
            await one.close()

    run(main)


def test_the_way_back_to_who_connected() -> None:
    """It is there while a lane is, is the same for all who ask, and closing it leaves the peer's own connections."""

    async def main() -> None:
        node, client = TcpTransport(), TcpTransport(TcpConfig(listens=False, lanes=2))
        with pytest.raises(PeerUnreachable, match="no connection"):
            await node.back(client.incarnation, deadline_s=0.05)
        waiting = asyncio.ensure_future(node.back(client.incarnation, deadline_s=10.0))
        there = await client.connect(node.address, deadline_s=10.0)
        back = await waiting
        assert await node.back(client.incarnation, deadline_s=1.0) is back
        assert there.incarnation == node.incarnation and back.incarnation == client.incarnation
        await until(lambda: back.lanes == 2)
        given = await client.register(pattern(MIB, 4))
        grant = await client.grant(given, [(0, MIB)], lifetime_s=60.0)
        (presented,) = await back.present([grant.descriptor], deadline_s=10.0)
        content = np.zeros(MIB, np.uint8)
        into = await node.register(content)
        await back.read(pairs(into, presented, [(0, 0, MIB)]), deadline_s=10.0)
        assert (content == pattern(MIB, 4)).all()
        await back.close()
        assert there.lanes == 2
        again = await node.back(client.incarnation, deadline_s=1.0)
        assert again is not back and again.lanes == 2
        moving = again.read(
            pairs(into, (await again.present([grant.descriptor], deadline_s=10.0))[0], [(0, 0, MIB)]), deadline_s=10.0
        )
        closing = asyncio.ensure_future(again.close())
        await asyncio.sleep(0)
        assert again.closing
        last = again
        again = await node.back(client.incarnation, deadline_s=1.0)
        assert again is not last and again.lanes == 2, "who comes while it closes has another"
        await closing
        assert moving.done
        (presented,) = await again.present([grant.descriptor], deadline_s=10.0)
        await again.read(pairs(into, presented, [(0, 0, MIB)]), deadline_s=10.0)
        await there.close()
        await until(lambda: again.lanes == 0)
        grant = await client.grant(given, [(0, 1)], lifetime_s=60.0)
        with pytest.raises(PeerUnreachable):
            await again.present([grant.descriptor], deadline_s=1.0)
        await client.close()
        await node.close()

    run(main)
