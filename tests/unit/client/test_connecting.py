"""A node that is not there costs a client little: how long it is left alone, and from when it is asked again."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest

from kvstore.client import socket
from kvstore.client.address import UnixAddress
from kvstore.client.socket import PAUSE_S_MAX, PAUSE_S_MIN, SocketChannel
from kvstore.config import TransferConfig
from kvstore.errors import Rejected, Unavailable


class World:
    """A clock, and what a connection to the node comes to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.tries = 0
        self.answer: Exception | None = None
        monkeypatch.setattr(socket, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(socket, "native", SimpleNamespace(Session=self._session))
        self.channel = SocketChannel(UnixAddress("/nowhere"), None, None, TransferConfig(), verify=True, workers=1)

    def _session(self, *_: object) -> SimpleNamespace:
        self.tries += 1
        if self.answer is not None:
            raise self.answer
        info = SimpleNamespace(keys_per_call_max=1, window_bytes=1, meta_bytes_max=1, hold_wait_ms_max=1, trusted=True)
        return SimpleNamespace(info=info, closed=False, close=lambda: None)

    def connects(self) -> bool:
        """Whether the node was asked at all; it may have refused."""
        before = self.tries
        with contextlib.suppress(Unavailable):
            self.channel.connect(self.now + 5)
        return self.tries > before


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_calls_fail_at_once_until_a_growing_pause_is_over(world: World) -> None:
    world.answer = ConnectionRefusedError("nobody")
    pauses, pause = [], PAUSE_S_MIN
    while len(pauses) < 9:
        assert world.connects() and not world.connects()
        world.now += pause * 0.99
        assert not world.connects()
        world.now += pause * 0.02
        pauses.append(pause)
        pause = min(2 * pause, PAUSE_S_MAX)
    assert pauses[-1] == PAUSE_S_MAX


def test_the_pause_begins_anew_when_the_node_was_there(world: World) -> None:
    world.answer = ConnectionRefusedError("nobody")
    for _ in range(5):
        assert world.connects()
        world.now += PAUSE_S_MAX
    world.answer = None
    line = world.channel.connect(world.now + 5)
    assert world.channel.connect(world.now + 5) is line, "one session serves all"
    line.session.closed = True  # type: ignore[misc]
    world.answer = ConnectionRefusedError("gone again")
    assert world.connects()
    world.now += PAUSE_S_MIN * 1.01
    assert world.connects()


def test_what_answers_in_another_language_is_no_node(world: World) -> None:
    """An engine goes on without it, as without one that is gone; what the caller got wrong stays that."""
    world.answer = ValueError("hello: the answer is too large")
    with pytest.raises(Unavailable, match=r"/nowhere: what answers there is no framed door .*hello: the answer"):
        world.channel.connect(world.now + 5)
    assert not world.connects(), "not asked again at once"
    world.now += PAUSE_S_MAX
    world.answer = ValueError("token: 70000 bytes")
    with pytest.raises(ValueError, match="token: 70000 bytes"):
        world.channel.connect(world.now + 5)


def test_who_is_not_let_in_is_told_each_time(world: World) -> None:
    """Another token may be good by then, and the node was there to say so."""
    world.answer = PermissionError("not a token of this node")
    for tries in (1, 2):
        with pytest.raises(Rejected, match="not a token of this node"):
            world.channel.connect(world.now + 5)
        assert world.tries == tries
