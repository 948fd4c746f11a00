"""Families go by the text that a caller gave, whichever door it came by; by their number where it gave none to read."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from kvstore import AsyncClient, Client, Hints, KVLayout
from kvstore.node.node import Node
from kvstore.wire import admin, services
from tests.integration.grpc_node import TIMEOUT_S, config_for, running
from tests.integration.test_security_grpc import scraped

LAYOUT = KVLayout.uniform(
    engine="e", model="m", revision="1", dtype="float32", block_tokens=4, layers=2, kv_heads=2, head_dim=64
)
TEXT, NUMBER, UNREADABLE = "système-42", 0x1234, "a\nb"


async def ask_once(client: AsyncClient, hints: Hints) -> None:
    ns = await client.namespace(LAYOUT)
    await ns.get(ns.chain([1, 2, 3, 4]), bytearray(ns.shard_bytes[0]), hints=hints)


async def families(node: Node, asked: int) -> admin.FamiliesResponse:
    """Once so many blocks were asked for: what a client says of a get comes a moment after it."""
    async with grpc.aio.insecure_channel(f"unix:{node.admin_socket}") as channel, asyncio.timeout(TIMEOUT_S):
        while True:
            told = await services.AdminStub(channel).Families(admin.FamiliesRequest(), timeout=TIMEOUT_S)
            if sum(row.blocks_asked for row in told.rows) >= asked:
                return told
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("door", ["unix", "tcp"])
async def test_labels_are_text_over_either_door(tmp_path: Path, door: str) -> None:
    async with running(config_for(tmp_path, address="127.0.0.1:0", metrics="127.0.0.1:0")) as node:
        address = f"unix:{node.socket}" if door == "unix" else str(node.address)
        async with AsyncClient(address) as client:
            for family in (TEXT, NUMBER, UNREADABLE):
                await ask_once(client, Hints(family=family))
        told = await families(node, 3)
        _, scrape = await scraped(node)
    names = {row.family for row in told.rows}
    assert {TEXT, f"{NUMBER:016x}"} < names and len(names) == 3
    assert all(name.isprintable() for name in names)
    for name in names:
        assert f'kvstore_family_blocks_asked_total{{family="{name}",tenant="default"}} 1.0' in scrape


async def test_the_waiting_face_tells_labels_too(tmp_path: Path) -> None:
    def ask(address: str) -> None:
        with Client(address) as client:
            ns = client.namespace(LAYOUT)
            for _ in range(2):
                ns.get(ns.chain([1, 2, 3, 4]), bytearray(ns.shard_bytes[0]), hints=Hints(family=TEXT))

    async with running(config_for(tmp_path)) as node:
        await asyncio.to_thread(ask, f"unix:{node.socket}")
        told = await families(node, 2)
    assert [(row.family, row.blocks_asked) for row in told.rows] == [(TEXT, 2)]
