"""The control connection: versions, and how many questions may be out."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer.errors import PeerUnreachable, Reason
from transfer.rdma.control import QUESTIONS_MAX, Control
from transfer.rdma.frames import (
    HEAD_BYTES,
    FrameInvalid,
    Head,
    Hello,
    Kind,
    Message,
    Present,
    Shown,
    parse_head,
    to_frame,
)
from transfer.rdma.link import Link
from transfer.rdma.serving import Guest
from transfer.rdma.transport import RdmaTransport

FOREVER_S = 60.0
MINE, THEIRS = Hello(bytes([1] * 16), ()), Hello(bytes([2] * 16), ())


class Peer:
    """The other end, frame by frame."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def says(self, *messages: Message, version: int = 2, first: int = 1) -> None:
        frames = b"".join(to_frame(one, first + i, version) for i, one in enumerate(messages))
        await asyncio.get_running_loop().sock_sendall(self._sock, frames)

    async def hears(self) -> Head:
        head = parse_head(await self._exactly(HEAD_BYTES))
        await self._exactly(head.size)
        return head

    async def _exactly(self, size: int) -> bytes:
        got = b""
        while len(got) < size:
            more = await asyncio.get_running_loop().sock_recv(self._sock, size - len(got))
            if not more:
                raise EOFError
            got += more
        return got


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[Control, Peer]]:
    here, there = socket.socketpair()
    there.setblocking(False)
    control = Control(*await asyncio.open_connection(sock=here))
    try:
        yield control, Peer(there)
    finally:
        control.lose("over")
        there.close()


def on_a_loop(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    def body() -> None:
        async def main() -> None:
            async with asyncio.timeout(FOREVER_S):
                await test()

        asyncio.run(main())

    body.__name__, body.__doc__ = test.__name__, test.__doc__
    return body


@pytest.mark.parametrize("version", [1, 2])
def test_who_connects_is_answered_in_its_version(version: int) -> None:
    async def main() -> None:
        async with connected() as (control, peer):
            await peer.says(THEIRS, version=version)
            assert await control.greeted(MINE) == THEIRS
            assert (await peer.hears())[:2] == (version, Kind.HELLO) and control.version == version
            control.tell(Shown(Reason.REVOKED), 7)
            assert await peer.hears() == Head(version, Kind.SHOWN, 7, 14)

    asyncio.run(main())


@on_a_loop
async def test_nobody_is_told_who_this_is_before_it_has_said_who_it_is() -> None:
    async with connected() as (control, peer):
        await peer.says(Present(b"x"))
        with pytest.raises(PeerUnreachable, match="did not say who it is"):
            await control.greeted(MINE)
        control.lose("done")
        with pytest.raises(EOFError):
            await peer.hears()


@on_a_loop
async def test_questions_wait_for_answers_of_those_before() -> None:
    """Also of those that nobody waits for any more."""
    async with connected() as (control, peer):
        asked = [asyncio.ensure_future(control.ask(Present(b"x"), FOREVER_S)) for _ in range(QUESTIONS_MAX)]
        heard = [(await peer.hears()).request for _ in range(QUESTIONS_MAX)]
        asked[0].cancel()
        with pytest.raises(PeerUnreachable, match="in time"):
            await control.ask(Present(b"x"), 0.0)
        late = asyncio.ensure_future(control.ask(Present(b"y"), FOREVER_S))
        for request in heard:
            control.answered(Shown(Reason.REVOKED), request)
        assert (await peer.hears()).request not in heard
        assert await asked[1] == Shown(Reason.REVOKED)
        more = [asyncio.ensure_future(control.ask(Present(b"z"), FOREVER_S)) for _ in range(2 * QUESTIONS_MAX)]
        await asyncio.wait([asyncio.ensure_future(peer.hears())])
        control.lose("the end")
        for one in (late, *more):  # those that are out, and those that wait for room
            with pytest.raises(PeerUnreachable, match="the end"):
                await one


@on_a_loop
async def test_a_peer_that_asks_more_than_it_may_is_not_heard_any_more() -> None:
    """A version 1 peer knew no bound: it waits."""
    for version in (1, 2):
        async with connected() as (control, peer):
            await peer.says(THEIRS, version=version)
            theirs = await control.greeted(MINE)
            ended = asyncio.Event()
            host = SimpleNamespace(link_ended=lambda _, ended=ended: ended.set())
            link = Link(cast(RdmaTransport, host), control, theirs)
            guest = SlowGuest()
            link._guest = cast(Guest, guest)
            await peer.says(*[Present(b"x")] * (QUESTIONS_MAX + 2), version=version)
            if version == 2:
                await ended.wait()
            else:
                guest.go_on.set()
                for _ in range(QUESTIONS_MAX + 3):  # and the greeting
                    await peer.hears()
                assert not ended.is_set()
            await link.close()
            assert guest.ended and not link.open


class SlowGuest:
    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.ended = False

    async def answer(self, question: object, theirs: Hello) -> Shown:
        assert isinstance(question, Present) and theirs == THEIRS
        await self.go_on.wait()
        return Shown(Reason.REVOKED)

    async def end(self) -> None:
        self.ended = True


@on_a_loop
async def test_a_second_greeting_ends_a_connection() -> None:
    async with connected() as (control, peer):
        await peer.says(THEIRS)
        theirs = await control.greeted(MINE)
        ended = asyncio.Event()
        link = Link(cast(RdmaTransport, SimpleNamespace(link_ended=lambda _: ended.set())), control, theirs)
        await peer.says(THEIRS)
        await ended.wait()
        assert not link.open
        with pytest.raises(PeerUnreachable, match="second greeting"):
            await link.control.ask(Present(b"x"), 1.0)
        await link.close()


@on_a_loop
async def test_garbage_is_refused() -> None:
    async with connected() as (control, peer):
        await asyncio.get_running_loop().sock_sendall(peer._sock, b"GET / HTTP/1.1\r\n")
        with pytest.raises(FrameInvalid):
            await control.greeted(MINE)


@given(st.lists(st.binary(max_size=80) | st.builds(to_frame, st.just(Present(b"x"))), max_size=4).map(b"".join))
@settings(deadline=None)
def test_any_bytes_after_a_greeting_cost_their_own_connection_at_most(data: bytes) -> None:
    """The link lives on or ends, closes in time, and leaves no task behind."""

    async def main() -> None:
        async with connected() as (control, peer), asyncio.timeout(FOREVER_S):
            await peer.says(THEIRS)
            host = SimpleNamespace(link_ended=lambda _: None)
            link = Link(cast(RdmaTransport, host), control, await control.greeted(MINE))
            guest = SlowGuest()
            guest.go_on.set()
            link._guest = cast(Guest, guest)
            await asyncio.get_running_loop().sock_sendall(peer._sock, data)
            peer._sock.shutdown(socket.SHUT_WR)
            over = asyncio.Event()
            link.when_over(over.set)
            await over.wait()
            assert guest.ended and not link.open
            await asyncio.sleep(0)
            assert asyncio.all_tasks() <= {asyncio.current_task()}

    asyncio.run(main())
