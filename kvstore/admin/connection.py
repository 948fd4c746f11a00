"""One gRPC connection of `store-admin` to a node, and its failures in words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc

from kvstore.client.address import UnixAddress, parse
from kvstore.client.tls import Tls
from kvstore.errors import KvStoreError, Misconfigured, Rejected, Unavailable
from kvstore.wire import errors, store
from kvstore.wire.services import AdminStub

CALL_S: Final = 10.0
OPERATORS: Final = ".grpc"  # what the operators' socket is called beside the framed one
# How gRPC says that it was answered in another language, did not believe the other end, or was cut off.
NOT_GRPC: Final = ("HTTP/2", "ALPN")
NOT_BELIEVED: Final = "CERTIFICATE_VERIFY_FAILED"
HUNG_UP: Final = ("Socket closed", "Connection reset by peer")


@dataclass(slots=True)
class Connection:
    """`address`: HOST:PORT of a gRPC door, or unix:PATH of the operators' socket or of the framed one beside it,
    which is the one that people know. Calls carry the token, where there is one, and end within CALL_S.
    """

    address: str
    token: str | None = None
    tls: Tls | None = None
    _channel: grpc.Channel | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Raises ValueError for what is no address."""
        where = parse(self.address)
        if isinstance(where, UnixAddress) and Path(where.path + OPERATORS).exists():
            self.address += OPERATORS

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

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """gRPC's failures as errors of ours, with the field that was wrong where the node named one."""
        try:
            yield
        except grpc.RpcError as failure:
            raise self._translate(failure) from failure

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()

    def _translate(self, failure: grpc.RpcError) -> KvStoreError | ValueError:
        code, text, told = failure.code(), failure.details() or "", False
        trailing: Any = failure.trailing_metadata()  # pairs, which the stubs do not know
        for key, value in trailing or ():
            if key == errors.DETAIL_KEY and isinstance(value, bytes):
                detail = store.ErrorDetail.FromString(value)
                text, told = f"{detail.field}: {detail.reason}" if detail.field else detail.reason, True
        match code:
            case grpc.StatusCode.INVALID_ARGUMENT | grpc.StatusCode.NOT_FOUND:
                return ValueError(text)
            case grpc.StatusCode.UNAUTHENTICATED | grpc.StatusCode.PERMISSION_DENIED:
                return Rejected(text + self._who_may())
            case grpc.StatusCode.RESOURCE_EXHAUSTED:
                return Rejected(text)
            case grpc.StatusCode.DEADLINE_EXCEEDED:
                return Unavailable(f"{self.address}: no answer within {CALL_S:.0f} s")
            case grpc.StatusCode.UNAVAILABLE:
                return Unavailable(f"{self.address}: {text if told else self._why(text)}")
        return Unavailable(f"{self.address}: {code.name}: {text}")

    def _who_may(self) -> str:
        if self.token is not None:
            return ""
        return "; --token-file shows one that has; the node's own user needs none at its socket (--address unix:PATH)"

    def _why(self, text: str) -> str:
        """What gRPC says of a connection that it did not get, in words that say what to do."""
        if any(word in text for word in NOT_GRPC):
            return "what answers there is no gRPC door; `kvstore node` says where it listens when it starts"
        if NOT_BELIEVED in text:
            return "its certificate is none that --tls-authority believes, or is another name's"
        if text.endswith(HUNG_UP) and self.tls is None:
            return "it hung up: does it speak TLS? --tls-authority says by whom its certificate is signed"
        return f"{text.rpartition(': ')[2].strip('[] ')} (does a node listen there?)"
