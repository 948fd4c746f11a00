"""A node that stops calls nobody any more, and says so."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

import pytest

from kvstore.directory.base import Member
from kvstore.errors import Unavailable
from kvstore.node.introduction import Introduction
from kvstore.node.peer_session import PeerSession
from kvstore.node.peers import Peers

ME = Member("127.0.0.1:1", id=bytes(16))


def made() -> Peers:
    return Peers(
        Introduction(bytes(32), {}),
        me=lambda: ME,
        tls=lambda: None,
        mutual=False,
        insecure=False,
        token=b"",
        secret_id="",
    )


class Line:
    """A native session, as far as one is closed."""

    def __init__(self) -> None:
        self.completion_fd = os.eventfd(0)
        self.closed, self.ended = False, threading.Event()

    def close(self) -> None:
        self.ended.set()


async def test_who_calls_after_the_end_finds_nobody() -> None:
    peers = made()
    await peers.close()
    with pytest.raises(Unavailable, match="this node stops"):
        await peers.greet("127.0.0.1:2", 1.0)


async def test_a_connection_that_is_being_made_at_the_end_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was kept, and the stop failed over it."""
    peers, line, goes_on = made(), Line(), asyncio.Event()

    async def opened(*_: Any) -> PeerSession:
        return PeerSession(line)  # type: ignore[arg-type]

    async def introduced(*_: Any) -> Member:
        await goes_on.wait()
        return ME

    monkeypatch.setattr(PeerSession, "open", opened)
    monkeypatch.setattr(Peers, "_introduced", introduced)
    greeting = asyncio.ensure_future(peers.greet("127.0.0.1:2", 5.0))
    await asyncio.sleep(0)
    await peers.close()
    goes_on.set()
    with pytest.raises(Unavailable, match="this node stops"):
        await greeting
    assert await asyncio.to_thread(line.ended.wait, 5.0) and not peers.connected("127.0.0.1:2")
    await peers.close()
    os.close(line.completion_fd)
