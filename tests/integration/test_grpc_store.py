"""The Store service, through a real channel to a real node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from kvstore import native
from kvstore.config import MIB, GrpcConfig, LimitsConfig
from kvstore.identity import chain_keys
from kvstore.node import service
from kvstore.node.bridge import CoreBridge
from kvstore.node.node import Node
from kvstore.wire import services, store
from tests.integration.grpc_node import (
    BLOCK,
    BLOCK_TOKENS,
    TIMEOUT_S,
    block_of,
    checksums,
    config_for,
    get,
    keys_for,
    opened,
    put,
    put_messages,
    refusal,
    running,
    tcp_address,
)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    door = GrpcConfig(address="127.0.0.1:0", message_bytes_max=256 << 10, streams_max=3, window_bytes=64 << 10)
    async with running(config_for(tmp_path, door=door, limits=LimitsConfig(keys_per_call_max=500))) as started:
        yield started


@pytest.fixture
async def stub(node: Node) -> AsyncIterator[services.StoreAsyncStub]:
    async with grpc.aio.insecure_channel(tcp_address(node)) as channel:
        yield services.StoreStub(channel)


def idle(node: Node) -> bool:
    """Nothing is reserved and nothing held: streams leave nothing behind."""
    stats = node.core.stats(1)
    return stats["slots_reserved"] == 0 and stats["holds"] == 0


# ---- one prompt ----------------------------------------------------------------------------------------------------


async def test_a_prompt_is_published_found_and_fetched(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    assert (await opened(stub, model="another")).handle == 0, "means something on a framed connection only"
    keys = keys_for(ns.seed, 20)
    chain = store.Chain(keys=b"".join(keys))
    empty = await stub.Lookup(store.LookupRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)
    assert empty.blocks == 0 and empty.tiers == b""

    told = await put(stub, ns.digest, keys[:12])
    assert (told.stored, told.held, told.pending, told.rejected) == (12, 0, 0, 0)
    assert told.statuses == bytes(12) and told.checksums == b"".join(checksums(block_of(key)) for key in keys[:12])

    found = await stub.Lookup(store.LookupRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)
    assert (found.blocks, found.tokens, found.tiers) == (12, 12 * BLOCK_TOKENS, bytes([store.TIER_MEMORY]) * 12)
    assert found.fetch_s > 0 and found.keys == b""

    # 20 blocks of 9 KiB are three windows of 64 KiB.
    blocks, end = await get(stub, store.GetRequest(namespace=ns.digest, chain=chain))
    assert blocks == [block_of(key) for key in keys[:12]] and (end.blocks, end.tokens) == (12, 12 * BLOCK_TOKENS)
    later, _ = await get(stub, store.GetRequest(namespace=ns.digest, chain=chain, first_block=9))
    assert later == blocks[9:]

    again = await put(stub, ns.digest, keys)
    assert (again.stored, again.held) == (8, 12) and again.statuses == bytes([1] * 12 + [0] * 8)
    assert idle(node)


async def test_a_put_is_counted_once_with_what_it_stored(node: Node, stub: services.StoreAsyncStub) -> None:
    def counted() -> tuple[int, int]:
        path = node.core.counters()["paths"]["put_grpc"]
        return sum(path["counts"]), path["bytes"]

    ns = await opened(stub)
    keys = keys_for(ns.seed, 5)
    await put(stub, ns.digest, keys[:3])
    assert counted() == (1, 3 * BLOCK)
    await put(stub, ns.digest, keys[:3])
    assert counted() == (1, 3 * BLOCK), "what is held already moved nothing into the store"
    await put(stub, ns.digest, keys)
    assert counted() == (2, 5 * BLOCK)


async def test_tokens_name_the_same_blocks_as_keys(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    tokens = list(range(50))
    keys = [key.tobytes() for key in chain_keys(ns.seed, tokens, ns.block_tokens)]
    await put(stub, ns.digest, keys)
    named = store.Chain(tokens=store.Tokens(ids=tokens))
    found = await stub.Lookup(
        store.LookupRequest(namespace=ns.digest, chain=named, return_keys=True), timeout=TIMEOUT_S
    )
    assert found.blocks == 12 and found.keys == b"".join(keys)
    rest = store.Chain(tokens=store.Tokens(ids=tokens[20:]), parent=keys[4], position=5)
    blocks, _ = await get(stub, store.GetRequest(namespace=ns.digest, chain=rest))
    assert blocks == [block_of(key) for key in keys[5:]]


async def test_shards_are_apart_and_needs_join_them(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 6)
    await put(stub, ns.digest, keys)
    header = store.PutHeader(namespace=ns.digest, shard=1, chain=store.Chain(keys=b"".join(keys[2:4])))
    payload = b"".join(block_of(key, 4096) for key in keys[2:4])
    assert (await stub.Put(put_messages(header, payload), timeout=TIMEOUT_S)).stored == 2

    async def boundary(*needs: store.Need) -> int:
        request = store.LookupRequest(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys)), needs=needs)
        return (await stub.Lookup(request, timeout=TIMEOUT_S)).blocks

    assert await boundary() == 6
    assert await boundary(store.Need(shard=1)) == 0
    assert await boundary(store.Need(), store.Need(shard=1, kind=store.Need.LAST, blocks=2)) == 4
    assert await boundary(store.Need(), store.Need(shard=1, kind=store.Need.STATE)) == 4
    blocks, _ = await get(stub, store.GetRequest(namespace=ns.digest, shard=1, chain=store.Chain(keys=keys[2])))
    assert blocks == [block_of(keys[2], 4096)]


async def test_a_block_larger_than_a_message(node: Node, stub: services.StoreAsyncStub) -> None:
    size = MIB + 12_345
    ns = await opened(stub, shards=[store.Shard(part_bytes=[size])])
    keys = keys_for(ns.seed, 2)
    payload = b"".join(block_of(key, size) for key in keys)
    header = store.PutHeader(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys)))
    assert (await stub.Put(put_messages(header, payload, 200_000), timeout=TIMEOUT_S)).stored == 2
    arrived = b""
    request = store.GetRequest(namespace=ns.digest, chain=header.chain)
    async for message in stub.Get(request, timeout=TIMEOUT_S):
        assert message.ByteSize() <= 256 << 10
        arrived += message.data.payload
    assert arrived == payload and idle(node)


# ---- puts that go wrong --------------------------------------------------------------------------------------------


async def test_bytes_that_differ_from_their_checksums_are_not_stored(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 4)
    payload = bytearray(b"".join(block_of(key) for key in keys))
    sums = b"".join(checksums(block_of(key)) for key in keys)
    payload[2 * BLOCK + 4500] ^= 1
    chain = store.Chain(keys=b"".join(keys))
    header = store.PutHeader(namespace=ns.digest, chain=chain, checksums=sums)
    told = await stub.Put(put_messages(header, bytes(payload)), timeout=TIMEOUT_S)
    assert told.statuses == bytes([store.PUT_STORED, store.PUT_STORED, store.PUT_CORRUPTED, store.PUT_REJECTED])
    assert (told.stored, told.rejected) == (2, 2)
    found = await stub.Lookup(store.LookupRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)
    assert found.blocks == 2 and idle(node)
    payload[2 * BLOCK + 4500] ^= 1
    told = await stub.Put(put_messages(header, bytes(payload)), timeout=TIMEOUT_S)
    assert (told.held, told.stored) == (2, 2)


async def test_a_stream_that_is_not_what_its_header_said(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 2)
    header = store.PutHeader(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys)))
    data = store.PutRequest(data=store.PutData(payload=bytes(BLOCK)))
    head = store.PutRequest(header=header)
    whole = [head, data, data]
    for messages, field in (
        ([], "header"),
        ([data], "header"),
        ([store.PutRequest()], "header"),
        ([head, data, head], "data"),
        ([head, store.PutRequest()], "data"),
        ([head, data], "data.payload"),
        ([head], "data.payload"),
        ([*whole, store.PutRequest(data=store.PutData(payload=b"x"))], "data.payload"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Put(iter(messages), timeout=TIMEOUT_S)
        code, detail = refusal(caught.value)
        assert (code, detail.field) == (grpc.StatusCode.INVALID_ARGUMENT, field), messages
    assert idle(node)


async def test_a_caller_that_vanishes_leaves_nothing(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 3)
    chain = store.Chain(keys=b"".join(keys))

    async def half() -> AsyncIterator[store.PutRequest]:
        yield store.PutRequest(header=store.PutHeader(namespace=ns.digest, chain=chain))
        yield store.PutRequest(data=store.PutData(payload=block_of(keys[0]) + b"part of the next"))
        await asyncio.sleep(3600)

    call = stub.Put(half(), timeout=TIMEOUT_S)
    while (await stub.Lookup(store.LookupRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)).blocks < 1:
        await asyncio.sleep(0.01)
    assert idle(node)  # even while it is there
    call.cancel()
    told = await put(stub, ns.digest, keys)
    assert (told.held, told.stored) == (1, 2)


async def test_a_caller_that_falls_silent_is_cut_off(
    node: Node, stub: services.StoreAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "IDLE_S", 0.1)
    ns = await opened(stub)

    async def silent() -> AsyncIterator[store.PutRequest]:
        chain = store.Chain(keys=bytes(32))
        yield store.PutRequest(header=store.PutHeader(namespace=ns.digest, chain=chain))
        await asyncio.sleep(3600)

    with pytest.raises(grpc.RpcError) as caught:
        await stub.Put(silent(), timeout=TIMEOUT_S)
    assert refusal(caught.value)[0] == grpc.StatusCode.DEADLINE_EXCEEDED


# ---- limits and refusals -------------------------------------------------------------------------------------------


async def test_refusals_name_the_field(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    chain = store.Chain(keys=bytes(64))
    invalid, limit = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED
    gone = grpc.StatusCode.NOT_FOUND
    cases = (
        (stub.Lookup, store.LookupRequest(namespace=b"x" * 32, chain=chain), gone, "namespace"),
        (stub.Lookup, store.LookupRequest(namespace=b"", chain=chain), gone, "namespace"),
        (stub.Lookup, store.LookupRequest(namespace=ns.digest), invalid, "chain"),
        (stub.Lookup, store.LookupRequest(namespace=ns.digest, chain=store.Chain(keys=b"x")), invalid, "chain.keys"),
        (
            stub.Lookup,
            store.LookupRequest(namespace=ns.digest, chain=chain, needs=[store.Need(shard=2)]),
            invalid,
            "needs[0].shard",
        ),
        (
            stub.Lookup,
            store.LookupRequest(namespace=ns.digest, chain=store.Chain(keys=bytes(32 * 501))),
            limit,
            "chain",
        ),
        (stub.Prefetch, store.PrefetchRequest(namespace=ns.digest, chain=chain, shards=[2]), invalid, "shards[0]"),
        (stub.Prefetch, store.PrefetchRequest(namespace=b"?", chain=chain), gone, "namespace"),
        (stub.Clear, store.ClearRequest(namespace=b"?" * 32), gone, "namespace"),
        (stub.OpenNamespace, store.OpenNamespaceRequest(), invalid, "layout.engine"),
    )
    for method, request, code, field in cases:
        with pytest.raises(grpc.RpcError) as caught:
            await method(request, timeout=TIMEOUT_S)
        assert refusal(caught.value)[0] == code and refusal(caught.value)[1].field == field, request
    for request, field in (
        (store.GetRequest(namespace=ns.digest, chain=chain, shard=2), "shard"),
        (store.GetRequest(namespace=ns.digest, chain=chain, first_block=3), "first_block"),
        (store.GetRequest(namespace=ns.digest, chain=chain, hints=store.Hints(priority=2)), "hints.priority"),
        (store.GetRequest(namespace=ns.digest, chain=chain, hints=store.Hints(family="f" * 256)), "hints.family"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await get(stub, request)
        assert refusal(caught.value)[1].field == field
    for header, field in (
        (store.PutHeader(namespace=ns.digest, chain=chain, shard=2), "header.shard"),
        (store.PutHeader(namespace=ns.digest, chain=chain, first_block=3), "header.first_block"),
        (store.PutHeader(namespace=ns.digest, chain=chain, checksums=b"x" * 8), "header.checksums"),
        (store.PutHeader(namespace=ns.digest, chain=chain, meta=[b"one"]), "header.meta"),
        (store.PutHeader(namespace=ns.digest, chain=chain, meta=[b"", b"x" * 1025]), "header.meta"),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Put(iter([store.PutRequest(header=header)]), timeout=TIMEOUT_S)
        assert refusal(caught.value)[1].field == field


async def test_a_message_beyond_the_limit_is_refused(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    header = store.PutHeader(namespace=ns.digest, chain=store.Chain(keys=bytes(32)))
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Put(put_messages(header, bytes(BLOCK * 60), 300 << 10), timeout=TIMEOUT_S)
    assert refusal(caught.value)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Info(store.InfoRequest(), timeout=TIMEOUT_S)).message_bytes_max == 256 << 10


async def test_streams_have_a_limit(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    header = store.PutHeader(namespace=ns.digest, chain=store.Chain(keys=bytes(32)))
    request = store.GetRequest(namespace=ns.digest, chain=header.chain)
    go_on = asyncio.Event()

    async def waiting() -> AsyncIterator[store.PutRequest]:
        yield store.PutRequest(header=header)
        await go_on.wait()
        yield store.PutRequest(data=store.PutData(payload=bytes(BLOCK)))

    async def whole() -> int:
        return (await stub.Put(waiting(), timeout=TIMEOUT_S)).statuses[0]

    calls = {asyncio.ensure_future(whole()) for _ in range(4)}
    (refused,), others = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    error = refused.exception()
    assert isinstance(error, grpc.RpcError)
    code, detail = refusal(error)
    assert (code, detail.field) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "streams_max")
    go_on.set()
    assert sorted([await call for call in others]) == [store.PUT_STORED, store.PUT_HELD, store.PUT_HELD]
    assert (await get(stub, request))[1].blocks == 1


async def test_a_get_asks_for_a_window_when_it_holds_none(
    node: Node, stub: services.StoreAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits for a slot while holding one."""
    ns = await opened(stub)
    keys = keys_for(ns.seed, 30)
    await put(stub, ns.digest, keys)
    held: list[int] = []
    fetch = CoreBridge.fetch

    async def watched(self: CoreBridge, *where: Any, **how: Any) -> native.FetchDone:
        held.append(node.core.stats(1)["holds"])
        return await fetch(self, *where, **how)

    monkeypatch.setattr(CoreBridge, "fetch", watched)
    blocks, _ = await get(stub, store.GetRequest(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys))))
    assert len(blocks) == 30
    assert len(held) > 3 and not any(held)


async def test_a_reader_that_leaves_holds_nothing(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 300)
    await put(stub, ns.digest, keys)
    call = stub.Get(store.GetRequest(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys))), timeout=TIMEOUT_S)
    await call.read()
    call.cancel()
    while not idle(node):  # the suite's time limit ends it
        await asyncio.sleep(0.01)


# ---- namespaces ----------------------------------------------------------------------------------------------------


async def test_a_clear_makes_blocks_unreachable_at_once_and_for_good(tmp_path: Path) -> None:
    config = config_for(tmp_path)
    async with running(config, keep=True) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        stub = services.StoreStub(channel)
        ns = await opened(stub)
        keys = keys_for(ns.seed, 3)
        await put(stub, ns.digest, keys)
        chain = store.Chain(keys=b"".join(keys))
        assert (await stub.Clear(store.ClearRequest(namespace=ns.digest), timeout=TIMEOUT_S)).generation == 1
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Lookup(store.LookupRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)
        assert refusal(caught.value)[0] == grpc.StatusCode.NOT_FOUND
        fresh = await opened(stub)
        assert fresh.generation == 1 and fresh.digest != ns.digest and fresh.seed != ns.seed
        found = await stub.Lookup(store.LookupRequest(namespace=fresh.digest, chain=chain), timeout=TIMEOUT_S)
        assert found.blocks == 0
        await put(stub, fresh.digest, keys[:2])
    async with running(config) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        stub = services.StoreStub(channel)
        # Known from the file, before anybody has opened it again.
        found = await stub.Lookup(store.LookupRequest(namespace=fresh.digest, chain=chain), timeout=TIMEOUT_S)
        assert found.blocks == 2
        with pytest.raises(grpc.RpcError):
            await stub.Lookup(store.LookupRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)
        assert (await opened(stub)).digest == fresh.digest


async def test_a_clear_that_cannot_be_recorded_is_not_done(node: Node, stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 1)
    await put(stub, ns.digest, keys)
    node.home.namespaces.with_suffix(".new").mkdir()  # where it would be written first
    with pytest.raises(grpc.RpcError) as caught:
        await stub.Clear(store.ClearRequest(namespace=ns.digest), timeout=TIMEOUT_S)
    assert refusal(caught.value)[0] == grpc.StatusCode.UNAVAILABLE
    assert (await get(stub, store.GetRequest(namespace=ns.digest, chain=store.Chain(keys=keys[0]))))[1].blocks == 1
    again = await opened(stub)
    assert (again.digest, again.generation) == (ns.digest, 0)


async def test_anything_in_a_description_makes_another_namespace(stub: services.StoreAsyncStub) -> None:
    digests = {(await opened(stub)).digest}
    for changes in (
        {"model": "other"},
        {"revision": "2"},
        {"dtype": "float16"},
        {"engine": "other"},
        {"block_tokens": 8},
        {"fingerprint": bytes(32)},
        {"shards": [store.Shard(part_bytes=[5000, 4096]), store.Shard(part_bytes=[4096], rank=1)]},
    ):
        digests.add((await opened(stub, **changes)).digest)
    assert len(digests) == 8


# ---- what else is served ---------------------------------------------------------------------------------------------


async def test_prefetch_says_how_much_is_there(stub: services.StoreAsyncStub) -> None:
    ns = await opened(stub)
    keys = keys_for(ns.seed, 5)
    await put(stub, ns.digest, keys[:3])
    chain = store.Chain(keys=b"".join(keys))
    request = store.PrefetchRequest(namespace=ns.digest, chain=chain, shards=[0])
    assert (await stub.Prefetch(request, timeout=TIMEOUT_S)).blocks == 3
    request = store.PrefetchRequest(namespace=ns.digest, chain=chain)  # shard 1 has nothing
    assert (await stub.Prefetch(request, timeout=TIMEOUT_S)).blocks == 0


async def test_health_and_reflection(node: Node) -> None:
    async with grpc.aio.insecure_channel(tcp_address(node)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "kvstore.v1.Store", "kvstore.v1.Admin"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        asked = [reflection_pb2.ServerReflectionRequest(list_services="")]
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        async for told in reflection.ServerReflectionInfo(iter(asked), timeout=TIMEOUT_S):
            names = {each.name for each in told.list_services_response.service}
            assert {"kvstore.v1.Store", "kvstore.v1.Admin", "grpc.health.v1.Health"} <= names


async def test_a_call_without_a_deadline_is_given_one(tmp_path: Path) -> None:
    door = GrpcConfig(address="127.0.0.1:0", call_ms_max=1_500)
    async with (
        running(config_for(tmp_path, door=door)) as node,
        grpc.aio.insecure_channel(tcp_address(node)) as channel,
    ):
        stub = services.StoreStub(channel)
        ns = await opened(stub)

        async def silent() -> AsyncIterator[store.PutRequest]:
            header = store.PutHeader(namespace=ns.digest, chain=store.Chain(keys=bytes(32)))
            yield store.PutRequest(header=header)
            await asyncio.sleep(3600)

        with pytest.raises(grpc.RpcError) as caught:
            await stub.Put(silent())
        assert refusal(caught.value)[0] == grpc.StatusCode.DEADLINE_EXCEEDED
