"""Blocks that memory keeps over a restart say whether a tier below has them. That is asked of the tier below."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from kvstore.config import MIB, FileConfig
from kvstore.node.node import Node
from kvstore.wire import services
from tests.integration.grpc_node import config_for, keys_for, opened, put, running, tcp_address


def clean(node: Node) -> int:
    """How many of memory's blocks it could drop without losing them."""
    return int(node.core.stats(1)["slots_sealed"]) - len(node.core.dirty_victims(1, 1 << 40))


@pytest.mark.parametrize("lost", [False, True])
async def test_what_files_have_lost_is_to_be_written_again(tmp_path: Path, lost: bool) -> None:
    files = FileConfig(bytes=16 * MIB, slab_bytes=4 * MIB, admission="always")
    config = replace(config_for(tmp_path, memory_bytes=2 * MIB), file=files)
    async with running(config, keep=True) as node:
        async with grpc.aio.insecure_channel(tcp_address(node)) as channel:
            stub = services.StoreStub(channel)
            ns = await opened(stub)
            for salt in range(20):
                await put(stub, ns.digest, keys_for(ns.seed, 10, bytes([salt])))
                await asyncio.sleep(0.02)
        while clean(node) < 20:  # the suite's time limit ends it
            await asyncio.sleep(0.01)
        before = clean(node)
    if lost:
        shutil.rmtree(tmp_path / "data" / "files")
    async with running(config) as node:
        if lost:
            # None, but for what it has written anew already, and what it is writing just now.
            async with asyncio.timeout(20):
                while clean(node) > int(node.core.stats(2)["slots_sealed"]):
                    await asyncio.sleep(0.01)
        else:
            assert clean(node) >= before / 2
