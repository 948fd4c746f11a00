"""A node's gRPC door on an event loop: the async twin of grpc.py, over grpc.aio. Copies and hashes in the loop's
thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from kvstore.client import rpc
from kvstore.client.calls import own_loop
from kvstore.client.grpc import Line
from kvstore.client.socket import DONE, as_told
from kvstore.client.space import Known
from kvstore.client.steps import Answer, Fetch, Limits, Lookup, Put, Reopen, Reopened, Report, Step, Told, fail
from kvstore.errors import KvStoreError
from kvstore.wire import services, store

if TYPE_CHECKING:
    from kvstore.client.calls import Times
    from kvstore.client.space import Space
    from kvstore.client.tls import Tls


class AsyncGrpcChannel:
    """One event loop's. The seam of kvstore.client.async_socket.AsyncChannel."""

    def __init__(self, address: str, token: str | None, tls: Tls | None, *, verify: bool) -> None:
        self._line = Line(address, token, tls, verify=verify)
        self._channel: grpc.aio.Channel | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def _stub(self) -> services.StoreAsyncStub:
        """Made on the loop that it is first used on."""
        self._line.check()
        loop = own_loop(self._loop)
        if self._channel is None:
            self._loop = loop
            line = self._line
            if line.credentials is not None:
                self._channel = grpc.aio.secure_channel(line.address, line.credentials, options=line.options)
            else:
                self._channel = grpc.aio.insecure_channel(line.address, options=line.options)
        return services.StoreStub(self._channel)

    async def close(self) -> None:
        if self._line.closing() and self._channel is not None:
            await self._channel.close(None)

    async def limits(self, deadline: float) -> Limits:
        return rpc.limits_of(await self._info(deadline))

    async def _info(self, deadline: float) -> store.NodeInfo:
        if self._line.info is None:
            try:
                info = await self._stub().Info(store.InfoRequest(), **self._line.how(deadline))
            except grpc.RpcError as error:
                raise fail(rpc.told_of(error)) from error
            self._line.info = info
        return self._line.info

    # ---- steps ------------------------------------------------------------------------------------------------------

    async def perform(self, space: Space, step: Step, times: Times) -> Answer:  # noqa: PLR0911 - a step a line
        """One step. Never raises what an answer can say."""
        if isinstance(step, Report):
            return DONE  # the node has counted it
        try:
            if isinstance(step, Reopen):
                return Reopened(same=await self.open(space, times))
            if isinstance(step, Fetch):
                return await self._fetch(space, step, times)
            if isinstance(step, Put):
                return await self._put(space, step, times)
            if isinstance(step, Lookup):
                request = rpc.lookup_request(space, step)
                return rpc.lookup_told(await self._stub().Lookup(request, **self._line.how(times.deadline)))
        except grpc.RpcError as error:
            return rpc.told_of(error)
        except KvStoreError as error:
            return as_told(error)
        return rpc.UNIX_ONLY

    async def _fetch(self, space: Space, step: Fetch, times: Times) -> Told:
        landing = rpc.Landing(step.places, space.part_bytes[step.shard], verify=self._line.verify)
        request = rpc.get_request(space, step, await self.limits(times.deadline), times)
        call = self._stub().Get(request, **self._line.how(times.deadline))
        try:
            async for message in call:
                landing.take(message)
                if landing.ended:
                    break
        except grpc.RpcError as error:
            return rpc.told_of(error, landing)
        finally:
            call.cancel()
        return landing.told()

    async def _put(self, space: Space, step: Put, times: Times) -> Told:
        stub = self._stub()
        held = (await stub.Lookup(rpc.held_request(space, step), **self._line.how(times.deadline))).blocks
        if held == step.keys.shape[0]:
            return rpc.held_told(held)
        sent = rpc.sending(space, step, held, (await self._info(times.deadline)).message_bytes_max)

        async def messages() -> AsyncIterator[store.PutRequest]:
            for message in sent.messages():
                yield message

        return rpc.put_told(sent, await stub.Put(messages(), **self._line.how(times.deadline)))

    async def call(self, method: int, body: bytes, times: Times) -> bytes:
        """A rare verb. Raises what its answer says."""
        stub, how = self._stub(), self._line.how(times.deadline)
        try:
            if method == store.METHOD_CLEAR:
                return (await stub.Clear(store.ClearRequest.FromString(body), **how)).SerializeToString()
            if method == store.METHOD_PREFETCH:
                return (await stub.Prefetch(store.PrefetchRequest.FromString(body), **how)).SerializeToString()
        except grpc.RpcError as error:
            raise fail(rpc.told_of(error)) from error
        raise ValueError(f"method: {method} does not travel over gRPC")

    async def open(self, space: Space, times: Times) -> bool:
        """Opens the namespace. Whether it is the one it was. Raises KvStoreError, ValueError."""
        request = store.OpenNamespaceRequest.FromString(space.request)
        try:
            response = await self._stub().OpenNamespace(request, **self._line.how(times.deadline))
        except grpc.RpcError as error:
            raise fail(rpc.told_of(error)) from error
        self._line.info = response.node
        return space.adopt(Known.of(response))
