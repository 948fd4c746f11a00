"""What a face asks of the way to its node.

`unix:PATH` and `HOST:PORT` are the same framed door. Who is trusted at a Unix socket maps the node's memory, and bytes
move by one copy; all others' move by transfers (away.py). Of several nodes each has a channel (spread.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from kvstore.client.address import TcpAddress, UnixAddress, parse_all
from kvstore.client.async_socket import AsyncSocketChannel
from kvstore.client.away import AwayAsync
from kvstore.client.socket import SocketChannel
from kvstore.client.spread import AsyncSpreadChannel, SpreadChannel
from kvstore.config import TransferConfig

if TYPE_CHECKING:
    from kvstore.client.calls import Times
    from kvstore.client.space import Space
    from kvstore.client.steps import Answer, Limits, Step
    from kvstore.client.tls import Tls


class Channel(Protocol):
    """Thread-safe."""

    def check(self) -> None:
        """RuntimeError where a call could not work: closed, or made before a fork."""
        ...

    def limits(self, deadline: float) -> Limits:
        """Of the node; connects if need be. `deadline` is a reading of time.monotonic(). Raises KvStoreError."""
        ...

    def open(self, space: Space, times: Times) -> bool:
        """Opens the namespace. Whether it is the one it was. Raises KvStoreError, ValueError."""
        ...

    def perform(self, space: Space, step: Step, times: Times) -> Answer:
        """One step. Never raises what an answer can say."""
        ...

    def call(self, method: int, body: bytes, times: Times) -> bytes:
        """A rare verb. Raises what its answer says."""
        ...

    def close(self) -> None: ...


class AsyncChannel(Protocol):
    """The same, awaited, on one event loop."""

    async def limits(self, deadline: float) -> Limits: ...
    async def open(self, space: Space, times: Times) -> bool: ...
    async def perform(self, space: Space, step: Step, times: Times) -> Answer: ...
    async def call(self, method: int, body: bytes, times: Times) -> bytes: ...
    async def close(self) -> None: ...


def connect(
    address: str, token: str | None, tls: Tls | None, transfers: TransferConfig | None, *, verify: bool
) -> Channel:
    """Connects to nothing yet. ValueError names the address; Misconfigured a file of `tls`."""
    config, nodes = transfers or TransferConfig(), _parsed(address, tls)
    channels = [SocketChannel(at, token, tls, config, verify=verify, workers=1) for at in nodes]
    return SpreadChannel([str(at) for at in nodes], channels) if len(nodes) > 1 else channels[0]


def connect_async(
    address: str, token: str | None, tls: Tls | None, transfers: TransferConfig | None, *, verify: bool, workers: int
) -> AsyncChannel:
    """workers: threads that copy, where this process maps the node's memory."""
    config, nodes = transfers or TransferConfig(), _parsed(address, tls)
    channels = [
        AsyncSocketChannel(
            SocketChannel(at, token, tls, config, verify=verify, workers=workers),
            AwayAsync(tls, config, verify=verify),
        )
        for at in nodes
    ]
    return AsyncSpreadChannel([str(at) for at in nodes], channels) if len(nodes) > 1 else channels[0]


def _parsed(address: str, tls: Tls | None) -> list[UnixAddress | TcpAddress]:
    nodes = parse_all(address)
    if tls is not None and isinstance(nodes[0], UnixAddress):
        raise ValueError("tls: is for HOST:PORT; a Unix socket stays on the machine")
    return nodes
