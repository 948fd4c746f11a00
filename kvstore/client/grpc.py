"""A node's gRPC door as a channel, in the calling thread: the same steps as the socket's, their bytes in messages.

gRPC connects, and connects again, by itself; a call that finds nobody ends Unavailable at once or at its deadline.
"""

from __future__ import annotations

import logging
import os
import time
from typing import TYPE_CHECKING, Final, TypedDict

import grpc

from kvstore.client import rpc
from kvstore.client.calls import check_usable
from kvstore.client.socket import DONE, as_told
from kvstore.client.space import Known
from kvstore.client.steps import Answer, Fetch, Limits, Lookup, Put, Reopen, Reopened, Report, Step, Told, fail
from kvstore.errors import KvStoreError
from kvstore.security import is_local
from kvstore.wire import services, store

if TYPE_CHECKING:
    from kvstore.client.calls import Times
    from kvstore.client.space import Space
    from kvstore.client.tls import Tls

log = logging.getLogger(__name__)

LEFT_S_MIN: Final = 0.001  # gRPC takes no deadline that has passed


class How(TypedDict):
    """How a call is made."""

    timeout: float
    metadata: tuple[tuple[str, str], ...]


class Line:
    """What both faces have: address, credentials, options, and what the node said of itself."""

    def __init__(self, address: str, token: str | None, tls: Tls | None, *, verify: bool) -> None:
        if token is not None and tls is None and not is_local(address):
            log.warning("%s: the token travels in the clear; give tls=", address)
        self.address, self.verify = address, verify
        self.credentials = tls.credentials() if tls is not None else None
        self.metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        self.info: store.NodeInfo | None = None
        self._pid, self._closed = os.getpid(), False

    @property
    def options(self) -> list[tuple[str, int]]:
        """Messages may be as large as a node may be told to make them; the node says how large it takes them. After a
        failure gRPC tries again once a growing pause is over, as the socket's channel does.
        """
        return [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]

    def check(self) -> None:
        """RuntimeError where a call could not work: closed, or another process's client."""
        check_usable(self._pid, self._closed)

    def how(self, deadline: float) -> How:
        """A call that ends by then, a reading of time.monotonic()."""
        return {"timeout": max(LEFT_S_MIN, deadline - time.monotonic()), "metadata": self.metadata}

    def closing(self) -> bool:
        """Whether there is something to close."""
        former, self._closed = self._closed, True
        return not former and self._pid == os.getpid()


class GrpcChannel:
    """Thread-safe. The seam of kvstore.client.socket.SocketChannel."""

    def __init__(self, address: str, token: str | None, tls: Tls | None, *, verify: bool) -> None:
        self._line = Line(address, token, tls, verify=verify)
        credentials, options = self._line.credentials, self._line.options
        if credentials is not None:
            self._channel = grpc.secure_channel(address, credentials, options=options)
        else:
            self._channel = grpc.insecure_channel(address, options=options)
        self._stub = services.StoreStub(self._channel)

    def check(self) -> None:
        self._line.check()

    def close(self) -> None:
        if self._line.closing():
            self._channel.close()

    def limits(self, deadline: float) -> Limits:
        self.check()
        return rpc.limits_of(self._info(deadline))

    def _info(self, deadline: float) -> store.NodeInfo:
        if self._line.info is None:
            try:
                self._line.info = self._stub.Info(store.InfoRequest(), **self._line.how(deadline))
            except grpc.RpcError as error:
                raise fail(rpc.told_of(error)) from error
        return self._line.info

    # ---- steps ------------------------------------------------------------------------------------------------------

    def perform(self, space: Space, step: Step, times: Times) -> Answer:  # noqa: PLR0911 - a step a line
        """One step. Never raises what an answer can say."""
        if isinstance(step, Report):
            return DONE  # the node has counted it
        try:
            if isinstance(step, Reopen):
                return Reopened(same=self.open(space, times))
            if isinstance(step, Fetch):
                return self._fetch(space, step, times)
            if isinstance(step, Put):
                return self._put(space, step, times)
            if isinstance(step, Lookup):
                request = rpc.lookup_request(space, step)
                return rpc.lookup_told(self._stub.Lookup(request, **self._line.how(times.deadline)))
        except grpc.RpcError as error:
            return rpc.told_of(error)
        except KvStoreError as error:
            return as_told(error)
        return rpc.UNIX_ONLY

    def _fetch(self, space: Space, step: Fetch, times: Times) -> Told:
        landing = rpc.Landing(step.places, space.part_bytes[step.shard], verify=self._line.verify)
        request = rpc.get_request(space, step, self.limits(times.deadline), times)
        call = self._stub.Get(request, **self._line.how(times.deadline))
        try:
            for message in call:
                landing.take(message)
                if landing.ended:
                    break
        except grpc.RpcError as error:
            return rpc.told_of(error, landing)
        finally:
            call.cancel()  # type: ignore[no-untyped-call]
        return landing.told()

    def _put(self, space: Space, step: Put, times: Times) -> Told:
        held = self._stub.Lookup(rpc.held_request(space, step), **self._line.how(times.deadline)).blocks
        if held == step.keys.shape[0]:
            return rpc.held_told(held)
        sent = rpc.sending(space, step, held, self._info(times.deadline).message_bytes_max)
        return rpc.put_told(sent, self._stub.Put(sent.messages(), **self._line.how(times.deadline)))

    def call(self, method: int, body: bytes, times: Times) -> bytes:
        """A rare verb. Raises what its answer says."""
        self.check()
        how = self._line.how(times.deadline)
        try:
            if method == store.METHOD_CLEAR:
                return self._stub.Clear(store.ClearRequest.FromString(body), **how).SerializeToString()
            if method == store.METHOD_PREFETCH:
                return self._stub.Prefetch(store.PrefetchRequest.FromString(body), **how).SerializeToString()
        except grpc.RpcError as error:
            raise fail(rpc.told_of(error)) from error
        raise ValueError(f"method: {method} does not travel over gRPC")

    def open(self, space: Space, times: Times) -> bool:
        """Opens the namespace. Whether it is the one it was. Raises KvStoreError, ValueError."""
        self.check()
        request = store.OpenNamespaceRequest.FromString(space.request)
        try:
            response = self._stub.OpenNamespace(request, **self._line.how(times.deadline))
        except grpc.RpcError as error:
            raise fail(rpc.told_of(error)) from error
        self._line.info = response.node
        return space.adopt(Known.of(response))
