"""One tenant of a real node takes all that it is given, of each limit that all share; the next one finds room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvstore.config import GrpcConfig, LimitsConfig
from kvstore.node import handlers
from kvstore.node.handlers import Handlers
from kvstore.node.node import Node
from kvstore.security import SecurityConfig
from kvstore.wire import services, store
from tests.integration.grpc_node import TIMEOUT_S, config_for, opened, refusal, running, tcp_address
from tests.integration.test_security_grpc import access_file, bearer
from tests.tokens import mint_token

TENANTS = ("acme", "zebra")
FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
LOOKUP = "/kvstore.v1.Store/Lookup"


Make = Callable[..., Awaitable["Rig"]]


class Rig:
    """A node of several tenants, each with a stub and a token."""

    def __init__(self, node: Node, channel: grpc.aio.Channel, tokens: dict[str, str]) -> None:
        self.node, self.channel = node, channel
        self.metadata = {tenant: bearer(token) for tenant, token in tokens.items()}
        self.stub = services.StoreStub(channel)

    async def open(self, tenant: str, model: str = "tiny") -> store.OpenNamespaceResponse:
        return await opened(self.stub, tenant, self.metadata[tenant], model=model)

    async def opens(self, tenant: str, most: int) -> int:
        """How many new namespaces it gets."""
        for i in range(most):
            try:
                await self.open(tenant, f"{tenant}-{i}")
            except grpc.aio.AioRpcError as error:
                code, detail = refusal(error)
                assert (code, detail.field) == (FULL, "namespaces_max") and "share" in detail.reason
                return i
        return most


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def started(tenants: tuple[str, ...] = TENANTS, limits: LimitsConfig | None = None, **door: int) -> Rig:
            minted = {tenant: mint_token(tenant, [tenant]) for tenant in tenants}
            security = SecurityConfig(access_file=access_file(tmp_path, *(entry for _, entry in minted.values())))
            grpc_door = GrpcConfig(address="127.0.0.1:0", **door)  # type: ignore[arg-type]
            config = config_for(tmp_path, security=security, limits=limits, door=grpc_door)
            node = await stack.enter_async_context(running(config))
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(tcp_address(node)))
            return Rig(node, channel, {tenant: token for tenant, (token, _) in minted.items()})

        yield started


async def test_namespaces(make: Make) -> None:
    rig = await make(limits=LimitsConfig(namespaces_max=8))
    assert await rig.opens("acme", 8) == 6
    assert (await rig.open("acme", "acme-0")).digest, "what is open is opened again"
    again = await rig.open("acme", "acme-1")
    await rig.stub.Clear(store.ClearRequest(namespace=again.digest), metadata=rig.metadata["acme"], timeout=TIMEOUT_S)
    with pytest.raises(grpc.aio.AioRpcError):  # to clear is no way round
        await rig.open("acme", "one more")
    assert (await rig.open("acme", "acme-1")).generation == 1
    assert await rig.opens("zebra", 8) == 2


async def test_one_tenant_alone_has_it_all(make: Make) -> None:
    rig = await make(tenants=("acme",), limits=LimitsConfig(namespaces_max=8), calls_max=4)
    for i in range(8):
        await rig.open("acme", str(i))
    watches = [rig.stub.Watch(store.WatchRequest(), metadata=rig.metadata["acme"]) for _ in range(4)]
    for watch in watches:
        await watch.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.open("acme")
    code, detail = refusal(caught.value)
    assert (code, detail.field, detail.reason) == (FULL, "calls_max", "4 are under way")


async def silence() -> AsyncIterator[bytes]:
    await asyncio.Event().wait()
    yield b""


async def ended(calls: Sequence[grpc.aio.Call], count: int) -> list[grpc.aio.Call]:
    """Those that have ended, once so many have: exactly so many, as far as can be seen."""
    async with asyncio.timeout(TIMEOUT_S):
        while sum(call.done() for call in calls) < count:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    done = [call for call in calls if call.done()]
    assert len(done) == count, f"{len(done)} of {len(calls)} have ended"
    return done


async def test_calls_although_nothing_is_ever_said_in_them(make: Make) -> None:
    rig = await make(calls_max=8)
    calls = [rig.channel.stream_unary(LOOKUP)(silence(), metadata=rig.metadata["acme"]) for _ in range(8)]
    refused = await ended(calls, 2)
    assert {await call.code() for call in refused} == {FULL}
    assert "calls_max: this tenant's share" in str(await refused[0].details())
    assert (await rig.open("zebra")).digest
    for call in calls:
        call.cancel()


async def test_calls_that_anybody_may_make_leave_room_for_ours(make: Make) -> None:
    """Health and reflection ask nobody who they are, and a Watch of the health has no end."""
    rig = await make(calls_max=8)
    health = health_pb2_grpc.HealthStub(rig.channel)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(12)]
    refused = await ended(watches, 10)
    assert {await watch.code() for watch in refused} == {FULL}
    kept = [watch for watch in watches if not watch.done()]
    assert len(kept) == 2
    assert (await rig.open("acme")).digest
    kept[0].cancel()
    for _ in range(200):
        try:
            answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
            break
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.02)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    kept[1].cancel()


async def test_streams(make: Make) -> None:
    rig = await make(streams_max=4)
    puts = [rig.stub.Put(silence(), metadata=rig.metadata["acme"]) for _ in range(4)]
    (refused,) = await ended(puts, 1)
    assert await refused.code() == FULL and "streams_max: this tenant's share" in str(await refused.details())
    other = rig.stub.Put(silence(), metadata=rig.metadata["zebra"])
    await asyncio.sleep(0.3)
    assert not other.done(), "zebra finds a place"
    for put in (*puts, other):
        put.cancel()


async def test_prefetches(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(handlers, "PREFETCHES_MAX", 4)
    monkeypatch.setattr(Handlers, "_found", lambda *_: (1, bytes([2])))  # it lies in files
    monkeypatch.setattr(Handlers, "_bring_up", forever)
    rig = await make()

    async def prefetches(tenant: str) -> int:
        ns = await rig.open(tenant)
        request = store.PrefetchRequest(namespace=ns.digest, chain=store.Chain(keys=bytes(32)))
        for i in range(5):
            try:
                await rig.stub.Prefetch(request, metadata=rig.metadata[tenant], timeout=TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                assert refusal(error)[0] == FULL and refusal(error)[1].field == "prefetches_max"
                return i
        return 5

    assert [await prefetches(tenant) for tenant in ("acme", "zebra", "acme")] == [3, 1, 0]
