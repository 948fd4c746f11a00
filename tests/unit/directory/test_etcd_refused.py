"""An etcd that refuses this node for a while, as while its users are being changed, has lost it for no longer; and one
that has lost everything is told all of it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvstore.directory import etcd as membership
from kvstore.directory.base import Member, encode_member
from kvstore.directory.etcd import Etcd
from kvstore.directory.etcd_client import Compacted, Events, Listing
from kvstore.errors import Misconfigured, Unavailable
from kvstore.testing.exam_membership import SETTINGS, member
from kvstore.wire import etcd

PREFIX = "here"
LATEST_S = 10.0
REFUSED = Misconfigured("cluster.etcd_user: etcd at 127.0.0.1:1 refuses: authentication failed")


class Client:
    """An etcd of one node's making, in this process. Whatever is in `refused` is refused once."""

    def __init__(self) -> None:
        self.records: dict[bytes, etcd.kv.KeyValue] = {}
        self.revision = 1
        self.refused: list[str] = []
        self.lives = True
        self.news: asyncio.Queue[Events | Compacted] = asyncio.Queue()

    def _asked(self, verb: str) -> None:
        if verb in self.refused:
            self.refused.remove(verb)
            raise REFUSED

    async def grant(self, ttl_s: int) -> int:
        self.lives = True
        return ttl_s + 1

    async def keep_alive(self, lease: int) -> int:
        await asyncio.sleep(0)
        return lease if self.lives else 0

    async def swap(self, key: bytes, value: bytes, lease: int = 0, *, revision: int = 0) -> etcd.kv.KeyValue | None:
        self._asked("swap")
        if key in self.records and self.records[key].mod_revision != revision:
            return self.records[key]
        self.put(key, value)
        return None

    def put(self, key: bytes, value: bytes) -> etcd.kv.KeyValue:
        self.revision += 1
        self.records[key] = etcd.kv.KeyValue(key=key, value=value, mod_revision=self.revision)
        return self.records[key]

    async def listing(self, prefix: bytes, limit: int) -> Listing:
        self._asked("listing")
        return Listing(self.revision, 1, tuple(kv for key, kv in self.records.items() if key.startswith(prefix)))

    async def watch(self, prefix: bytes, after: int, cluster: int) -> AsyncIterator[Events]:
        while True:
            told = await self.news.get()
            if isinstance(told, Compacted):
                raise told
            yield told

    async def revoke(self, lease: int) -> None: ...

    async def close(self) -> None: ...


async def nobody(address: str) -> Member:
    raise Unavailable(f"{address}: nobody there")


@pytest.fixture
async def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    monkeypatch.setattr(membership, "PAUSE_S_MIN", 0.0)
    monkeypatch.setattr(membership, "PAUSE_S_MAX", 0.0)
    return Client()


async def joined(client: Any) -> Etcd:
    one = Etcd(client, PREFIX, 1.0, 0)
    await one.join(member(1), SETTINGS, nobody)
    return one


async def test_a_refused_listing_does_not_end_the_watch(client: Client) -> None:
    one = await joined(client)
    client.refused.append("listing")
    client.news.put_nowait(Compacted(9))
    key = f"{PREFIX}/nodes/{member(2).id.hex()}".encode()
    client.news.put_nowait(Events(99, ((key, client.put(key, encode_member(member(2)))),)))
    async with asyncio.timeout(LATEST_S):
        view = await one.changed(one.view.epoch)
    assert view.members == (member(2),) and not client.refused
    await one.leave()


async def test_a_record_that_was_refused_is_written_in_the_end(client: Client) -> None:
    one = await joined(client)
    ((key, _),) = [item for item in client.records.items() if b"/nodes/" in item[0]]
    del client.records[key]
    client.refused.append("swap")
    client.lives = False
    async with asyncio.timeout(LATEST_S):
        while key not in client.records:
            await asyncio.sleep(0)
    assert not client.refused
    await one.leave()


async def test_an_etcd_that_lost_everything_is_told_the_settings_again(client: Client) -> None:
    one = await joined(client)
    before = {key: kv.value for key, kv in client.records.items()}
    assert len(before) == 2
    client.records.clear()
    client.lives = False
    async with asyncio.timeout(LATEST_S):
        while client.records.keys() != before.keys():
            await asyncio.sleep(0)
    assert {key: kv.value for key, kv in client.records.items()} == before
    await one.leave()
