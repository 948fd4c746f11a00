"""The Python half of the framed door: who a connection is, and its rare verbs. The hot ones never come here.

Listens on a Unix socket, 0600 unless others than the node's own user are allowed in, and by TCP (`node.address`).
Who comes by TCP is told as gRPC's callers are (auth.Guard): by a token, else by a certificate, else, where nobody has
to say who it is, not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
import socket
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from kvstore import native
from kvstore.config import LimitsConfig
from kvstore.errors import Misconfigured, Rejected, Unavailable
from kvstore.node.auth import TRUSTED, Denied, Guard, Peer
from kvstore.node.copies import METHODS as COPY_METHODS
from kvstore.node.copies import Copies
from kvstore.node.handlers import NAMELESS, Handlers
from kvstore.node.namespaces import NotOpen
from kvstore.node.peer_desk import METHODS as PEER_METHODS
from kvstore.node.peer_desk import PeerDesk
from kvstore.node.tls import Certificates
from kvstore.node.visitors import METHODS, NAMING, NODE_METHODS, Visitors
from kvstore.security import SecurityConfig
from kvstore.wire import errors, store
from transfer import sockets

log = logging.getLogger(__name__)

BACKLOG: Final = 128
REQUESTS_MAX: Final = 256  # taken from the door at once
WAITING_MAX: Final = 256  # requests of one connection that Python has not answered; a node's clients share one here
MODE: Final = 0o600
MODE_FOR_OTHERS: Final = 0o666

Tokens = tuple[tuple[bytes, Peer], ...]  # digest and bearer
What = TypeVar("What", bytes, str)  # a token's digest, a name in a certificate


def listen(path: Path, *, for_others: bool) -> socket.socket:
    """A listening socket. One left by a node that was killed is replaced; one that answers is another node's. Raises
    Misconfigured.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _clear_the_way(path)
        return _bound(path, MODE_FOR_OTHERS if for_others else MODE)
    except OSError as error:
        raise Misconfigured(f"node.socket = {str(path)!r}: cannot listen: {error.strerror}") from error


def listen_tcp(address: str) -> tuple[socket.socket, str]:
    """A listening socket and its HOST:PORT. Raises Misconfigured."""
    host, _, port = address.rpartition(":")
    try:
        return sockets.listening("", host.strip("[]"), int(port))
    except OSError as error:
        raise Misconfigured(f"node.address = {address!r}: cannot be bound: {error}; choose another, or none") from error


def _clear_the_way(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat(follow_symlinks=False).st_mode):
            raise Misconfigured(f"node.socket = {str(path)!r}: is there and no socket")
        if _answers(path):
            raise Misconfigured(f"node.socket = {str(path)!r}: another node listens there")
        path.unlink()


def _bound(path: Path, mode: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o777)  # nobody may connect between bind and chmod
    try:
        listener.bind(str(path))
        path.chmod(mode)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(former)
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:  # a full backlog, or not ours to open: somebody is there
            return True
        return True


class Bearers:
    """Numbers for tokens and for names in certificates, as the native door tells who shows one.

    One that gives the same as before keeps its number over a reload. One that gives something else gets a number of
    its own, so that connections which showed it before are ended like those of a token that was withdrawn.
    """

    def __init__(self) -> None:
        self._peers: dict[int, Peer] = {}
        self._numbers: dict[tuple[bytes | str, Peer], int] = {}
        self._next = itertools.count()

    def renew(
        self, tokens: Iterable[tuple[bytes, Peer]], certificates: Iterable[tuple[str, Peer]] = ()
    ) -> tuple[list[tuple[bytes, int]], list[tuple[str, int]]]:
        """Digest and number of each token, name and number of each certificate, for the native door."""
        former, self._numbers = self._numbers, {}
        numbered = self._number(tokens, former), self._number(certificates, former)
        self._peers = {number: peer for (_, peer), number in self._numbers.items()}
        return numbered

    def _number(
        self, shown: Iterable[tuple[What, Peer]], former: Mapping[tuple[bytes | str, Peer], int]
    ) -> list[tuple[What, int]]:
        numbered = []
        for one in shown:
            number = self._numbers[one] = former[one] if one in former else next(self._next)
            numbered.append((one[0], number))
        return numbered

    def peer(self, number: int) -> Peer | None:
        return self._peers.get(number)


# Who shows the token of nodes: nothing but the right to introduce himself.
NODE: Final = Peer("a node", frozenset())


class FramedDoor:
    """Lives on the node's event loop from `start` to `stop`. `address`: HOST:PORT, or none. node_token: what other
    nodes show; their desk says who they are.
    """

    def __init__(
        self,
        security: SecurityConfig,
        guard: Guard,
        certificates: Certificates,
        limits: LimitsConfig,
        core: native.NodeCore,
        path: Path,
        address: str,
        desk: PeerDesk,
        node_token: bytes,
    ) -> None:
        self._desk = desk
        self._nodes: Tokens = ((hashlib.sha256(node_token).digest(), NODE),)
        self._security = security
        self._guard = guard
        self._certificates = certificates
        self._path = path
        self.address = address  # as it is bound, from start on
        self._limits = limits
        self._core = core
        self._native: native.Door
        self._handlers: Handlers
        self._visitors: Visitors
        self._copies: Copies
        self._tasks: set[asyncio.Task[None]] = set()
        self._bearers = Bearers()
        self._inode = 0

    def start(
        self, handlers: Handlers, visitors: Visitors, copies: Copies, payload_fd: int, payload_bytes: int
    ) -> None:
        """Raises Misconfigured where the socket or the address cannot be had."""
        security, limits = self._security, self._limits
        trusted = sorted({os.getuid(), *security.trusted_uids})
        tokens = self._guard.tokens()
        remote, self.address = listen_tcp(self.address) if self.address != "none" else (None, "none")
        with remote or contextlib.nullcontext(), listen(self._path, for_others=self._for_others(tokens)) as listener:
            self._inode = self._path.stat().st_ino
            self._native = native.Door(
                self._core,
                listener.fileno(),
                payload_fd,
                payload_bytes,
                trusted_uids=trusted,
                allowed_uids=list(security.allowed_uids),
                anonymous_over_tcp=not security.authenticates,
                certified_over_tcp=security.client_ca is not None and security.access_file is None,
                connections_max=limits.connections_max,
                frame_bytes_max=limits.frame_bytes_max,
                requests_per_connection_max=WAITING_MAX,
                hold_wait_ms_max=limits.hold_wait_ms_max,
                spin_us_max=limits.door_spin_us_max,
            )
            if remote is not None:
                self._native.listen_tcp(remote.fileno(), self._certificates.framed())
        self._handlers, self._visitors, self._copies = handlers, visitors, copies
        self._set_bearers(tokens)
        self._native.start()
        asyncio.get_running_loop().add_reader(self._native.request_fd, self._take)

    def _for_others(self, tokens: Tokens) -> bool:
        """Whether others than the node's own user have reason to open the socket."""
        security = self._security
        return bool(tokens or security.allowed_uids or set(security.trusted_uids) - {os.getuid()})

    def renew(self) -> None:
        """Takes what the guard knows, and what TLS shows and believes, as they are now. Connections whose token or
        certificate gives something else now, or nothing, are ended; their clients come back with what they have.
        """
        if self.address != "none":
            self._native.renew_tls(self._certificates.framed())
        tokens = self._guard.tokens()
        self._set_bearers(tokens)
        if self._is_ours():
            self._path.chmod(MODE_FOR_OTHERS if self._for_others(tokens) else MODE)

    def _set_bearers(self, tokens: Tokens) -> None:
        self._native.set_bearers(*self._bearers.renew((*tokens, *self._nodes), self._guard.certificates()))

    def _is_ours(self) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return self._path.stat().st_ino == self._inode
        return False

    async def stop(self) -> None:
        """Ends all connections. Removes the socket if it is still ours."""
        asyncio.get_running_loop().remove_reader(self._native.request_fd)
        if self._is_ours():
            self._path.unlink(missing_ok=True)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._native.stop)

    def set_draining(self, draining: bool) -> None:
        """While it is, puts are refused as that."""
        self._native.set_draining(draining)

    def disallow(self, handle: int) -> None:
        """Whoever has it open asks for its namespace again."""
        self._native.disallow(handle)

    def trust_until(self, until: int) -> None:
        """Past this time all ask for their namespaces again. On the monotonic clock, ns."""
        self._native.trust_until(until)

    def stats(self) -> dict[str, int]:
        return self._native.stats()

    def _take(self) -> None:
        for request in self._native.take_requests(REQUESTS_MAX):
            if request.gone:
                self._visitors.gone(request.owner)
                self._desk.gone(request.owner)
                continue
            if request.method in METHODS:
                self._visitors.came(request.owner)
            task = asyncio.ensure_future(self._answer(request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _peer(self, request: native.Request) -> Peer:
        if request.trusted:
            return TRUSTED
        bearer = self._bearers.peer(request.token)
        if bearer is not None:
            return bearer
        if request.remote:
            return self._guard.authorize({}, request.names)
        if request.uid in self._security.allowed_uids:
            return Peer(f"uid {request.uid}", frozenset(self._security.anonymous_tenants))
        raise Denied(f"uid {request.uid} may not use this node", known=False)

    async def _body(self, request: native.Request, peer: Peer) -> bytes:
        owner, method = request.owner, request.method
        if method in PEER_METHODS:
            answer = self._desk.call(owner, method, request.body)
            if method == store.METHOD_PEER_HELLO:
                self._met(owner)
            return answer
        if method == store.METHOD_PEER_ADMIN:
            self._desk.peer(owner)  # for operators whose rights the asking node has looked at
            return await self._handlers.asking.answered(request.body)
        if method in METHODS:
            return await self._visited(peer, request)
        if method in COPY_METHODS:
            return await self._copies.call(self._desk.peer(owner), method, request.body)
        if method not in NAMELESS:
            await self._handlers.host.cluster.surely()
        return await self._handlers.call(peer, method, request.body, lambda ns: self._native.allow(owner, ns))

    def _met(self, owner: int) -> None:
        """A node that has introduced itself is told by the door's own thread who claims what."""
        locator = self._handlers.host.cluster.locator
        if locator is not None and self._desk.knows(owner):
            self._native.answer_locates(owner, store.METHOD_PEER_LOCATE, locator.claims)

    async def _answer(self, request: native.Request) -> None:
        owner, number = request.owner, request.request
        try:
            peer = self._peer(request)
            body = await self._body(request, peer)
        except asyncio.CancelledError:  # given up by whoever asked, or the connection is gone
            self._native.answered(owner)
            raise
        except Exception as error:  # each is told to the caller, and the unexpected to the log as well
            if isinstance(error, Denied):
                self._guard.denied("framed", error)
            status, text, limit = _refusal(error)
            told = errors.detail(text, limit_name=limit)
            if request.unanswered:
                self._native.answered(owner)
            else:
                self._native.answer_error(owner, number, int(status), told.field, told.reason, told.limit)
        else:
            if request.unanswered:
                self._native.answered(owner)
            else:
                self._native.answer(owner, number, body)

    async def _visited(self, peer: Peer, request: native.Request) -> bytes:
        node = b""
        if request.method in NODE_METHODS:  # for clients whose rights the asking node has looked at
            member = self._desk.peer(request.owner)
            peer, node = Peer(member.name, None), member.id
        elif request.method in NAMING:
            await self._handlers.host.cluster.surely()
        return await self._visitors.call(request.owner, peer, request.method, request.body, node)


def _refusal(error: Exception) -> tuple[native.Status, str, str]:
    """Status, text and the limit's name, as the contract tells what a handler raised."""
    if isinstance(error, Denied):
        return native.Status.DENIED, str(error), ""
    if isinstance(error, NotOpen):
        return native.Status.STALE_NAMESPACE, "namespace: not open", ""
    if isinstance(error, ValueError | TypeError):
        return native.Status.BAD_INPUT, str(error), ""
    if isinstance(error, Rejected):
        return native.Status.REJECTED, str(error), error.limit
    if isinstance(error, Unavailable):
        return native.Status.REJECTED, str(error), ""
    log.error("a call failed", exc_info=error)
    return native.Status.REJECTED, "the node failed; its log says how", ""
