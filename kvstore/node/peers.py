"""This node's connections to the others: one a peer, made when it is first asked for and anew when it has ended.

Rules
- Over TCP to the peer's framed door. Beyond loopback only by mutual TLS: this node shows its own certificate and
  believes `security.client_ca`, as its door does. Nothing is sent before the peer has been believed.
- A connection is used for nothing before both sides have introduced themselves (introduction.py).
- Everything has a deadline. One that passes ends the connection where it was a ping's: behind a packet that vanished
  TCP waits longer than we do.
- What may not be (settings that differ, an id of two) is Misconfigured, with a sentence for people; what is not there
  is Unavailable; a closed port is NotListening.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from kvstore.client.address import TcpAddress, parse
from kvstore.errors import KvStoreError, Misconfigured, Rejected, Unavailable
from kvstore.node.introduction import NONCE_BYTES, Introduction
from kvstore.node.peer_session import NotLetIn, NotListening, PeerSession
from kvstore.wire import convert, peers, store

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.directory.base import Member

__all__ = ["NotListening", "Peers"]

CONNECTS_MAX: Final = 16  # at once; a connection that vanishes keeps a thread until its deadline


@dataclass(slots=True)
class _Line:
    """To one address. `turn`: one connects, the others use what he made."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    session: PeerSession | None = None
    member: Member | None = None


@dataclass(slots=True)
class Peers:
    """On one event loop, until `close`. me: this node. tls: as it is shown and believed now; None: clear text.
    token: of the door (introduction.pass_token). insecure: other machines are spoken to without mutual TLS.
    """

    introduction: Introduction
    me: Callable[[], Member]
    tls: Callable[[], native.Tls | None]
    mutual: bool
    insecure: bool
    token: bytes
    secret_id: str
    _lines: dict[str, _Line] = field(default_factory=dict)
    _closed: bool = False
    _executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(CONNECTS_MAX, thread_name_prefix="kvstore-peers")
    )

    async def greet(self, address: str, deadline_s: float) -> Member:
        """Who is there now. Raises Misconfigured, Unavailable."""
        until = time.monotonic() + deadline_s
        async with self._within(address, deadline_s):
            _, member = await self._connected(address, until)
            return member

    async def ping(self, address: str, deadline_s: float) -> tuple[Member, int]:
        """Who answers, and the hash of what it knows of generations. Raises as `greet`; NotListening where the port is
        closed.
        """
        try:
            body = await self.call(address, store.METHOD_PEER_PING, b"", deadline_s)
            answer = peers.PeerPingResponse.FromString(body)
        except (convert.DecodeError, ValueError) as error:
            self.drop(address)
            raise Unavailable(f"{address}: not an answer to a ping: {error}") from error
        except KvStoreError:
            self.drop(address)
            raise
        member = self._lines[address].member
        if member is None or member.incarnation != answer.incarnation:
            self.drop(address)
            raise Unavailable(f"{address}: another node answers there")
        return member, answer.generations

    async def call(self, address: str, method: int, body: bytes, deadline_s: float) -> bytes:
        """What nodes ask of nodes. Raises Misconfigured, Unavailable, Rejected, ValueError."""
        until = time.monotonic() + deadline_s
        async with self._within(address, deadline_s):
            session, _ = await self._connected(address, until)
            return await session.call(method, body, max(0.001, until - time.monotonic()))

    def begin(self, address: str, method: int, body: bytes, deadline_s: float) -> asyncio.Future[bytes]:
        """As call, to come: over a connection that there is, without a task. Whoever waits minds the deadline himself;
        cancelled, it is given up.
        """
        line = self._lines.get(address)
        if line is not None and line.session is not None and line.member is not None and not line.session.closed:
            return line.session.begin(method, body, deadline_s)
        return asyncio.ensure_future(self.call(address, method, body, deadline_s))

    def connected(self, address: str) -> bool:
        line = self._lines.get(address)
        return line is not None and line.session is not None and not line.session.closed

    def drop(self, address: str) -> None:
        """Ends the connection; the next call makes another one."""
        line = self._lines.get(address)
        if line is not None and line.session is not None:
            session, line.session, line.member = line.session, None, None
            session.close(self._executor)

    def forget(self, address: str) -> None:
        """It is listed no more."""
        self.drop(address)
        line = self._lines.get(address)
        if line is not None and not line.turn.locked():
            del self._lines[address]

    async def close(self) -> None:
        """Whoever calls from now on finds nobody: this node stops."""
        self._closed = True
        for address in tuple(self._lines):
            self.drop(address)
        await asyncio.to_thread(self._executor.shutdown, cancel_futures=False)

    # ---- how ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _within(self, address: str, deadline_s: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(deadline_s):
                yield
        except TimeoutError:
            raise Unavailable(f"{address}: no answer within {deadline_s:.3g} s") from None

    async def _connected(self, address: str, until: float) -> tuple[PeerSession, Member]:
        line = self._lines.setdefault(address, _Line())
        async with line.turn:
            if line.session is not None and line.member is not None and not line.session.closed:
                return line.session, line.member
            self.drop(address)
            session = await self._opened(address, until)
            try:
                member = await self._introduced(address, session, until)
                self._check_open(address)
            except BaseException:
                session.close(self._executor)
                raise
            line.session, line.member = session, member
            return session, member

    async def _opened(self, address: str, until: float) -> PeerSession:
        at = parse(address)
        assert isinstance(at, TcpAddress)
        tls = self.tls()
        if not at.is_local and not self.insecure and (tls is None or not self.mutual):
            raise Misconfigured(
                f"{address}: of another machine: nodes speak mutual TLS there; "
                "set security.certificate, private_key and client_ca, or say --insecure"
            )

        async def opened(token: bytes) -> PeerSession:
            self._check_open(address)
            return await PeerSession.open(at, token, tls, max(0.001, until - time.monotonic()), self._executor)

        try:
            return await opened(self.token)
        except NotLetIn:
            # It has another secret. By its certificate, or where everybody is let in, we still learn which setting
            # differs.
            with contextlib.suppress(NotLetIn):
                return await opened(b"")
            raise Misconfigured(
                f"cluster.secret_file (its id): {self.secret_id!r} here, not that of {address}, which does not let "
                "this node in: nodes of one cluster must agree"
            ) from None

    def _check_open(self, address: str) -> None:
        if self._closed:
            raise Unavailable(f"{address}: this node stops")

    async def _introduced(self, address: str, session: PeerSession, until: float) -> Member:
        """Raises Misconfigured: what differs, by whoever noticed."""

        async def ask(method: int, body: bytes) -> bytes:
            try:
                return await session.call(method, body, max(0.001, until - time.monotonic()))
            except (ValueError, Rejected) as error:  # no node of a cluster, or a very old one
                raise Unavailable(f"{address}: {error}") from error

        me, nonce = self.me(), secrets.token_bytes(NONCE_BYTES)
        request = peers.PeerChallengeRequest(nonce=nonce).SerializeToString()
        try:
            told = peers.PeerChallengeResponse.FromString(await ask(store.METHOD_PEER_CHALLENGE, request))
            wrong: Misconfigured | None = None
            try:
                member = self.introduction.found(nonce, told)
            except Misconfigured as error:
                wrong = error
            # Also where we do not believe it: so that its log says as well what differs.
            hello = self.introduction.hello(nonce, told.nonce, me).SerializeToString()
            answer = peers.PeerHelloResponse.FromString(await ask(store.METHOD_PEER_HELLO, hello))
        except convert.DecodeError as error:
            raise Unavailable(f"{address}: not an answer of a node") from error
        if wrong is not None:
            raise wrong
        if answer.refusal and member.id != me.id:
            raise Misconfigured(f"{address} refuses this node: {_printable(answer.refusal)}")
        return member


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:512])
