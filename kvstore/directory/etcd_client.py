"""A thin client of etcd v3 over grpc.aio: keys, leases, watches, users; several endpoints, one of them at a time.

Rules
- Every call has a deadline. A call that its endpoint does not answer is tried once at each other endpoint; then it is
  Unavailable, and the next call begins with the next endpoint. A write may so be made twice: callers write what may be.
- A watch resumes where its caller says, by revision. It ends by raising: Compacted where that revision is gone (list
  anew), Unavailable where the endpoint is, or where etcd lost its data and knows fewer revisions than its caller.
- A token that has run out is asked for anew, once a call. A wrong user or password is Misconfigured: waiting would
  not help.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from kvstore.errors import Misconfigured, Unavailable
from kvstore.wire import etcd

__all__ = ["Compacted", "EtcdClient", "Events", "Listing", "range_end"]

log = logging.getLogger(__name__)
T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

CALL_S: Final = 3.0
KEEPALIVE: Final = (  # so that a connection whose other end has vanished is noticed; etcd allows one each 5 s
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 4_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 3_000),  # of one attempt, its TLS and greeting among it: how long it may take
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # a channel made anew connects anew
)
ELSEWHERE: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
    }
)
NO_SUCH_LEASE: Final = "requested lease not found"
WRONG_USER: Final = ("authentication failed", "user name is empty", "authentication is not enabled")


class Compacted(Exception):
    """The revision asked for is gone. `revision`: the oldest there is."""

    def __init__(self, revision: int) -> None:
        super().__init__(f"compacted up to revision {revision}")
        self.revision = revision


@dataclass(frozen=True, slots=True)
class Listing:
    """What lay under a prefix at one revision."""

    revision: int
    cluster: int
    kvs: tuple[etcd.kv.KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Events:
    """What happened up to `revision`, in order: key and value, or no value where it was deleted. Empty: nothing."""

    revision: int
    changes: tuple[tuple[bytes, etcd.kv.KeyValue | None], ...]


def range_end(prefix: bytes) -> bytes:
    """The first key behind all those that begin with the prefix."""
    bare = prefix.rstrip(b"\xff")
    return bare[:-1] + bytes([bare[-1] + 1]) if bare else b"\0"


class EtcdClient:
    """On one event loop, until `close`. endpoints: HOST:PORT. credentials: of TLS; None: clear text."""

    def __init__(
        self,
        endpoints: Sequence[str],
        credentials: grpc.ChannelCredentials | None = None,
        user: tuple[str, str] | None = None,
        call_s: float = CALL_S,
    ) -> None:
        self._endpoints = tuple(endpoints)
        self._credentials, self._user, self._call_s = credentials, user, call_s
        self._at = 0
        self._channel: grpc.aio.Channel | None = None
        self._left: list[grpc.aio.Channel] = []  # of endpoints that were given up; a watch may still end on one
        self._token = ""

    @property
    def endpoint(self) -> str:
        """That the next call asks first."""
        return self._endpoints[self._at]

    async def close(self) -> None:
        channel, self._channel = self._channel, None
        for one in (*self._left, *((channel,) if channel else ())):
            await one.close(None)
        self._left.clear()

    # ---- keys -----------------------------------------------------------------------------------------------------

    async def listing(self, prefix: bytes, limit: int) -> Listing:
        """At most `limit` keys, in order."""
        request = etcd.rpc.RangeRequest(key=prefix, range_end=range_end(prefix), limit=limit)
        answer = await self._call(lambda channel, **call: etcd.KVStub(channel).Range(request, **call))
        return Listing(answer.header.revision, answer.header.cluster_id, tuple(answer.kvs))

    async def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        request = etcd.rpc.PutRequest(key=key, value=value, lease=lease)
        await self._call(lambda channel, **call: etcd.KVStub(channel).Put(request, **call))

    async def delete(self, key: bytes) -> bool:
        """Whether it was there."""
        request = etcd.rpc.DeleteRangeRequest(key=key)
        answer = await self._call(lambda channel, **call: etcd.KVStub(channel).DeleteRange(request, **call))
        return bool(answer.deleted)

    async def swap(self, key: bytes, value: bytes, lease: int = 0, *, revision: int = 0) -> etcd.kv.KeyValue | None:
        """Writes the key if it was last written at `revision` (0: if it is not there). None where it was; else what is
        there, without a value where nothing is.
        """
        is_as_said = etcd.rpc.Compare(
            key=key,
            result=etcd.rpc.Compare.EQUAL,
            target=etcd.rpc.Compare.MOD if revision else etcd.rpc.Compare.CREATE,
        )
        if revision:
            is_as_said.mod_revision = revision
        else:
            is_as_said.create_revision = 0
        put = etcd.rpc.PutRequest(key=key, value=value, lease=lease)
        look = etcd.rpc.RangeRequest(key=key)
        request = etcd.rpc.TxnRequest(
            compare=[is_as_said],
            success=[etcd.rpc.RequestOp(request_put=put)],
            failure=[etcd.rpc.RequestOp(request_range=look)],
        )
        answer = await self._call(lambda channel, **call: etcd.KVStub(channel).Txn(request, **call))
        if answer.succeeded:
            return None
        found = answer.responses[0].response_range.kvs if answer.responses else ()
        return found[0] if found else etcd.kv.KeyValue(key=key)

    async def compact(self, revision: int) -> None:
        request = etcd.rpc.CompactionRequest(revision=revision, physical=True)
        await self._call(lambda channel, **call: etcd.KVStub(channel).Compact(request, **call))

    # ---- leases ---------------------------------------------------------------------------------------------------

    async def grant(self, ttl_s: int) -> int:
        request = etcd.rpc.LeaseGrantRequest(TTL=ttl_s)
        answer = await self._call(lambda channel, **call: etcd.LeaseStub(channel).LeaseGrant(request, **call))
        if answer.error:
            raise Unavailable(f"etcd: {answer.error}")
        return int(answer.ID)

    async def revoke(self, lease: int) -> None:
        request = etcd.rpc.LeaseRevokeRequest(ID=lease)
        await self._call(lambda channel, **call: etcd.LeaseStub(channel).LeaseRevoke(request, **call))

    async def keep_alive(self, lease: int) -> int:
        """Seconds that it lives on from now; 0: there is no such lease any more."""
        request = etcd.rpc.LeaseKeepAliveRequest(ID=lease)

        async def once(channel: grpc.aio.Channel, **how: Any) -> int:
            call = etcd.LeaseStub(channel).LeaseKeepAlive(iter((request,)), **how)
            try:
                answer = await call.read()
            finally:
                call.cancel()
            if not isinstance(answer, etcd.rpc.LeaseKeepAliveResponse):
                raise Unavailable("etcd: ended a keepalive without an answer")
            return answer.TTL

        return await self._call(once)

    # ---- watches --------------------------------------------------------------------------------------------------

    async def watch(self, prefix: bytes, after: int, cluster: int) -> AsyncGenerator[Events, None]:
        """What happens under the prefix after a revision of that cluster. The first is told when the watch is in
        force. Raises Compacted, Unavailable, Misconfigured.
        """
        create = etcd.rpc.WatchCreateRequest(
            key=prefix, range_end=range_end(prefix), start_revision=after + 1, progress_notify=True
        )
        channel = self._open()
        try:
            metadata = await self._signed(channel)
            stub: Any = etcd.WatchStub(channel)  # whose types do not know that one may write by and by
            call = stub.Watch(metadata=metadata)
            try:
                async with asyncio.timeout(self._call_s):
                    await call.write(etcd.rpc.WatchRequest(create_request=create))
                    first = await call.read()
                if isinstance(first, etcd.rpc.WatchResponse) and first.canceled:
                    self._token = ""  # as etcd says that it knows the token no more: here alone without a status
                yield _begun(first, after, cluster)
                while True:
                    events = _told(await call.read(), after)
                    after = events.revision
                    yield events
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                self._token = ""
            else:
                await self._let_down_by(channel)
            raise _translated(error, self._endpoints) from error
        except (TimeoutError, asyncio.InvalidStateError) as error:
            await self._let_down_by(channel)
            raise Unavailable("etcd: a watch was not answered") from error
        except asyncio.CancelledError as error:
            if _is_cancelled():
                raise
            raise Unavailable("etcd: the connection of a watch was given up") from error

    # ---- how ------------------------------------------------------------------------------------------------------

    def _open(self) -> grpc.aio.Channel:
        if self._channel is None:
            at = self.endpoint
            if self._credentials is not None:
                self._channel = grpc.aio.secure_channel(at, self._credentials, KEEPALIVE)
            else:
                self._channel = grpc.aio.insecure_channel(at, KEEPALIVE)
        return self._channel

    def _next(self) -> None:
        """The next endpoint, over a new connection; it may be the same one."""
        self._at = (self._at + 1) % len(self._endpoints)
        channel, self._channel = self._channel, None
        if channel is not None:
            self._left.append(channel)

    async def _let_down_by(self, channel: grpc.aio.Channel) -> None:
        """The next endpoint is asked from now on, unless somebody has gone on from that channel already."""
        if channel is self._channel:
            self._next()
        with contextlib.suppress(Exception):
            await self._tidy()

    async def _tidy(self) -> None:
        left, self._left = self._left, []
        for channel in left:
            await channel.close(None)

    async def _signed(self, channel: grpc.aio.Channel) -> Metadata:
        """The token as metadata, asked for where there is none yet."""
        if self._user is None:
            return ()
        if not self._token:
            name, password = self._user
            request = etcd.rpc.AuthenticateRequest(name=name, password=password)
            answer = await etcd.AuthStub(channel).Authenticate(request, timeout=self._call_s)
            self._token = answer.token
        return (("token", self._token),)

    async def _call(self, verb: Callable[..., Awaitable[T]]) -> T:
        """verb: (channel, timeout=, metadata=). Raises Unavailable, Misconfigured."""
        last: grpc.aio.AioRpcError | None = None
        again = True  # with a new token
        tries = len(self._endpoints)
        while tries:
            channel = self._open()
            try:
                metadata = await self._signed(channel)
                return await verb(channel, timeout=self._call_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                last = error
                if again and self._token and _is_stale(error):
                    again, self._token = False, ""
                    continue
                if error.code() not in ELSEWHERE or NO_SUCH_LEASE in (error.details() or ""):
                    break
                tries -= 1
                await self._let_down_by(channel)
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                raise Unavailable("etcd: the connection of a call was given up") from error
        assert last is not None
        raise _translated(last, self._endpoints) from last


def _is_cancelled() -> bool:
    """This task, that is. To a call whose channel is closed under it grpc says CancelledError, too."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _is_stale(error: grpc.aio.AioRpcError) -> bool:
    """Whether a token is not known any more: etcd has been started anew, or it was not used for long."""
    return error.code() is grpc.StatusCode.UNAUTHENTICATED or "invalid auth token" in (error.details() or "")


def _translated(error: grpc.aio.AioRpcError, endpoints: Sequence[str]) -> Exception:
    text = error.details() or error.code().name
    who = f"etcd at {', '.join(endpoints)}"
    if error.code() is grpc.StatusCode.PERMISSION_DENIED or any(why in text for why in WRONG_USER):
        return Misconfigured(f"cluster.etcd_user: {who} refuses: {text}")
    return Unavailable(f"{who}: {text}")


def _begun(answer: object, after: int, cluster: int) -> Events:
    """The first answer of a watch. An etcd that has lost what we know of, an older copy or an empty one, would tell
    nothing until its revisions have caught up with ours.
    """
    events = _told(answer, after)
    assert isinstance(answer, etcd.rpc.WatchResponse)
    if answer.header.revision < after or answer.header.cluster_id != cluster:
        raise Compacted(answer.header.revision)
    return events


def _told(answer: object, after: int) -> Events:
    """One answer of a watch. Raises what it says."""
    if not isinstance(answer, etcd.rpc.WatchResponse):
        raise Unavailable("etcd: ended a watch")
    if answer.compact_revision:
        raise Compacted(answer.compact_revision)
    if answer.canceled:
        raise Unavailable(f"etcd: ended a watch: {answer.cancel_reason}")
    changes = tuple((event.kv.key, event.kv if event.type == etcd.kv.Event.PUT else None) for event in answer.events)
    # Only what was told moves the mark, and progress, which says that nothing before it is still to come. The answer to
    # the creation does not: what happened since `after` comes behind it.
    told = max((event.kv.mod_revision for event in answer.events), default=0)
    progress = answer.header.revision if not answer.created and not answer.events else 0
    return Events(max(after, told, progress), changes)
