"""Which endpoint of etcd is asked next, where a watch and a call are let down by one together."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from kvstore.directory.etcd_client import EtcdClient
from kvstore.errors import Unavailable
from kvstore.wire import etcd

NONE = grpc.aio.Metadata()
DEAD = grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, NONE, NONE, "Connection reset", None)


class Stub:
    """In place of etcd's: a watch that ends with its connection, and what else happens right before that."""

    def __init__(self, meanwhile: Any) -> None:
        self._meanwhile = meanwhile

    def __call__(self, _: grpc.aio.Channel) -> Stub:
        return self

    def Watch(self, **_: object) -> Stub:  # noqa: N802 - as generated
        return self

    async def write(self, _: object) -> None: ...

    async def read(self) -> None:
        await self._meanwhile()
        raise DEAD

    def cancel(self) -> None: ...


@pytest.mark.parametrize("together", [True, False])
async def test_an_endpoint_that_lets_down_two_is_left_once(monkeypatch: pytest.MonkeyPatch, together: bool) -> None:
    client = EtcdClient(["127.0.0.1:1", "127.0.0.1:2"])

    async def died(channel: grpc.aio.Channel, **_: object) -> None:
        if channel is first:
            raise DEAD

    async def meanwhile() -> None:
        if together:
            await client._call(died)

    first = client._open()
    monkeypatch.setattr(etcd, "WatchStub", Stub(meanwhile))
    with pytest.raises(Unavailable):
        async for _ in client.watch(b"here", 1, 1):
            pass
    assert client.endpoint == "127.0.0.1:2"
    assert not client._left, "nobody asks by the first connection any more"
    await client.close()
