"""Control connections that are lost and come back, the way back over them, and links lost in the middle of a pull."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.rdma.rails import Rail
from transfer.base import Batch, Grant, Presented, Region
from transfer.errors import PeerUnreachable, Reason, TransferError, TransferFailed
from transfer.rails import RailConfig, RailState
from transfer.rdma import RdmaConfig, RdmaTransport
from transfer.rdma.config import parse_address
from transfer.rdma.endpoint import RdmaEndpoint
from transfer.testing.parties import Bytes, pairs, pattern

MIB = 1 << 20
SIZE = 8 * MIB
FOREVER_S = 60.0
CUTS_MAX = 5
SOON = RailConfig(pause_s=0.1, pause_s_max=1.0)
OWNER = RdmaConfig(devices=("rxe_b0", "rxe_b1"), rail=SOON)
READER = RdmaConfig(
    devices=("rxe_a0", "rxe_a1"), timeout=12, retries=3, slice_bytes=64 << 10, window=8, rail=SOON, reconnect_s=30.0
)


@dataclass(frozen=True, slots=True)
class Sides:
    """`connecting`: that which made the connection, whichever side it is."""

    owner: RdmaTransport
    reader: RdmaTransport
    connecting: RdmaEndpoint
    endpoint: RdmaEndpoint  # the reader's
    region: Region
    memory: Bytes
    granted: Region

    async def shown(self, offset: int, size: int) -> tuple[Grant, Presented]:
        grant = await self.owner.grant(self.granted, [(offset, size)], lifetime_s=60.0)
        (presented,) = await self.endpoint.present([grant.descriptor], deadline_s=10.0)
        return grant, presented

    def batch(self, presented: Presented, times: int = 1) -> Batch:
        return pairs(self.region, presented, [(0, 0, SIZE)] * times)

    async def cut(self) -> None:
        """The control connection, and nothing else, is lost."""
        link = self.connecting._link
        assert link is not None
        link.control._writer.transport.abort()
        await until(lambda: self.connecting._link is not link and self.endpoint._link is not link)


@asynccontextmanager
async def sides(way: str) -> AsyncIterator[Sides]:
    back = way == "back"
    owner = RdmaTransport(replace(OWNER, listens=not back))
    reader = RdmaTransport(replace(READER, listens=back))
    content, memory = pattern(SIZE, 1), np.zeros(SIZE, dtype=np.uint8)
    try:
        connecting, listening = (owner, reader) if back else (reader, owner)
        made = await connecting.connect(listening.address, deadline_s=10.0)
        endpoint = await reader.back(owner.incarnation, deadline_s=10.0) if back else made
        granted, region = await owner.register(content), await reader.register(memory)
        yield Sides(owner, reader, made, endpoint, region, memory, granted)
    finally:
        await reader.close()
        await owner.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(FOREVER_S):
        while not condition():
            await asyncio.sleep(0.02)


def both_ways(test: Callable[[Sides], Awaitable[None]]) -> Callable[[str], None]:
    @pytest.mark.parametrize("way", ["forth", "back"])
    def body(way: str) -> None:
        async def main() -> None:
            async with sides(way) as made:
                await test(made)

        asyncio.run(main())

    body.__name__, body.__doc__ = test.__name__, test.__doc__
    return body


@both_ways
async def test_a_lost_connection_comes_back_with_what_was_shown(made: Sides) -> None:
    _, presented = await made.shown(0, SIZE)
    gone, ended = await made.shown(0, SIZE)
    transfer = made.endpoint.read(made.batch(presented, 16), deadline_s=FOREVER_S)
    await asyncio.sleep(0.02)
    assert not transfer.done
    await made.cut()
    await made.owner.revoke([gone])
    with pytest.raises(TransferError) as caught:
        await asyncio.wait_for(asyncio.ensure_future(transfer), 10.0)
    assert {failure.reason for failure in caught.value.failures} <= {Reason.PEER_GONE, Reason.REVOKED}
    await until(lambda: made.endpoint._link is not None)
    made.memory[:] = 0
    await made.endpoint.read(made.batch(presented), deadline_s=FOREVER_S)
    assert (made.memory == pattern(SIZE, 1)).all()
    with pytest.raises(TransferFailed) as refused:
        await made.endpoint.read(made.batch(ended), deadline_s=FOREVER_S)
    assert {failure.reason for failure in refused.value.failures} == {Reason.REVOKED}
    _, anew = await made.shown(0, SIZE)
    await made.endpoint.read(made.batch(anew), deadline_s=FOREVER_S)


@both_ways
async def test_without_a_connection_the_answer_comes_at_once(made: Sides) -> None:
    _, presented = await made.shown(0, SIZE)
    other = await made.owner.grant(made.granted, [(0, 1)], lifetime_s=60.0)
    await (made.owner if made.connecting is made.endpoint else made.connecting).close()
    await until(lambda: made.endpoint._link is None)
    reading = asyncio.ensure_future(made.endpoint.read(made.batch(presented), deadline_s=3600.0))
    with pytest.raises(TransferFailed) as caught:
        await asyncio.wait_for(reading, 5.0)
    assert {failure.reason for failure in caught.value.failures} == {Reason.PEER_GONE}
    with pytest.raises(PeerUnreachable):
        await made.endpoint.present([other.descriptor], deadline_s=3600.0)


def test_who_connects_again_is_pulled_from_by_the_same_endpoint() -> None:
    async def main() -> None:
        async with sides("back") as made:
            grant, presented = await made.shown(0, SIZE)
            await made.connecting.close()
            await until(lambda: made.endpoint._link is None)
            with pytest.raises(PeerUnreachable):
                await made.reader.back(made.owner.incarnation, deadline_s=0.2)
            await made.owner.connect(made.reader.address, deadline_s=10.0)
            again = await made.reader.back(made.owner.incarnation, deadline_s=10.0)
            assert again is made.endpoint and again.incarnation == made.owner.incarnation
            await again.read(made.batch(presented), deadline_s=FOREVER_S)
            assert (made.memory == pattern(SIZE, 1)).all()
            assert (await again.present([grant.descriptor], deadline_s=10.0))[0] == presented
            await again.close()
            other = await made.reader.back(made.owner.incarnation, deadline_s=10.0)
            assert other is not again
            (anew,) = await other.present([grant.descriptor], deadline_s=10.0)
            made.memory[:] = 0
            await other.read(made.batch(anew), deadline_s=FOREVER_S)
            assert (made.memory == pattern(SIZE, 1)).all()

    asyncio.run(main())


def test_a_peer_that_starts_anew_is_another() -> None:
    async def main() -> None:
        reader, first = RdmaTransport(READER), RdmaTransport(OWNER)
        _, port = parse_address(first.address)
        second: RdmaTransport | None = None
        try:
            endpoint = await reader.connect(first.address, deadline_s=10.0)
            region = await first.register(pattern(4096, 1))
            grant = await first.grant(region, [(0, 4096)], lifetime_s=60.0)
            (presented,) = await endpoint.present([grant.descriptor], deadline_s=10.0)
            await first.close()
            second = RdmaTransport(replace(OWNER, port=port))
            await until(lambda: endpoint._seeking is not None and endpoint._seeking.done())
            assert endpoint._link is None
            local = await reader.register(np.zeros(4096, dtype=np.uint8))
            with pytest.raises(TransferFailed):
                await endpoint.read(pairs(local, presented, [(0, 0, 4096)]), deadline_s=FOREVER_S)
            assert (await reader.connect(second.address, deadline_s=10.0)).incarnation == second.incarnation
        finally:
            await reader.close()
            await first.close()
            if second is not None:
                await second.close()

    asyncio.run(main())


@both_ways
async def test_a_lost_link_in_the_middle(made: Sides) -> None:
    _, presented = await made.shown(0, SIZE)
    lanes = made.endpoint.lanes
    assert lanes is not None
    await until(lambda: lanes.up == 4)
    rail, again = Rail(0), 0
    for _ in range(CUTS_MAX):
        made.memory[:] = 0
        transfer = made.endpoint.read(made.batch(presented, 16), deadline_s=FOREVER_S)
        await asyncio.sleep(0.02)
        with rail.down(rail.far):
            await transfer
            assert (made.memory == pattern(SIZE, 1)).all()
            _, _, again, _ = made.reader.engine.stats()
            await until(lambda: made.endpoint.rails[0] is not RailState.OK)
        await until(lambda: made.endpoint.rails == [RailState.OK, RailState.OK])
        if again:  # else nothing was out over that link in the moment of the cut
            break
    assert again > 0, "each cut came too late to matter"
