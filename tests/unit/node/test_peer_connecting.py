"""Connections to other nodes are made in a few threads: hosts that are silent keep one each, and not one a try."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kvstore.client.address import TcpAddress
from kvstore.node import peer_session
from kvstore.node.peer_session import PeerSession

SILENT, LIVE = TcpAddress("192.0.2.1", 1), TcpAddress("192.0.2.2", 1)
CONNECT_S = 60.0


class Hosts:
    """In place of the native session. A silent host keeps whoever connects to it until it `speaks`."""

    def __init__(self) -> None:
        self.begun, self.speaks = threading.Event(), threading.Event()
        self.asked: list[tuple[str, float]] = []
        self.closed = 0
        self.completion_fd = os.eventfd(0)

    def __call__(self, _path: str, _token: bytes, connect_s: float, *_: Any, host: str, **__: Any) -> Hosts:
        self.asked.append((host, connect_s))
        self.begun.set()
        if host == SILENT.host:
            assert self.speaks.wait(CONNECT_S)
        return self

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    made = Hosts()
    monkeypatch.setattr(peer_session.native, "Session", made)
    yield made
    made.speaks.set()
    os.close(made.completion_fd)


async def given_up(at: TcpAddress, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await PeerSession.open(at, b"", None, CONNECT_S, executor)


async def test_who_has_given_up_before_its_turn_takes_no_thread_any_more(hosts: Hosts) -> None:
    with ThreadPoolExecutor(1) as executor:
        first = asyncio.ensure_future(PeerSession.open(SILENT, b"", None, CONNECT_S, executor))
        assert await asyncio.to_thread(hosts.begun.wait, CONNECT_S)
        for _ in range(5):
            await given_up(SILENT, executor)
        last = asyncio.ensure_future(PeerSession.open(LIVE, b"", None, CONNECT_S, executor))
        await asyncio.sleep(0)
        hosts.speaks.set()
        for session in (await first, await last):
            session.close(executor)
    assert [host for host, _ in hosts.asked] == [SILENT.host, LIVE.host]
    assert hosts.asked[-1][1] < CONNECT_S, "it has waited: only the rest of its time is left"


async def test_what_came_after_its_asker_has_left_is_closed(hosts: Hosts) -> None:
    with ThreadPoolExecutor(1) as executor:
        asking = asyncio.ensure_future(PeerSession.open(SILENT, b"", None, CONNECT_S, executor))
        assert await asyncio.to_thread(hosts.begun.wait, CONNECT_S)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        hosts.speaks.set()
    assert hosts.closed == 1
