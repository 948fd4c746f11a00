"""Ends of lanes that are still being built."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from transfer.errors import PeerUnreachable
from transfer.rdma.config import RdmaConfig
from transfer.rdma.control import Control
from transfer.rdma.frames import Hello, RailOffer
from transfer.rdma.lanes import Lanes
from transfer.rdma.transport import RdmaTransport

PEER = Hello(bytes(16), (RailOffer(bytes(16), 0, 5, 1, True, True),))


def test_who_waits_for_lanes_to_end_can_be_cancelled() -> None:
    """A device that takes its time keeps its lane, and nobody's cancellation."""

    async def main() -> None:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def in_thread(_: object) -> object:
            asked.set()
            while not answer.is_set():
                try:
                    await answer.wait()
                except asyncio.CancelledError:
                    continue
            raise OSError(5, "the device")

        host = SimpleNamespace(
            number=lambda: 1,
            devices=["device"],
            config=RdmaConfig(qps=1),
            in_thread=in_thread,
            engine=SimpleNamespace(give_up=lambda *_: None),
        )
        lanes = Lanes(cast(RdmaTransport, host), cast(Control, None), PEER)
        opening = asyncio.ensure_future(lanes.open())
        await asked.wait()
        closing = asyncio.ensure_future(lanes.close(30.0))
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
        answer.set()
        assert await lanes.close(30.0)
        with pytest.raises(PeerUnreachable):
            await opening

    asyncio.run(main())
