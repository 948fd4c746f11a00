"""What callers can make a node spend before it knows who they are, and what one tenant can make it spend at all."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import grpc.aio
import pytest

from kvstore.config import MIB, GrpcConfig
from kvstore.node import service
from kvstore.node.streams import PutStream
from kvstore.observe import http
from kvstore.security import SecurityConfig
from kvstore.wire import admin, services, store
from tests.integration.grpc_node import TIMEOUT_S, config_for, keys_for, opened, put_messages, running, tcp_address
from tests.integration.test_security_grpc import access_file, bearer, scraped
from tests.tokens import mint_token

LOOKUP = "/kvstore.v1.Store/Lookup"


async def nothing() -> AsyncIterator[bytes]:
    """A message that never comes."""
    await asyncio.Event().wait()
    yield b""


async def test_a_stranger_is_turned_away_before_it_has_sent_anything(tmp_path: Path) -> None:
    token, entry = mint_token("a", ["acme"])
    security = SecurityConfig(access_file=access_file(tmp_path, entry))
    async with (
        running(config_for(tmp_path, security=security)) as node,
        grpc.aio.insecure_channel(tcp_address(node)) as channel,
    ):
        for metadata in ((), bearer("wrong")):
            call = channel.stream_unary(LOOKUP)(nothing(), timeout=TIMEOUT_S, metadata=metadata)
            assert await call.code() == grpc.StatusCode.UNAUTHENTICATED
        known = channel.stream_unary(LOOKUP)(nothing(), timeout=0.2, metadata=bearer(token))
        assert await known.code() == grpc.StatusCode.DEADLINE_EXCEEDED  # its message is waited for


async def test_calls_at_once_are_limited_and_the_operator_comes_in_all_the_same(tmp_path: Path) -> None:
    async with (
        running(config_for(tmp_path, door=GrpcConfig(address="127.0.0.1:0", calls_max=2))) as node,
        grpc.aio.insecure_channel(tcp_address(node)) as channel,
        grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as ours,
    ):
        stub = services.StoreStub(channel)
        watches = [stub.Watch(store.WatchRequest(), timeout=TIMEOUT_S) for _ in range(2)]
        for watch in watches:
            await watch.read()
        with pytest.raises(grpc.RpcError) as caught:
            await opened(stub)
        assert isinstance(caught.value, grpc.aio.AioRpcError)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        told = await services.AdminStub(ours).Status(admin.StatusRequest(), timeout=TIMEOUT_S)
        assert told.node.node == node.name
        watches[0].cancel()
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    assert (await opened(stub)).digest
                    break
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.02)


async def test_a_block_that_no_slab_holds_is_not_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gathered: list[int] = []

    class Watched(PutStream):
        def write(self, payload: bytes) -> None:
            super().write(payload)
            gathered.append(sum(len(piece) for piece in self._pieces))

    monkeypatch.setattr(service, "PutStream", Watched)
    size = MIB
    async with (
        running(config_for(tmp_path, memory_bytes=size)) as node,
        grpc.aio.insecure_channel(tcp_address(node)) as channel,
    ):
        assert node.segments.size.slab_bytes < size
        stub = services.StoreStub(channel)
        ns = await opened(stub, shards=[store.Shard(part_bytes=[size])])
        header = store.PutHeader(namespace=ns.digest, chain=store.Chain(keys=b"".join(keys_for(ns.seed, 2))))
        answer = await stub.Put(put_messages(header, bytes(2 * size), cut=100_000), timeout=TIMEOUT_S)
        assert list(answer.statuses) == [store.PUT_TOO_LARGE] * 2
        assert len(gathered) > 20 and set(gathered) == {0}


async def test_a_refusal_names_no_path_of_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device", "/somewhere/secret")

    async with running(config_for(tmp_path)) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        stub = services.StoreStub(channel)
        ns = await opened(stub)
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.Clear(store.ClearRequest(namespace=ns.digest), timeout=TIMEOUT_S)
        monkeypatch.undo()
        assert isinstance(caught.value, grpc.aio.AioRpcError)
        told = f"{caught.value.details()} {caught.value.trailing_metadata()}"
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE and "not cleared" in told
        assert "/" not in told.replace("kvstore-", "")


async def test_a_long_label_is_not_kept(tmp_path: Path) -> None:
    async with running(config_for(tmp_path)) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        stub = services.StoreStub(channel)
        ns = await opened(stub)
        with pytest.raises(grpc.RpcError) as caught:
            request = store.PrefetchRequest(
                namespace=ns.digest, chain=store.Chain(keys=b""), hints=store.Hints(family="x" * MIB)
            )
            await stub.Prefetch(request, timeout=TIMEOUT_S)
        assert isinstance(caught.value, grpc.aio.AioRpcError)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "hints.family" in str(caught.value.details())


async def test_idle_connections_do_not_pile_up_at_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(config_for(tmp_path, metrics="127.0.0.1:0")) as node:
        at = urlsplit(node.telemetry.address)
        idle = [socket.create_connection(("127.0.0.1", at.port or 0)) for _ in range(http.CONNECTIONS_MAX)]
        try:
            one_more = socket.create_connection(("127.0.0.1", at.port or 0))
            one_more.settimeout(http.SOCKET_TIMEOUT_S / 2)  # less than an idle one has
            assert await asyncio.to_thread(one_more.recv, 1) == b""  # hung up on
            one_more.close()
            monkeypatch.setattr(http, "SOCKET_TIMEOUT_S", 0.0)  # as if they had had their time
            assert (await scraped(node))[0] == 200
        finally:
            for each in idle:
                each.close()


async def test_scrapes_that_have_ended_take_no_room(tmp_path: Path) -> None:
    async with running(config_for(tmp_path, metrics="127.0.0.1:0")) as node:
        for _ in range(3 * http.CONNECTIONS_MAX):
            assert (await scraped(node))[0] == 200


async def test_who_is_turned_away_is_counted_by_door(tmp_path: Path) -> None:
    token, entry = mint_token("a", ["acme"])
    scraper = mint_token("p", [], ["metrics"])
    security = SecurityConfig(access_file=access_file(tmp_path, entry, scraper[1]))
    async with running(config_for(tmp_path, security=security, metrics="127.0.0.1:0")) as node:
        async with grpc.aio.insecure_channel(tcp_address(node)) as channel:
            stub = services.StoreStub(channel)
            for metadata, tenant in (((), "acme"), (bearer("wrong"), "acme"), (bearer(token), "zebra")):
                with pytest.raises(grpc.RpcError):
                    await opened(stub, tenant, metadata)
        for wrong in (None, token):
            assert (await scraped(node, wrong))[0] in {401, 403}
        _, text = await scraped(node, scraper[0])
    told = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if "denied_total{" in line
    }
    assert told == {
        f'kvstore_calls_denied_total{{door="{door}",reason="{reason}"}}': count
        for door, reason, count in (
            ("framed", "unknown", 0),
            ("framed", "forbidden", 0),
            ("grpc", "unknown", 2),
            ("grpc", "forbidden", 1),
            ("metrics", "unknown", 1),
            ("metrics", "forbidden", 1),
        )
    }
