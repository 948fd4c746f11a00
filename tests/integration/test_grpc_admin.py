"""The Admin service, over the operators' Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from kvstore.config import LimitsConfig
from kvstore.node import administration
from kvstore.node.bridge import CoreBridge
from kvstore.node.node import Node
from kvstore.wire import admin, services, store
from tests.integration.grpc_node import (
    BLOCK,
    PARTS,
    TIMEOUT_S,
    config_for,
    get,
    keys_for,
    opened,
    put,
    refusal,
    running,
    tcp_address,
)

if TYPE_CHECKING:
    Stubs = tuple[services.StoreAsyncStub, services.AdminAsyncStub]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with running(config_for(tmp_path, limits=LimitsConfig(pinned_bytes_max=20 * BLOCK + 100_000))) as started:
        yield started


@pytest.fixture
async def stubs(node: Node) -> AsyncIterator[tuple[services.StoreAsyncStub, services.AdminAsyncStub]]:
    async with grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel:
        yield services.StoreStub(channel), services.AdminStub(channel)


async def test_status_and_tiers(node: Node, stubs: Stubs) -> None:
    user, operator = stubs
    ns = await opened(user)
    await put(user, ns.digest, keys_for(ns.seed, 3))
    status = await operator.Status(admin.StatusRequest(), timeout=TIMEOUT_S)
    assert status.node.node == node.name and status.namespaces == 1 and status.uptime_s > 0
    assert f"unix:{node.socket}" in status.listening and tcp_address(node) in status.listening
    assert not status.tls and not status.insecure and status.event_sequence >= 3
    (memory,) = (await operator.Tiers(admin.TiersRequest(), timeout=TIMEOUT_S)).tiers
    assert (memory.tier, memory.slots_sealed, memory.used_bytes) == (store.TIER_MEMORY, 3, 3 * BLOCK)
    assert memory.capacity_bytes == 32 << 20 and 0 < memory.free_bytes < memory.capacity_bytes
    assert "evicted_clean" in memory.counters and memory.index_bytes > 0


async def test_hits_are_counted_once_a_get_by_namespace_and_family(stubs: Stubs) -> None:
    user, operator = stubs
    ns = await opened(user, "acme")
    keys = keys_for(ns.seed, 10)
    await put(user, ns.digest, keys[:6])
    chain = store.Chain(keys=b"".join(keys))
    await user.Lookup(store.LookupRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)
    for _ in range(3):
        await get(user, store.GetRequest(namespace=ns.digest, chain=chain, hints=store.Hints(family="system prompt")))
    (row,) = (await operator.Hits(admin.HitsRequest(), timeout=TIMEOUT_S)).rows
    assert (row.namespace, row.tenant, row.model, row.block_tokens) == (ns.digest, "acme", "tiny", ns.block_tokens)
    assert (row.blocks_asked, row.blocks_memory, row.blocks_file, row.blocks_object) == (30, 18, 0, 0)
    (family,) = (await operator.Families(admin.FamiliesRequest(), timeout=TIMEOUT_S)).rows
    assert (family.family, family.tenant, family.blocks_asked, family.blocks_memory) == (
        "system prompt",
        "acme",
        30,
        18,
    )
    await get(user, store.GetRequest(namespace=ns.digest, chain=chain, first_block=4))  # asks for the other six
    (row,) = (await operator.Hits(admin.HitsRequest(), timeout=TIMEOUT_S)).rows
    assert (row.blocks_asked, row.blocks_memory) == (36, 20)


async def test_namespaces_are_listed_as_they_were_described(stubs: Stubs) -> None:
    user, operator = stubs
    ns = await opened(user, "acme")
    await user.Clear(store.ClearRequest(namespace=ns.digest), timeout=TIMEOUT_S)
    fresh = await opened(user, "acme")
    (row,) = (await operator.Namespaces(admin.NamespacesRequest(), timeout=TIMEOUT_S)).rows
    assert (row.digest, row.tenant, row.generation) == (fresh.digest, "acme", 1)
    assert row.layout.engine == "test" and [list(s.part_bytes) for s in row.layout.shards] == [list(PARTS), [4096]]


async def test_locate_goes_on_behind_a_hole_and_retire_makes_one(stubs: Stubs) -> None:
    user, operator = stubs
    ns = await opened(user)
    keys = keys_for(ns.seed, 4)
    await put(user, ns.digest, keys)
    header = store.PutHeader(namespace=ns.digest, shard=1, chain=store.Chain(keys=keys[2]))
    data = store.PutRequest(data=store.PutData(payload=bytes(4096)))
    await user.Put(iter([store.PutRequest(header=header), data]), timeout=TIMEOUT_S)
    retire = admin.RetireRequest(namespace=ns.digest, chain=store.Chain(keys=keys[1]))
    assert (await operator.Retire(retire, timeout=TIMEOUT_S)).slots == 1
    chain = store.Chain(keys=b"".join(keys))
    places = await operator.Locate(admin.LocateRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)
    assert [place.memory_shards for place in places.blocks] == [0b01, 0, 0b11, 0b01]
    assert [place.key for place in places.blocks] == keys and not any(place.file_shards for place in places.blocks)


async def test_a_pin_holds_within_its_budget_until_it_is_let_go(node: Node, stubs: Stubs) -> None:
    user, operator = stubs
    ns = await opened(user)
    keys = keys_for(ns.seed, 10)
    await put(user, ns.digest, keys[:8])
    chain = store.Chain(keys=b"".join(keys))
    pin = await operator.Pin(admin.PinRequest(namespace=ns.digest, chain=chain, wait_ms=1), timeout=TIMEOUT_S)
    assert pin.pin and (pin.blocks, pin.bytes) == (8, 8 * BLOCK)
    assert node.core.stats(1)["pinned_bytes"] > 0
    others, given = keys_for(ns.seed, 30, b"others"), 0
    await put(user, ns.digest, others)
    with pytest.raises(grpc.RpcError) as caught:
        while True:  # what fits is given, the run cut short; then nothing more is
            wanted = store.Chain(keys=b"".join(others[given:]))
            request = admin.PinRequest(namespace=ns.digest, chain=wanted, wait_ms=1)
            more = await operator.Pin(request, timeout=TIMEOUT_S)
            assert more.blocks > 0 and given + more.blocks < 30
            given += more.blocks
    assert refusal(caught.value)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert refusal(caught.value)[1].field == "pinned_bytes_max"
    assert given > 0 and node.core.stats(1)["pinned_bytes"] == (8 + given) * BLOCK <= 20 * BLOCK + 100_000
    assert (await operator.Unpin(admin.UnpinRequest(pin=pin.pin), timeout=TIMEOUT_S)).released
    assert not (await operator.Unpin(admin.UnpinRequest(pin=pin.pin), timeout=TIMEOUT_S)).released
    assert node.core.stats(1)["pinned_bytes"] == given * BLOCK
    nothing = admin.PinRequest(namespace=ns.digest, chain=store.Chain(keys=bytes(32)), wait_ms=1)
    assert not (await operator.Pin(nothing, timeout=TIMEOUT_S)).pin


async def test_a_pin_lapses_by_itself_and_there_are_so_many_and_no_more(
    node: Node, stubs: Stubs, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, operator = stubs
    ns = await opened(user)
    keys = keys_for(ns.seed, 3)
    await put(user, ns.digest, keys)
    monkeypatch.setattr(administration, "PINS_MAX", 2)

    async def pin(key: bytes, duration_ms: int) -> int:
        request = admin.PinRequest(namespace=ns.digest, chain=store.Chain(keys=key), wait_ms=1, duration_ms=duration_ms)
        return (await operator.Pin(request, timeout=TIMEOUT_S)).pin

    short = await pin(keys[0], 1)
    while node.core.stats(1)["pinned_bytes"]:  # the suite's time limit ends it
        await asyncio.sleep(0.01)
    assert not (await operator.Unpin(admin.UnpinRequest(pin=short), timeout=TIMEOUT_S)).released, "it was over"
    assert await pin(keys[0], 600_000) and await pin(keys[1], 600_000)
    with pytest.raises(grpc.RpcError) as caught:
        await pin(keys[2], 600_000)
    assert (refusal(caught.value)[0], refusal(caught.value)[1].field) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "pins_max",
    )


async def test_a_pin_lasts_as_long_as_was_said_whatever_leases_may(tmp_path: Path) -> None:
    config = config_for(tmp_path, limits=LimitsConfig(lease_ms_max=50))
    async with running(config) as node, grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel:
        user = services.StoreStub(channel)
        ns = await opened(user)
        keys = keys_for(ns.seed, 3)
        await put(user, ns.digest, keys)
        request = admin.PinRequest(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys)), duration_ms=600_000)
        operator = services.AdminStub(channel)
        pin = await operator.Pin(request, timeout=TIMEOUT_S)
        await asyncio.sleep(0.3)
        assert node.core.stats(1)["pinned_bytes"] == 3 * BLOCK
        assert (await operator.Unpin(admin.UnpinRequest(pin=pin.pin), timeout=TIMEOUT_S)).released
        assert not node.core.stats(1)["pinned_bytes"]


async def test_a_pin_that_its_caller_gave_up_is_none(node: Node, stubs: Stubs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number was told to nobody, so nobody could end it."""
    user, operator = stubs
    ns = await opened(user)
    keys = keys_for(ns.seed, 4)
    await put(user, ns.digest, keys)
    fetch = CoreBridge.fetch

    async def of_two_windows(bridge: CoreBridge, owner: int, ns: int, shard: int, keys: Any, **how: Any) -> Any:
        if len(keys) == 2:  # the second one lies where it does not come from
            await asyncio.Event().wait()
        run = await fetch(bridge, owner, ns, shard, keys[:2], **how)
        assert run.hold and node.core.stats(1)["pinned_bytes"] == 2 * BLOCK
        return SimpleNamespace(status=run.status, hold=run.hold, offsets=run.offsets, window_full=True)

    monkeypatch.setattr(CoreBridge, "fetch", of_two_windows)
    request = admin.PinRequest(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys)), duration_ms=600_000)
    with pytest.raises(grpc.RpcError) as caught:
        await operator.Pin(request, timeout=0.5)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    while node.core.stats(1)["pinned_bytes"]:  # the suite's time limit ends it
        await asyncio.sleep(0.01)


async def test_verify_looks_at_the_namespace_it_is_told_and_no_other(stubs: Stubs) -> None:
    user, operator = stubs
    one, other = await opened(user), await opened(user, "acme")
    await put(user, one.digest, keys_for(one.seed, 3))
    await put(user, other.digest, keys_for(other.seed, 5))
    for what, blocks in (({"namespace": one.digest}, 3), ({"namespace": other.digest}, 5), ({}, 8)):
        async for told in operator.Verify(admin.VerifyRequest(**what), timeout=TIMEOUT_S):
            last = told
        assert last.done and last.blocks_checked == blocks


async def test_verify_finds_a_flipped_bit_and_drops_the_block(node: Node, stubs: Stubs) -> None:
    user, operator = stubs
    ns = await opened(user)
    keys = keys_for(ns.seed, 100)
    await put(user, ns.digest, keys)

    async def verified(**what: object) -> admin.VerifyProgress:
        corrupt: list[admin.CorruptBlock] = []
        async for told in operator.Verify(admin.VerifyRequest(**what), timeout=TIMEOUT_S):  # type: ignore[arg-type]
            corrupt += told.corrupt
        assert told.done
        return admin.VerifyProgress(
            blocks_checked=told.blocks_checked, bytes_checked=told.bytes_checked, corrupt=corrupt
        )

    clean = await verified()
    assert (clean.blocks_checked, clean.bytes_checked, len(clean.corrupt)) == (100, 100 * BLOCK, 0)
    some = await verified(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys[:7])))
    assert some.blocks_checked == 7

    rows, _ = node.core.scan(1, 0, 1000)
    wrong = next(i for i in range(len(rows.tickets)) if rows.keys[i].tobytes() == keys[42])
    node.segments.payload.memory[int(rows.offsets[wrong]) + 5000] ^= 0x10
    found = await verified()
    assert [(each.namespace, each.key, each.shard, each.tier) for each in found.corrupt] == [
        (ns.digest, keys[42], 0, store.TIER_MEMORY)
    ]
    chain = store.Chain(keys=b"".join(keys))
    assert (await user.Lookup(store.LookupRequest(namespace=ns.digest, chain=chain), timeout=TIMEOUT_S)).blocks == 42
    assert not (await verified()).corrupt


async def test_a_get_never_sends_a_flipped_bit(node: Node, stubs: Stubs) -> None:
    user, _ = stubs
    ns = await opened(user)
    keys = keys_for(ns.seed, 9)
    await put(user, ns.digest, keys)
    rows, _ = node.core.scan(1, 0, 1000)
    wrong = next(i for i in range(len(rows.tickets)) if rows.keys[i].tobytes() == keys[5])
    node.segments.payload.memory[int(rows.offsets[wrong])] ^= 1
    chain = store.Chain(keys=b"".join(keys))
    blocks, end = await get(user, store.GetRequest(namespace=ns.digest, chain=chain))
    assert len(blocks) == end.blocks == 5
    counters = node.core.counters()
    assert sum(row["failed"] for row in counters["namespaces"].values()) == 1


async def test_events_tell_of_every_tenant(stubs: Stubs) -> None:
    user, operator = stubs
    call = operator.Events(store.WatchRequest())
    await call.read()
    for tenant in ("a", "b"):
        ns = await opened(user, tenant)
        await put(user, ns.digest, keys_for(ns.seed, 1))
    seen: set[bytes] = set()
    while len(seen) < 2:
        batch = await call.read()
        assert isinstance(batch, store.WatchBatch)
        seen |= {event.namespace for event in batch.events}
    call.cancel()
