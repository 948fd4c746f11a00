"""What a caller's memory costs a transport: made ready for transfers where bytes land, and where lent, only granted."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kvstore.client.buffers import Memory, Places
from kvstore.client.ways import Ways
from kvstore.config import TransferConfig
from kvstore.errors import Unavailable
from transfer.base import Region
from transfer.errors import PeerUnreachable
from transfer.offers import Carrier
from transfer.tcp import TcpConfig, TcpTransport

SIZE = 4096


class Transport(TcpTransport):
    """Told apart: what is registered for its own transfers, and what is only lent."""

    def __init__(self) -> None:
        super().__init__(TcpConfig(listens=False))
        self.own: list[object] = []
        self.lent: list[object] = []

    async def register(self, memory: object, **named: object) -> Region:  # type: ignore[override]
        self.own.append(memory)
        return await super().register(memory, **named)  # type: ignore[arg-type]

    async def register_lent(self, memory: object, *, name: str) -> Region:
        self.lent.append(memory)
        return await super().register_lent(memory, name=name)


@pytest.mark.parametrize("registered", [False, True])
def test_what_is_lent_is_not_registered_for_transfers(registered: bool) -> None:
    async def main() -> None:
        transport = Transport()
        path = SimpleNamespace(carrier=Carrier.TCP)
        way = SimpleNamespace(transport=transport, chosen=SimpleNamespace(path=path))
        ways = Ways(None, TransferConfig())
        ways._transfers = SimpleNamespace(  # type: ignore[assignment]
            incarnation=lambda _: transport.incarnation, transport=lambda _: transport
        )
        memory = np.zeros(SIZE, np.uint8)
        at = int(memory.ctypes.data)
        one = Memory(at, SIZE, True, memory)
        kept = frozenset([id(one)] if registered else [])
        places = Places(np.array([at], np.uint64), np.array([SIZE], np.uint64), 1, (one,))
        reached = SimpleNamespace(pulling=way)
        loan = await ways.lend(reached, places, kept, 5.0)  # type: ignore[arg-type]
        assert len(loan.grants) == 1
        assert (len(transport.own), len(transport.lent)) == ((1, 0) if registered else (0, 1))
        await ways.take_back(loan)
        await transport.close()

    asyncio.run(main())


async def test_two_reads_at_one_time_let_go_of_what_is_registered_no_more() -> None:
    """A get reads from several holders at once, and a NIC takes its time to let memory go."""

    async def deregister(region: object) -> None:
        await asyncio.sleep(0)
        gone.append(region)

    gone: list[object] = []
    ways = Ways(None, TransferConfig())
    transport = SimpleNamespace(deregister=deregister)
    ways._transfers = SimpleNamespace(transport=lambda _: transport)  # type: ignore[assignment]
    memory = np.zeros(SIZE, np.uint8)
    one = Memory(int(memory.ctypes.data), SIZE, True, memory)
    ways._kept = {(number, Carrier.RDMA): (one, f"region {number}") for number in range(4)}  # type: ignore[misc]
    await asyncio.gather(*(ways.forget_others(frozenset([3])) for _ in range(2)))
    assert sorted(map(str, gone)) == ["region 0", "region 1", "region 2"]
    assert list(ways._kept) == [(3, Carrier.RDMA)]


async def test_who_waits_for_another_calls_connecting_keeps_his_own_time() -> None:
    """Behind a node that does not answer, calls waited for each other's time, one after the other."""
    asked: list[float] = []

    async def connect(offer: object, *, deadline_s: float) -> object:
        asked.append(deadline_s)
        await asyncio.sleep(0.05)
        raise PeerUnreachable("no answer in time")

    ways = Ways(None, TransferConfig())
    ways._transfers = SimpleNamespace(connector=SimpleNamespace(connect=connect))  # type: ignore[assignment]
    offer: Any = None
    calls = [ways.reach(object(), offer, deadline_s) for deadline_s in (9.0, 0.01, 2.0)]
    told = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(one, Unavailable) for one in told) and "another call" in str(told[1])
    assert len(asked) == 2 and asked[1] < 2.0, "what it has waited is gone"
