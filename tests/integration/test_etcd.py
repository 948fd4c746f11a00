"""Membership over a real etcd that is killed, emptied, compacted, sealed and locked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from kvstore.directory.base import Member, View
from kvstore.directory.etcd import LEAVE_S, Etcd
from kvstore.directory.etcd_client import Compacted, EtcdClient
from kvstore.errors import Misconfigured, NotJoined, Unavailable
from kvstore.testing.exam_membership import SETTINGS, member
from tests.certificates import Authority
from tests.etcd_server import EtcdServer, etcd_cluster, needs_etcd
from tests.integration.patience import SLOW_S
from tests.ports import free_ports

pytestmark = needs_etcd
PREFIX = "here"
TTL_S = 2


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path) as started:
        yield started


async def nobody(address: str) -> Member:
    raise Unavailable(f"{address}: nobody there")


@asynccontextmanager
async def joined(
    me: Member, *endpoints: str, join_s: float = 10, client: EtcdClient | None = None, ttl_s: int = TTL_S
) -> AsyncIterator[Etcd]:
    one = Etcd(client or EtcdClient(endpoints, call_s=1.0), PREFIX, join_s, ttl_s)
    try:
        await one.join(me, SETTINGS, nobody)
        yield one
    finally:
        await one.leave()


async def until(one: Etcd, *names: str, within_s: float = 20.0) -> View:
    async with asyncio.timeout(within_s):
        view = one.view
        while sorted(found.name for found in view.members) != sorted(names):
            view = await one.changed(view.epoch)
        return view


async def happens(check: object, within_s: float = 20.0) -> None:
    assert callable(check)
    end = time.monotonic() + within_s
    while not check():
        assert time.monotonic() < end, "did not happen"
        await asyncio.sleep(0.05)


async def test_who_joins_and_leaves_is_seen_at_once(server: EtcdServer) -> None:
    """Long before its lease ends."""
    clients = [EtcdClient([server.endpoint], call_s=5.0) for _ in range(2)]
    async with joined(member(1), client=clients[0], ttl_s=60) as a:
        async with joined(member(2), client=clients[1], ttl_s=60) as b:
            view = await until(a, "n2")
            assert view.members == (member(2),)
            assert (await until(b, "n1")).members == (member(1),)
            began = time.monotonic()
        if time.monotonic() - began < LEAVE_S:  # an etcd that takes longer, as its disk may, is not waited for
            await until(a)


async def test_who_is_not_heard_of_is_listed_until_its_lease_ends(server: EtcdServer) -> None:
    async with joined(member(1), server.endpoint) as a, joined(member(2), server.endpoint) as b:
        await until(a, "n2")
        for task in b._tasks:
            task.cancel()
        began = time.monotonic()
        await until(a)
        assert time.monotonic() - began > TTL_S / 2


async def test_etcd_away_for_longer_than_the_leases_takes_nobody_away(server: EtcdServer) -> None:
    async with joined(member(1), server.endpoint) as a, joined(member(2), server.endpoint) as b:
        views = await until(a, "n2"), await until(b, "n1")
        server.kill()
        await happens(lambda: a.discovery.away_s > 0 and b.discovery.away_s > 0)
        with pytest.raises(NotJoined, match=r"not joined within cluster\.join_ms, 1 s: etcd at"):
            async with joined(member(3), server.endpoint, join_s=1):
                pass
        await asyncio.sleep(TTL_S + 0.5)
        assert (a.view, b.view) == views and a.discovery.why
        server.start()
        await happens(lambda: a.discovery.away_s == 0 and b.discovery.away_s == 0)
        await happens(lambda: len(server.keys(f"{PREFIX}/nodes/")) == 2)
        async with joined(member(3), server.endpoint):
            await until(a, "n2", "n3")
            await until(b, "n1", "n3")


async def test_an_etcd_that_lost_everything_is_told_anew(server: EtcdServer) -> None:
    for i in range(20):
        server.put(f"other/{i}", "")  # so that its next life has fewer revisions
    async with joined(member(1), server.endpoint) as a, joined(member(2), server.endpoint) as b:
        await until(a, "n2")
        server.kill()
        server.wipe()
        server.start()
        await happens(lambda: len(server.keys(f"{PREFIX}/nodes/")) == 2)
        async with joined(member(3), server.endpoint):
            await until(a, "n2", "n3")
            await until(b, "n1", "n3")


async def test_a_record_that_somebody_deletes_is_written_again(server: EtcdServer) -> None:
    async with joined(member(1), server.endpoint) as a, joined(member(2), server.endpoint):
        await until(a, "n2")
        server.delete(f"{PREFIX}/nodes/{member(2).id.hex()}")
        await until(a)
        await until(a, "n2")


async def test_a_watcher_that_was_away_resumes_without_loss(server: EtcdServer) -> None:
    client = EtcdClient([server.endpoint])
    try:
        start = await client.listing(b"k/", 10)
        revisions = [server.put(f"k/{i}", str(i)) for i in range(3)]
        told = []
        async for events in client.watch(b"k/", start.revision, start.cluster):
            told += [(key, kv.value if kv else None) for key, kv in events.changes]
            if events.revision == revisions[-1]:
                break
        assert told == [(f"k/{i}".encode(), str(i).encode()) for i in range(3)]
        server.delete("k/1")
        async for events in client.watch(b"k/", revisions[1], start.cluster):
            if events.changes and events.changes[-1] == (b"k/1", None):
                break
    finally:
        await client.close()


async def test_what_was_compacted_under_a_stopped_watcher_is_listed_anew(server: EtcdServer) -> None:
    async with joined(member(1), server.endpoint) as a:
        watching = a._tasks[1]
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        after = a._after
        async with joined(member(2), server.endpoint), joined(member(3), server.endpoint):
            server.ask("kv/compaction", revision=server.put("other", ""), physical=True)
            with pytest.raises(Compacted):
                async for events in a._client.watch(f"{PREFIX}/nodes/".encode(), after, a._cluster):
                    assert not events.changes, "a watch over a hole"
            assert a.view.members == ()
            a._tasks[1] = asyncio.ensure_future(a._watch())
            await until(a, "n2", "n3")
        await until(a)  # and it goes on from there


async def test_a_dead_endpoint_is_passed_over_and_one_that_dies_is_left(tmp_path: Path) -> None:
    (closed,) = free_ports(1)
    servers = etcd_cluster(tmp_path, 3)
    try:
        for one in servers:
            one.spawn()
        for one in servers:
            one.wait()
        endpoints = [f"127.0.0.1:{closed}", *(one.endpoint for one in servers)]
        async with joined(member(1), *endpoints) as a, joined(member(2), *endpoints) as b:
            await until(a, "n2")
            servers[0].kill()
            async with joined(member(3), *endpoints):
                await until(a, "n2", "n3")
                await until(b, "n1", "n3")
            await until(a, "n2")
            await asyncio.sleep(TTL_S + 0.5)
            assert a.view.members == (member(2),)
            await happens(lambda: a.discovery.away_s == 0)
    finally:
        for one in servers:
            one.kill()


async def test_an_etcd_that_stands_still_is_away_and_nobody_hangs(server: EtcdServer) -> None:
    async with joined(member(1), server.endpoint) as a:
        assert server.process is not None
        server.process.send_signal(19)  # SIGSTOP
        await happens(lambda: a.discovery.away_s > 0)
        began = time.monotonic()
        await a.leave()
        assert time.monotonic() - began < 2 + SLOW_S


async def test_an_etcd_that_stood_still_is_watched_again(server: EtcdServer) -> None:
    """Without a word to who watches: calls run out of time, their connection is given up, and the watch with it."""
    async with joined(member(1), server.endpoint) as a, joined(member(2), server.endpoint):
        assert server.process is not None
        await until(a, "n2")  # so that it watches
        server.process.send_signal(19)  # SIGSTOP
        await happens(lambda: a.discovery.away_s > 1.5)
        server.process.send_signal(18)
        async with joined(member(3), server.endpoint):
            await until(a, "n2", "n3")


async def test_an_etcd_that_takes_its_time_to_greet_is_reached(server: EtcdServer) -> None:
    """As over TLS on a busy machine: every call may make its connection anew, so each attempt must have time enough."""

    relays: list[asyncio.Task[None] | None] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        relays.append(asyncio.current_task())
        await asyncio.sleep(0.6)
        there, back = await asyncio.open_connection("127.0.0.1", server.port)

        async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(1 << 16):
                    to.write(data)
            finally:
                to.close()

        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    slow = await asyncio.start_server(relay, "127.0.0.1", 0)
    host, port = slow.sockets[0].getsockname()
    async with joined(member(1), join_s=8, client=EtcdClient([f"{host}:{port}"])):
        assert len(server.keys(f"{PREFIX}/nodes/")) == 1
    slow.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*filter(None, relays))


async def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    authority, stranger = Authority(tmp_path, "ours"), Authority(tmp_path, "strange")
    ours, theirs = authority.sign("node"), stranger.sign("false-node")
    pair = authority.sign("etcd", server=True, client=True)  # its own gateway is a client of it
    with EtcdServer(tmp_path, tls=pair, client_ca=authority.path) as server:

        def client(ca: Path, shown: object = ours) -> EtcdClient:
            files = (shown.private_key.read_bytes(), shown.certificate.read_bytes()) if shown else (None, None)  # type: ignore[attr-defined]
            return EtcdClient([server.endpoint], grpc.ssl_channel_credentials(ca.read_bytes(), *files), call_s=1.0)

        async with (
            joined(member(1), client=client(authority.path)) as a,
            joined(member(2), client=client(authority.path)),
        ):
            await until(a, "n2")
        for wrong in (client(stranger.path), client(authority.path, theirs), client(authority.path, None)):
            with pytest.raises(Misconfigured, match="not joined"):
                async with joined(member(3), client=wrong, join_s=0.2):
                    pass


async def test_user_and_password_also_after_etcd_has_forgotten_the_token(server: EtcdServer) -> None:
    server.with_user("kvstore", "secret word")

    def client(*user: str) -> EtcdClient:
        # etcd hashes passwords on purpose slowly.
        return EtcdClient([server.endpoint], user=(user[0], user[1]) if user else None, call_s=5.0)

    alone = client("kvstore", "secret word")
    await alone.put(b"a", b"")
    alone._token = "forgotten.1"  # as after five minutes without a call
    await alone.put(b"a", b"")
    await alone.close()
    with pytest.raises(Misconfigured, match=r"refuses: .*authentication failed"):
        async with joined(member(3), client=client("kvstore", "wrong")):
            pass
    with pytest.raises(Misconfigured, match=r"refuses: .*user name is empty"):
        async with joined(member(3), client=client()):
            pass
    async with (
        joined(member(1), client=client("kvstore", "secret word")) as a,
        joined(member(2), client=client("kvstore", "secret word")) as b,
    ):
        await until(a, "n2")
        server.kill()
        server.start()
        async with joined(member(3), client=client("kvstore", "secret word")):
            await until(a, "n2", "n3")
            await until(b, "n1", "n3")


async def test_records_that_are_none_are_passed_over(server: EtcdServer) -> None:
    name = bytes(range(16)).hex()
    for value in (
        "",
        "[1",
        "[]",
        '{"id": 3}',
        '{"id": "00", "address": "a:1"}',
        "x" * 5000,
        '{"id": "' + "0" * 32 + '"}',
    ):
        server.put(f"{PREFIX}/nodes/{name}", value)
        async with joined(member(1), server.endpoint) as a:
            assert a.view.members == ()
    server.put(f"{PREFIX}/settings", "[]")
    with pytest.raises(Misconfigured, match="here/settings in etcd: not a JSON object of texts"):
        async with joined(member(1), server.endpoint):
            pass
