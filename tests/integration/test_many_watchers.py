"""Many readers of events over the framed socket: one look at a time for all, and all hear of what happens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc.aio
import pytest

from kvstore import native
from kvstore.node import news
from kvstore.wire import services, store
from tests.integration.grpc_node import TIMEOUT_S, config_for, keys_for, opened, put, running, tcp_address

CONNECTIONS, WATCHES = 5, 40  # 200 in all


async def test_an_event_reaches_all_watchers_and_they_look_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    class Counted(news.News):
        def _look(self, loop: asyncio.AbstractEventLoop) -> None:
            looks.append(len(self._waiting))
            super()._look(loop)

    monkeypatch.setattr("kvstore.node.handlers.News", Counted)
    async with running(config_for(tmp_path)) as node, grpc.aio.insecure_channel(tcp_address(node)) as channel:
        stub = services.StoreStub(channel)
        ns = await opened(stub)
        sessions = [await asyncio.to_thread(native.Session, str(node.socket)) for _ in range(CONNECTIONS)]
        now = store.Cursor(epoch=node.core.incarnation, sequence=node.core.event_sequence)
        ask = store.WatchRequest(after=now, wait_ms=10_000).SerializeToString()
        for session in sessions:
            for token in range(WATCHES):
                session.submit_call(token, store.METHOD_WATCH, ask, TIMEOUT_S)
        async with asyncio.timeout(TIMEOUT_S):
            while looks[-1:] != [CONNECTIONS * WATCHES]:
                await asyncio.sleep(0.01)
            before = len(looks)
            while len(looks) < before + 5:
                await asyncio.sleep(0.01)
        assert set(looks[before:]) == {CONNECTIONS * WATCHES}, "one look for all of them"
        keys = keys_for(ns.seed, 3)
        await put(stub, ns.digest, keys)
        told: list[list[bytes]] = []
        async with asyncio.timeout(TIMEOUT_S):
            while len(told) < CONNECTIONS * WATCHES:
                for session in sessions:
                    for result in session.take_completions():
                        batch = store.WatchBatch.FromString(result.body)
                        told.append([event.key for event in batch.events])
                await asyncio.sleep(0.005)
        assert told == [keys[: len(got)] for got in told] and all(told)
        for session in sessions:
            session.close()
