"""The TCP transport of one process: its regions and grants, its listener, its connections, its engine."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import socket
from collections.abc import Collection
from typing import Protocol

import numpy as np

from transfer.errors import LimitReached, PeerUnreachable, Reason, RegionPoisoned
from transfer.grants import Grant, Rights
from transfer.lending import Lender
from transfer.moving import AnotherPeer
from transfer.native import TcpEngine, TcpJob, TcpTls, keep_forever
from transfer.pending import check_deadline
from transfer.regions import Region
from transfer.sockets import connected, connected_unix, listening, tune
from transfer.tcp.config import SCHEME, UNIX, TcpConfig, parse_address, path_of
from transfer.tcp.endpoint import TcpEndpoint
from transfer.tcp.guests import Guests
from transfer.tcp.shown import proof_of
from transfer.unix_listener import MODE_FOR_OTHERS, Listener

__all__ = ["TcpTransport"]

_OPENED, _CLOSED, _FINISHED, _QUIET = 1, 2, 3, 4
_CLOSE_S = 1.0
_PAUSE_S = 0.1


class _Motion(Protocol):
    def finished(self) -> None: ...


class TcpTransport(Lender):
    """See transfer.base.Transport. Of one event loop, on which it is made and used."""

    def __init__(self, config: TcpConfig | None = None) -> None:
        self.config = config or TcpConfig()
        self._loop = asyncio.get_running_loop()
        incarnation = secrets.token_bytes(16)
        super().__init__(
            key=secrets.token_bytes(32),
            incarnation=incarnation,
            regions_max=self.config.regions_max,
            grants_max=self.config.grants_max,
            quiesce_max_s=self.config.quiesce_max_s,
        )
        tls = self.config.tls
        self._tls = TcpTls(tls.certificate, tls.key, tls.ca) if tls is not None else None
        self._listeners: list[socket.socket] = []
        self._address, self._unix = "", None
        if self.config.listens:
            listener, self._address = listening(SCHEME, self.config.host, self.config.port)
            self._listeners.append(listener)
        if self.config.path:
            self._unix = self._listening_unix(self.config.path)
        self.engine = TcpEngine(
            self.config.workers,
            self.config.grants_max,
            self.config.requests_max,
            self.config.spin_s_max,
            incarnation,
        )
        self.ground = self._served = _Served(self.engine)
        self._loop.add_reader(self.engine.fd, self._some_events)
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)
        self._numbers = itertools.count(1)  # of connections, peers and jobs
        self._motions: dict[int, _Motion] = {}
        self._opening: dict[int, asyncio.Future[bytes]] = {}
        self._lanes: dict[int, TcpEndpoint] = {}  # by connection
        self._guests = Guests(self)
        self._endpoints: dict[TcpEndpoint, None] = {}
        self._closed = False

    @property
    def address(self) -> str:
        return self._address

    @property
    def unix_address(self) -> str:
        """What a peer of this machine may give to `connect`; "" where there is none."""
        return f"{UNIX}{self.config.path}" if self._unix is not None else ""

    def _listening_unix(self, path: str) -> Listener:
        try:
            made = Listener(path, MODE_FOR_OTHERS)
        except BaseException:
            for listener in self._listeners:
                listener.close()
            raise
        self._listeners.append(made.socket)
        return made

    # -- what endpoints use

    def number(self) -> int:
        return next(self._numbers)

    def submit(self, token: int, motion: _Motion, job: TcpJob, peer: int) -> None:
        """Has the job moved; its motion's `finished` follows. Raises LimitReached(transfers_max)."""
        if len(self._motions) >= self.config.transfers_max:
            raise LimitReached(f"{self.config.transfers_max} batches are in motion", limit="transfers_max")
        self._motions[token] = motion
        self.engine.submit(job, peer)

    def stop(self, token: int, reason: Reason) -> None:
        self.engine.stop(token, int(reason))

    async def open_lane(self, endpoint: TcpEndpoint, address: str, expected: bytes) -> tuple[int, bytes]:
        """A connection more; its number, and the incarnation that its peer has told, which must be the expected one
        (b"": any). Raises OSError, TimeoutError of the caller's time limit, AnotherPeer, and PeerUnreachable where the
        peer hung up.
        """
        host, path = "", path_of(address)
        if path:
            sock = await connected_unix(path)
        else:
            host, port = parse_address(address)
            sock = await connected(host, port)
        tune(sock, self.config.keepalive_s)
        connection = self.number()
        opened: asyncio.Future[bytes] = self._loop.create_future()
        self._opening[connection] = opened
        self._lanes[connection] = endpoint
        self._add(connection, endpoint.peer, sock, host)
        try:
            incarnation = await opened
            if expected not in (b"", incarnation):
                raise AnotherPeer("the peer has started anew")
            if connection not in self._lanes:
                raise PeerUnreachable("the peer has hung up")
            return connection, incarnation
        except BaseException:
            self.engine.drop(connection)
            raise
        finally:
            self._opening.pop(connection, None)

    def _add(self, connection: int, peer: int, sock: socket.socket, name: str) -> None:
        """Hands the connection to the engine. name: whom we connect to; "": it came in."""
        if self._tls is None or sock.family == socket.AF_UNIX:
            self.engine.add_plain(connection, peer, sock.detach())
        else:
            self.engine.add_tls(connection, peer, sock.detach(), self._tls, name)

    def endpoint_closed(self, endpoint: TcpEndpoint) -> None:
        self._endpoints.pop(endpoint, None)
        self._guests.left(endpoint)
        for connection, owner in self._lanes.items():
            if owner is endpoint:
                self.engine.drop(connection)

    # -- events

    def _some_events(self) -> None:
        for kind, number, text in self.engine.events():
            if kind == _FINISHED:
                self._motions.pop(number).finished()
            elif kind == _OPENED:
                self._opened(number, text)
            elif kind == _CLOSED:
                self._ended(number, text.decode(errors="replace"))
            elif kind == _QUIET:
                self._served.changed.set()

    def _opened(self, connection: int, incarnation: bytes) -> None:
        if self._guests.greeted(connection, incarnation):
            return
        opening = self._opening.get(connection)
        if opening is not None and not opening.done():
            opening.set_result(incarnation)

    def _ended(self, connection: int, why: str) -> None:
        self._guests.gone(connection)
        opening = self._opening.get(connection)
        if opening is not None and not opening.done():
            opening.set_exception(PeerUnreachable(why))
        endpoint = self._lanes.pop(connection, None)
        if endpoint is not None:
            endpoint.lane_lost(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError:  # no descriptors left: looking again at once would be all that this loop does
                self._loop.remove_reader(listener.fileno())
                self._loop.call_later(_PAUSE_S, self._listen_again, listener)
                return
            if len(self._guests) >= self.config.connections_max:
                sock.close()
                continue
            tune(sock, self.config.keepalive_s)
            connection = self.number()
            self._guests.came(connection)
            self._add(connection, 0, sock, "")

    def _listen_again(self, listener: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    # -- peers

    async def connect(self, address: str, *, deadline_s: float) -> TcpEndpoint:
        """Raises ValueError for an address that is neither `tcp://HOST:PORT` nor `unix:PATH`, or not loopback where
        there is no TLS.
        """
        check_deadline(deadline_s)
        if not path_of(address):
            self.config.check_clear("address", parse_address(address)[0])
        endpoint = TcpEndpoint(self, address)
        self._endpoints[endpoint] = None
        try:
            async with asyncio.timeout(deadline_s):
                await endpoint.open()
        except TimeoutError as error:
            await endpoint.close()
            raise PeerUnreachable(f"{address}: no answer in time") from error
        except OSError as error:
            await endpoint.close()
            why = os.strerror(error.errno) if error.errno else str(error)
            raise PeerUnreachable(f"{address}: {why}") from error
        except BaseException:
            await endpoint.close()
            raise
        return endpoint

    async def back(self, incarnation: bytes, *, deadline_s: float) -> TcpEndpoint:
        """The endpoint of a peer that connects to us, over the lanes it makes; the same one until it is closed. Raises
        PeerUnreachable where no lane of that peer opens in time.
        """
        check_deadline(deadline_s)
        endpoint = await self._guests.back(incarnation, deadline_s)
        self._endpoints[endpoint] = None
        return endpoint

    async def close(self) -> None:
        """Raises RegionPoisoned where some memory could not be made quiet; all else is closed then, too."""
        if self._closed:
            return
        self._closed = True
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())
            if self._unix is None or listener is not self._unix.socket:
                listener.close()
        if self._unix is not None:
            self._unix.close()
        for endpoint in list(self._endpoints):
            await endpoint.close()
        poisoned = await self.deregister_all()
        self._guests.close()
        self._loop.remove_reader(self.engine.fd)
        if not self.engine.close(_CLOSE_S):
            keep_forever([self.engine, list(self._motions.values())])  # what a lost thread still points at
        self._some_events()  # the last ones: whoever still waits for a connection is told
        if poisoned:
            raise RegionPoisoned(f"not quiet at close: {', '.join(poisoned)}")


class _Served:
    """The engine's table of grants, as the lender uses it."""

    def __init__(self, engine: TcpEngine) -> None:
        self._engine = engine
        self.changed = asyncio.Event()

    def publish(self, grant: Grant, region: Region) -> None:
        self._engine.issue(
            grant.slot,
            grant.generation,
            grant.expiry_ns,
            region.address,
            region.bytes,
            bool(grant.rights & Rights.READ),
            bool(grant.rights & Rights.WRITE),
            proof_of(grant.descriptor),
            np.array(grant.ranges, dtype=np.int64).reshape(-1, 2),
        )

    def end(self, grant: Grant) -> None:
        self._engine.end(grant.slot)

    def quiet(self, slot: int) -> bool:
        return self._engine.quiet(slot)

    async def wait_quiet(self, slots: Collection[int], wait_s: float) -> bool:
        deadline = asyncio.get_running_loop().time() + wait_s
        left = [slot for slot in slots if not self.quiet(slot)]
        while left:
            self.changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self.changed.wait()
            except TimeoutError:
                return False
            left = [slot for slot in left if not self.quiet(slot)]
        return True

    def region_gone(self, region: Region) -> None:
        """Peers keep nothing of a region."""
