"""One gRPC connection of `store-admin` to a node, and its failures in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import grpc

from kvstore.client.tls import Tls
from kvstore.errors import KvStoreError, Misconfigured, Rejected, Unavailable
from kvstore.wire import errors, store
from kvstore.wire.services import AdminStub

CALL_S: Final = 10.0


@dataclass(slots=True)
class Connection:
    """`address`: unix:PATH or HOST:PORT. Calls carry the token, where there is one, and end within CALL_S."""

    address: str
    token: str | None = None
    tls: Tls | None = None
    _channel: grpc.Channel | None = field(default=None, init=False)

    def admin(self) -> AdminStub:
        if self._channel is None:
            if self.tls is not None:
                self._channel = grpc.secure_channel(self.address, self.tls.credentials())
            else:
                if self.token is not None and not self.address.startswith("unix:"):
                    raise Misconfigured("a token is only sent over TLS or a Unix socket: give --tls-authority")
                self._channel = grpc.insecure_channel(self.address)
        return AdminStub(self._channel)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """gRPC's failures as errors of ours, with the field that was wrong where the node named one."""
    try:
        yield
    except grpc.RpcError as failure:
        raise _translate(failure) from failure


def _translate(failure: grpc.RpcError) -> KvStoreError | ValueError:
    code, text = failure.code(), failure.details() or ""
    trailing: Any = failure.trailing_metadata()  # pairs, which the stubs do not know
    for key, value in trailing or ():
        if key == errors.DETAIL_KEY and isinstance(value, bytes):
            detail = store.ErrorDetail.FromString(value)
            text = f"{detail.field}: {detail.reason}" if detail.field else detail.reason
    if code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND}:
        return ValueError(text)
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED}:
        return Rejected(text)
    return Unavailable(f"{text or code.name} (is a node running there?)")
