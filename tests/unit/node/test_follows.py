"""How long a follow lives that its client has left alone for a while."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from kvstore.node import follows
from kvstore.node.follows import Follows, _Open
from kvstore.wire import framed


class Source:
    def __init__(self) -> None:
        self.go, self.ended = asyncio.Event(), False

    async def ask(self, wait_s: float) -> framed.FollowResponse:
        await self.go.wait()
        return framed.FollowResponse()

    async def end(self, request: framed.ReleaseRequest) -> bool:
        self.ended = True
        return True


async def test_a_follow_does_not_lapse_while_it_is_being_asked_about(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked would not be answered at all: he would wait for all of his time."""
    monkeypatch.setattr(follows, "WAIT_S_MAX", 0.02)
    host: Any = SimpleNamespace(limits=SimpleNamespace(lease_ms_max=10))
    nothing: Any = None
    mine = Follows(host, 1, nothing, nothing)
    source = Source()
    mine._open[7] = _Open(source, mine._lapsing(7))
    asking = asyncio.ensure_future(mine.ask(framed.FollowRequest(lease=7, wait_ms=20), nothing, for_node=False))
    await asyncio.sleep(0.1)
    source.go.set()
    assert await asking == framed.FollowResponse() and not source.ended
    await asyncio.sleep(0.1)
    assert source.ended, "and then it does"
