"""Watch: what was stored and removed, in order, resumable, and honest about what was missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from kvstore import AsyncClient, Client, KVLayout
from kvstore.config import GrpcConfig, LimitsConfig
from kvstore.node import watching
from kvstore.node.node import Node
from kvstore.wire import admin, services, store
from tests.integration.grpc_node import TIMEOUT_S, config_for, keys_for, opened, put, running, tcp_address


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    config = config_for(tmp_path, limits=LimitsConfig(events_max=50), door=GrpcConfig(address="127.0.0.1:0"))
    async with running(config) as started:
        yield started


@pytest.fixture
async def stub(node: Node) -> AsyncIterator[services.StoreAsyncStub]:
    async with grpc.aio.insecure_channel(tcp_address(node)) as channel:
        yield services.StoreStub(channel)


class Watching:
    """A Watch, read event by event."""

    def __init__(self, stub: services.StoreAsyncStub, request: store.WatchRequest) -> None:
        self._call = stub.Watch(request)
        self.cursor = store.Cursor()
        self.gaps = 0

    async def batch(self) -> store.WatchBatch:
        async with asyncio.timeout(TIMEOUT_S):
            batch = await self._call.read()
        assert isinstance(batch, store.WatchBatch)
        assert batch.cursor.epoch != self.cursor.epoch or batch.cursor.sequence >= self.cursor.sequence
        self.cursor = batch.cursor
        self.gaps += batch.gap
        return batch

    async def events(self, count: int) -> list[store.Event]:
        told: list[store.Event] = []
        while len(told) < count:
            told += (await self.batch()).events
        return told

    def close(self) -> None:
        self._call.cancel()


async def test_what_happens_is_told_in_order(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 4)
    watching = Watching(stub, store.WatchRequest())
    assert not (await watching.batch()).events  # where it begins
    await put(stub, ns.digest, keys)
    told = await watching.events(4)
    assert [event.kind for event in told] == [store.Event.STORED] * 4
    assert [event.key for event in told] == keys
    assert [event.parent for event in told] == [b"", *keys[:3]]
    assert {(event.namespace, event.shard, event.tier) for event in told} == {(ns.digest, 0, store.TIER_MEMORY)}
    assert [event.sequence for event in told] == list(range(told[0].sequence, told[0].sequence + 4))

    async with grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel:
        retire = admin.RetireRequest(namespace=ns.digest, chain=store.Chain(keys=keys[3]))
        assert (await services.AdminStub(channel).Retire(retire, timeout=TIMEOUT_S)).slots == 1
    (removed,) = await watching.events(1)
    assert (removed.kind, removed.key) == (store.Event.REMOVED, keys[3])
    watching.close()


async def test_a_clear_is_told_however_late_one_asks(stub: services.StoreAsyncStub) -> None:
    """By the digest that it had, when there is another generation already."""
    ns = await opened(stub)
    watching = Watching(stub, store.WatchRequest())
    await watching.batch()
    watching.close()
    await put(stub, ns.digest, keys_for(ns.seed, 3))
    await stub.Clear(store.ClearRequest(namespace=ns.digest), timeout=TIMEOUT_S)
    fresh = await opened(stub)
    await put(stub, fresh.digest, keys_for(fresh.seed, 1))
    late = Watching(stub, store.WatchRequest(after=watching.cursor))
    told: list[store.Event] = []
    while not told or told[-1].namespace != fresh.digest:
        told += await late.events(1)
    stored = [(store.Event.STORED, ns.digest)] * 3
    cleared = [(event.kind, event.namespace) for event in told if event.kind == store.Event.CLEARED]
    assert [(event.kind, event.namespace) for event in told[:3]] == stored
    assert cleared == [(store.Event.CLEARED, ns.digest)]
    late.close()


async def test_a_watch_resumes_where_it_was_left(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 6)
    first = Watching(stub, store.WatchRequest(namespace=ns.digest))
    await first.batch()
    await put(stub, ns.digest, keys[:3])
    await first.events(3)
    first.close()
    await put(stub, ns.digest, keys)
    second = Watching(stub, store.WatchRequest(namespace=ns.digest, after=first.cursor, events_max=2))
    told = await second.events(3)
    assert [event.key for event in told] == keys[3:] and second.gaps == 0
    second.close()


async def test_metas_are_told(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    watching = Watching(stub, store.WatchRequest())
    await watching.batch()
    keys = keys_for(ns.seed, 2)
    header = store.PutHeader(
        namespace=ns.digest, shard=1, chain=store.Chain(keys=b"".join(keys)), meta=[b"", b"m" * 1024]
    )
    data = store.PutRequest(data=store.PutData(payload=bytes(8192)))
    await stub.Put(iter([store.PutRequest(header=header), data]), timeout=TIMEOUT_S)
    assert [event.meta for event in await watching.events(2)] == [b"", b"m" * 1024]
    watching.close()


@pytest.mark.parametrize("face", ["sync", "async"])
async def test_what_a_client_says_of_its_blocks_is_told(node: Node, stub: services.StoreAsyncStub, face: str) -> None:
    """The key before the first of a chain cut out of the middle, and metas: of a put and of a reservation."""
    watching = Watching(stub, store.WatchRequest())
    await watching.batch()
    layout = KVLayout.uniform(
        engine="e", model="m", revision="1", dtype="float32", block_tokens=4, layers=2, kv_heads=2, head_dim=64
    )
    metas = [bytes([65 + i]) for i in range(6)]

    def waiting() -> list[bytes]:
        with Client(f"unix:{node.socket}") as client:
            ns = client.namespace(layout)
            chain, size = ns.chain(range(24)), ns.shard_bytes[0]
            ns.put(chain[:2], bytes(2 * size), metas=metas[:2])
            ns.put(chain[2:4], bytes(2 * size), parent=chain[1], position=2, metas=metas[2:4])
            with ns.reserve(chain[4:], parent=chain[3], position=4, metas=metas[4:]) as slots:
                slots.seal()
            return [key.tobytes() for key in chain]

    async def awaited() -> list[bytes]:
        async with AsyncClient(f"unix:{node.socket}") as client:
            ns = await client.namespace(layout)
            chain, size = ns.chain(range(24)), ns.shard_bytes[0]
            await ns.put(chain[:2], bytes(2 * size), metas=metas[:2])
            await ns.put(chain[2:4], bytes(2 * size), parent=chain[1], position=2, metas=metas[2:4])
            async with await ns.reserve(chain[4:], parent=chain[3], position=4, metas=metas[4:]) as slots:
                await slots.seal()
            return [key.tobytes() for key in chain]

    keys = await (awaited() if face == "async" else asyncio.to_thread(waiting))
    told = await watching.events(6)
    assert [event.key for event in told] == keys
    assert [event.parent for event in told] == [b"", *keys[:5]]
    assert [event.meta for event in told] == metas
    watching.close()


async def test_a_reader_that_is_too_slow_is_told_so(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    first = Watching(stub, store.WatchRequest())
    await first.batch()
    first.close()
    await put(stub, ns.digest, keys_for(ns.seed, 80))  # the node keeps 50
    late = Watching(stub, store.WatchRequest(after=first.cursor))
    told = await late.events(50)
    assert late.gaps == 1 and told[-1].key == keys_for(ns.seed, 80)[-1]
    late.close()


async def test_another_life_of_the_node_is_a_gap(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        watching = Watching(services.StoreStub(channel), store.WatchRequest())
        await watching.batch()
        watching.close()
    async with running(config) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        stub = services.StoreStub(channel)
        again = Watching(stub, store.WatchRequest(after=watching.cursor))
        assert (await again.batch()).gap and again.cursor.epoch != watching.cursor.epoch
        ns = await opened(stub)
        await put(stub, ns.digest, keys_for(ns.seed, 1))
        assert (await again.events(1))[0].kind == store.Event.STORED
        again.close()


class Router(Watching):
    """What a router keeps of one node: every block's shards and tiers, from the one request that it sends each time it
    connects.
    """

    def __init__(self, stub: services.StoreAsyncStub, cursor: store.Cursor | None = None, **only: bytes) -> None:
        super().__init__(stub, store.WatchRequest(held=True, after=cursor, **only))  # type: ignore[arg-type]
        self.blocks: dict[tuple[bytes, bytes, int, int], bytes] = {}
        self.order: list[bytes] = []

    async def batch(self) -> store.WatchBatch:
        async with asyncio.timeout(TIMEOUT_S):
            batch = await self._call.read()
        assert isinstance(batch, store.WatchBatch)
        if batch.gap:
            self.gaps += 1
            self.blocks.clear()
        if batch.held:
            assert not batch.HasField("cursor"), "who is cut off here has no place to go on from"
        else:
            self.cursor = batch.cursor
        for event in batch.events:
            at = (event.namespace, event.key, event.shard, event.tier)
            self.order.append(event.key)
            if event.kind == store.Event.STORED:
                self.blocks[at] = event.meta
            elif event.kind == store.Event.REMOVED:
                self.blocks.pop(at, None)
            else:
                self.blocks = {at: meta for at, meta in self.blocks.items() if at[0] != event.namespace}
        return batch

    async def told(self) -> Router:
        """Reads until all that is held was told."""
        begun = await self.batch()
        assert begun.held
        while (await self.batch()).held:
            pass
        return self

    async def until(self, keys: set[bytes]) -> None:
        while {at[1] for at in self.blocks} != keys:
            await self.batch()


async def retire(node: Node, digest: bytes, key: bytes) -> None:
    async with grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel:
        request = admin.RetireRequest(namespace=digest, chain=store.Chain(keys=key))
        await services.AdminStub(channel).Retire(request, timeout=TIMEOUT_S)


async def test_a_router_learns_the_present_and_then_the_news(node: Node, stub: services.StoreAsyncStub) -> None:
    """The node keeps 50 events and holds 180 blocks: more than any replay of events could tell."""
    ns = await opened(stub)
    keys = keys_for(ns.seed, 180)
    await put(stub, ns.digest, keys)
    await retire(node, ns.digest, keys[7])
    router = await Router(stub).told()
    assert not router.gaps and {at[1] for at in router.blocks} == {*keys} - {keys[7]}
    assert router.order == [key for key in keys if key != keys[7]], "parents before children"
    await retire(node, ns.digest, keys[8])
    more = keys_for(ns.seed, 3, b"more")
    await put(stub, ns.digest, more)
    await router.until({*keys, *more} - {keys[7], keys[8]})
    assert router.cursor.sequence == node.core.event_sequence
    router.close()

    again = Router(stub, router.cursor)  # goes on: nothing is told twice
    assert not (await again.batch()).held
    await retire(node, ns.digest, more[0])
    await again.batch()
    assert again.order == [more[0]] and not again.gaps
    again.close()


async def test_a_router_that_lost_its_place_is_told_what_is_held(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 90)
    begun = await Router(stub).told()
    begun.close()
    await put(stub, ns.digest, keys)  # the node keeps 50 events
    router = Router(stub, begun.cursor)
    router.blocks[ns.digest, b"what was", 0, 1] = b""
    first = await router.batch()
    assert not first.held and not first.gap, "its place was one; that what follows is lost is found out then"
    await router.until(set(keys))
    assert router.gaps == 1
    router.close()


async def test_a_router_sees_a_clear_and_what_others_hold(stub: services.StoreAsyncStub) -> None:
    ns, other = await opened(stub), await opened(stub, model="other")
    keys, others = keys_for(ns.seed, 5), keys_for(other.seed, 4)
    await put(stub, ns.digest, keys)
    await put(stub, other.digest, others)
    every = await Router(stub).told()
    one = await Router(stub, namespace=other.digest).told()
    assert {at[1] for at in every.blocks} == {*keys, *others} and {at[1] for at in one.blocks} == {*others}
    await stub.Clear(store.ClearRequest(namespace=ns.digest), timeout=TIMEOUT_S)
    await every.until({*others})
    late = await Router(stub).told()
    assert {at[1] for at in late.blocks} == {*others}, "what was cleared is held by nobody"
    for each in (every, one, late):
        each.close()


async def test_metas_are_told_of_what_is_held_and_of_what_goes(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    (key,) = keys_for(ns.seed, 1)
    header = store.PutHeader(namespace=ns.digest, shard=1, chain=store.Chain(keys=key), meta=[b"hash 17"])
    data = store.PutRequest(data=store.PutData(payload=bytes(4096)))
    await stub.Put(iter([store.PutRequest(header=header), data]), timeout=TIMEOUT_S)
    router = await Router(stub).told()
    assert router.blocks == {(ns.digest, key, 1, store.TIER_MEMORY): b"hash 17"}
    await retire(node, ns.digest, key)
    batch = await router.batch()
    assert [(event.kind, event.meta) for event in batch.events] == [(store.Event.REMOVED, b"hash 17")]
    router.close()


async def test_after_a_restart_a_router_is_told_what_is_still_held(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config, keep=True) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        stub = services.StoreStub(channel)
        ns = await opened(stub)
        keys = keys_for(ns.seed, 20)
        await put(stub, ns.digest, keys)
        router = await Router(stub).told()
        router.close()
    async with running(config) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        router = await Router(services.StoreStub(channel), router.cursor).told()
        assert router.gaps == 1 and {at[1] for at in router.blocks} == set(keys)
        assert router.cursor.epoch == node.core.incarnation
        router.close()


async def test_tellings_have_a_limit_and_end_with_their_readers(
    stub: services.StoreAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "TELLINGS_MAX", 1)
    ns = await opened(stub)
    await put(stub, ns.digest, keys_for(ns.seed, 200))
    monkeypatch.setattr(watching, "HELD_SLOTS", 1)  # far from ended when the next one comes
    slow = Router(stub)
    await slow.batch()
    refused = Router(stub)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await refused.batch()
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    slow.close()
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            try:
                await (await Router(stub).told()).until({*keys_for(ns.seed, 200)})
                break
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.02)
