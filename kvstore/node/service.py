"""The Store service over grpc.aio, and the server that carries it: addresses, TLS, health, reflection.

Bytes ride in gRPC messages here, at 0.6 to 0.8 GiB/s and two copies at each side (docs/grpc.md says what that
costs); the framed socket moves none.
"""

# ruff: noqa: N802, ARG002 - methods are named by the contract, and take what it gives them
# Server streams write to their context: an async generator left at a yield would be closed by another task.

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvstore import native
from kvstore.errors import Misconfigured, Rejected
from kvstore.node.administration import AdminService
from kvstore.node.bringing import refuse_draining
from kvstore.node.grpc_door import IDLE_S, Entrance, Turnstile
from kvstore.node.handlers import REPLICAS_MAX
from kvstore.node.namespaces import NotOpen
from kvstore.node.shares import Shares
from kvstore.node.streams import MESSAGE_ROOM, GetStream, PutStream, StreamHost
from kvstore.wire import admin, convert, framed, services, store

if TYPE_CHECKING:
    from kvstore.node.auth import Guard, Peer
    from kvstore.node.grpc_door import Context
    from kvstore.node.handlers import Handlers, NodeHost
    from kvstore.node.streams import Prefix
    from kvstore.node.tls import Certificates

log = logging.getLogger(__name__)

STORE_NAME: Final = store.DESCRIPTOR.services_by_name["Store"].full_name
ADMIN_NAME: Final = admin.DESCRIPTOR.services_by_name["Admin"].full_name
HELD_READ_S: Final = 30.0  # so long a reader that is being told what is held may not read
GRACE_S: Final = 2.0  # for calls under way when the node stops
CANNOT_BIND: Final = "cannot be bound"


class StoreService(services.StoreServicer):
    """kvstore.v1.Store. Hot verbs here; the rare ones are the handlers that the framed door uses too."""

    def __init__(self, host: NodeHost, handlers: Handlers, entrance: Entrance) -> None:
        self._host, self._handlers, self._entrance = host, handlers, entrance
        self._streams = Shares("streams_max", host.grpc.streams_max, host.several_tenants)
        self._stream_host = StreamHost(
            bridge=host.bridge,
            payload=host.payload,
            slab_bytes=host.slab_bytes,
            clock=host.clock,
            window_bytes=host.grpc.window_bytes,
            data_bytes=host.grpc.message_bytes_max - MESSAGE_ROOM,
            lease_s=host.limits.lease_ms_max / 1e3,
        )

    @asynccontextmanager
    async def _call(self, context: Context) -> AsyncIterator[Peer]:
        """Of one that names a namespace."""
        async with self._entrance.call(context) as peer:
            await self._host.cluster.surely()
            yield peer

    async def OpenNamespace(self, request: store.OpenNamespaceRequest, context: Context) -> store.OpenNamespaceResponse:
        async with self._call(context) as peer:
            answer = self._handlers.open_namespace(peer, request)
            answer.ClearField("handle")  # means nothing outside a connection
            return answer

    async def Clear(self, request: store.ClearRequest, context: Context) -> store.ClearResponse:
        async with self._call(context) as peer:
            return await self._handlers.clear(peer, request)

    async def Prefetch(self, request: store.PrefetchRequest, context: Context) -> store.PrefetchResponse:
        async with self._call(context) as peer:
            return await self._handlers.prefetch(peer, request)

    async def Info(self, request: store.InfoRequest, context: Context) -> store.NodeInfo:
        async with self._entrance.call(context):
            return self._handlers.info()

    async def Lookup(self, request: store.LookupRequest, context: Context) -> store.LookupResponse:
        async with self._call(context) as peer:
            return await self._lookup(peer, request)

    async def _lookup(self, peer: Peer, request: store.LookupRequest) -> store.LookupResponse:
        opened = self._handlers.opened(peer, request.namespace)
        keys = self._handlers.keys(opened, request.chain)
        needs = convert.needs(request.needs, len(opened.shards))
        status, blocks, tiers, fetch_ns = self._host.bridge.core.lookup(opened.handle, keys, needs)
        if status == native.Status.STALE_NAMESPACE:
            raise NotOpen
        if blocks < len(keys) and self._host.cluster.is_clustered:
            found = await self._handlers.lookup_far(peer, request)
            if found.blocks > blocks:
                found.fetch_s += fetch_ns / 1e9
                return found
        return store.LookupResponse(
            blocks=blocks,
            tokens=blocks * opened.block_tokens,
            tiers=tiers,
            fetch_s=fetch_ns / 1e9,
            keys=keys.tobytes() if request.return_keys else b"",
        )

    async def Put(self, request_iterator: AsyncIterator[store.PutRequest], context: Context) -> store.PutResponse:
        async with self._call(context) as peer:
            with self._streams.taken(peer.tenants):
                first = await self._next(request_iterator)
                if first is None or first.WhichOneof("message") != "header":
                    raise ValueError("header: must be the first message")
                return await self._put(peer, first.header, request_iterator, context)

    async def _put(
        self, peer: Peer, header: store.PutHeader, messages: AsyncIterator[store.PutRequest], context: Context
    ) -> store.PutResponse:
        self._refuse_while_draining()
        if header.replicas > REPLICAS_MAX:
            raise ValueError(f"header.replicas: {header.replicas}, must be at most {REPLICAS_MAX}")
        opened = self._handlers.opened(peer, header.namespace)
        prefix = self._handlers.prefix(opened, header.chain, header.hints)
        put = PutStream(self._stream_host, opened, header, prefix)
        try:
            while (message := await self._next(messages)) is not None:
                if message.WhichOneof("message") != "data":
                    raise ValueError("data: only the first message is a header")
                if put.ended:
                    break  # what is still on its way is of no use
                self._refuse_while_draining()
                put.write(message.data.payload)
            answer = put.finish()
            if header.replicas > 1:
                await self._replicate(peer, header, prefix, answer, context)
            return answer
        finally:
            put.close()

    def _refuse_while_draining(self) -> None:
        """Also a stream that began before: a drain does not look at what comes after its end."""
        copies = self._handlers.copies
        if copies is not None and copies.drain.draining:
            raise refuse_draining()

    async def _replicate(
        self, peer: Peer, header: store.PutHeader, prefix: Prefix, answer: store.PutResponse, context: Context
    ) -> None:
        """Has other hosts copy the whole chain, as far as it is here, and says on how many its put blocks are then."""
        request = framed.ReplicateRequest(
            namespace=header.namespace,
            shard=header.shard,
            chain=store.Chain(keys=prefix.keys.tobytes(), parent=header.chain.parent, position=header.chain.position),
            hints=header.hints,
            replicas=header.replicas,
            deadline_ms=max(1, round(self._entrance.time_left(context) * 0.8e3)),
        )
        answer.hosts = (await self._handlers.replicate(peer, request)).hosts[header.first_block :]
        answer.replicas = min(answer.hosts, default=0)

    async def _next(self, messages: AsyncIterator[store.PutRequest]) -> store.PutRequest | None:
        try:
            async with asyncio.timeout(IDLE_S):
                return await anext(messages, None)
        except TimeoutError:
            raise TimeoutError(f"data: nothing came for {IDLE_S:.0f} s") from None

    async def Get(self, request: store.GetRequest, context: Context) -> None:  # type: ignore[override]
        async with self._call(context) as peer:
            with self._streams.taken(peer.tenants):
                opened = self._handlers.opened(peer, request.namespace)
                prefix = self._handlers.prefix(opened, request.chain, request.hints)
                get = GetStream(self._stream_host, opened, request, prefix)
                wait_s = self._wait_s(request.wait_ms, context)
                bring = self._handlers.bringer(opened, prefix, request, wait_s)
                try:
                    async for message in get.messages(wait_s, bring):
                        await context.write(message)
                finally:
                    get.close()

    def _wait_s(self, wait_ms: int, context: Context) -> float:
        """For promotions: what was asked, within the node's limit and half of the caller's deadline."""
        most = self._host.limits.hold_wait_ms_max / 1e3
        return min(wait_ms / 1e3 if wait_ms else most, most, self._entrance.time_left(context) / 2)

    async def Watch(self, request: store.WatchRequest, context: Context) -> None:  # type: ignore[override]
        async with self._entrance.call(context, endless=True) as peer:
            await tell_events(self._handlers, peer, request, context)


async def tell_events(handlers: Handlers, peer: Peer, request: store.WatchRequest, context: Context) -> None:
    """Until the reader goes: the batch that says where the stream begins, then what there is to tell.

    Not before this node knows what it holds: what an earlier life left is no news when its namespaces are open again,
    so whoever was told before that there is nothing would never hear of it. Raises Unavailable.
    """
    await handlers.host.cluster.surely()
    with contextlib.closing(handlers.watching(peer, request)) as watch:
        await _write(context, watch.begin(), HELD_READ_S if watch.busy else None)
        while True:
            batch = watch.step()
            if batch is not None:
                await _write(context, batch, HELD_READ_S if watch.busy else None)
            if watch.busy:
                await asyncio.sleep(0)
            else:
                await handlers.news.after(watch.sequence)


async def _write(context: Context, batch: store.WatchBatch, within_s: float | None) -> None:
    """Raises Rejected where nobody reads: who is being told what is held has one of few places (watching.py)."""
    try:
        async with asyncio.timeout(within_s):
            await context.write(batch)
    except TimeoutError:
        raise Rejected(f"held: nothing was read for {HELD_READ_S:.0f} s; come again", limit="held") from None


class GrpcServer:
    """Listens from `start` to `stop`, and is healthy from `open` on: on TCP where an address is given, and on a Unix
    socket that only its user opens.
    """

    def __init__(
        self, certificates: Certificates, guard: Guard, host: NodeHost, handlers: Handlers, unix_path: str
    ) -> None:
        self._certificates, self._host, self._unix_path = certificates, host, unix_path
        self._entrance = Entrance(guard, host.grpc.call_ms_max / 1e3, host.grpc.calls_max)
        self._store = StoreService(host, handlers, self._entrance)
        self._admin = AdminService(host, handlers, self._entrance)
        self._servers: list[grpc.aio.Server] = []
        self._health: health.aio.HealthServicer | None = None  # type: ignore[name-defined]
        self.addresses: tuple[str, ...] = ()

    async def start(self) -> None:
        """Raises Misconfigured where an address cannot be bound. The operators' socket has a server of its own, which
        nobody from elsewhere can keep busy.
        """
        if self._host.grpc.address != "none":
            _try(self._host.grpc.address)  # before anything is there that would have to be taken back
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        await self._tell_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        ours = self._server(None)
        addresses = [self._listen_unix(ours)]
        servers = [ours]
        if self._host.grpc.address != "none":
            # Twice what is admitted: who is refused is told so in our words, and by whom.
            others = self._server(2 * self._host.grpc.calls_max)
            addresses.append(self._listen_tcp(others, self._host.grpc.address))
            servers.append(others)
        for server in servers:
            await server.start()
            self._servers.append(server)
        self.addresses = tuple(addresses)

    async def open(self) -> None:
        """The node has joined: health watchers may send it calls."""
        await self._tell_health(health_pb2.HealthCheckResponse.SERVING)

    async def _tell_health(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        assert self._health is not None
        for name in ("", STORE_NAME, ADMIN_NAME):
            await self._health.set(name, status)

    def _server(self, calls_max: int | None) -> grpc.aio.Server:
        size = self._host.grpc.message_bytes_max
        server = grpc.aio.server(
            interceptors=[Turnstile(self._entrance)],
            maximum_concurrent_rpcs=calls_max,
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", 0),  # a second node on the port is an error, not a lottery
                ("grpc.keepalive_time_ms", 30_000),  # a peer that is gone without a word is noticed
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
        )
        services.add_StoreServicer_to_server(self._store, server)
        services.add_AdminServicer_to_server(self._admin, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (STORE_NAME, ADMIN_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server

    def _listen_unix(self, server: grpc.aio.Server) -> str:
        address = f"unix:{self._unix_path}"
        former = os.umask(0o177)  # nobody else may connect, not even between bind and chmod
        try:
            _bind(server, address, None)
        finally:
            os.umask(former)
        # The umask is the whole process's, and another thread may have set it between: the mode is not left to it.
        Path(self._unix_path).chmod(0o600)
        return address

    def _listen_tcp(self, server: grpc.aio.Server, address: str) -> str:
        port = _bind(server, address, self._certificates.credentials())
        return f"{address.rpartition(':')[0]}:{port}"

    def judge_again(self) -> int:
        """The access file is another: ends the calls under way of those who would be refused now, or be given
        something else. Returns how many.
        """
        return self._entrance.judge_again()

    async def stop(self) -> None:
        """Says so to health watchers, gives calls under way a moment, ends the rest. Idempotent."""
        servers, self._servers = self._servers, []
        if not servers:
            return
        if self._health is not None:
            await self._health.enter_graceful_shutdown()
        await asyncio.gather(*(server.stop(GRACE_S) for server in servers))
        Path(self._unix_path).unlink(missing_ok=True)  # noqa: ASYNC240 - the node is stopping


def _try(address: str) -> None:
    """Raises Misconfigured with the reason, which gRPC writes to standard error itself, in words of its own."""
    host, _, port = address.rpartition(":")
    reason = "no such host"
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        found, reason = [], str(getattr(error, "strerror", None) or error)
    for family, kind, protocol, _name, place in found:
        with socket.socket(family, kind, protocol) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(place)
                tried.listen(1)  # with SO_REUSEADDR only this tells that somebody listens there
            except OSError as error:
                reason = error.strerror or str(error)
            else:
                return
    raise Misconfigured(f"grpc.address = {address!r}: {CANNOT_BIND}: {reason}; choose another, or none")


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        port = server.add_secure_port(address, credentials) if credentials else server.add_insecure_port(address)
    except RuntimeError as error:
        raise Misconfigured(f"grpc.address = {address!r}: {CANNOT_BIND}") from error
    if port == 0:
        raise Misconfigured(f"grpc.address = {address!r}: {CANNOT_BIND}")
    return port
