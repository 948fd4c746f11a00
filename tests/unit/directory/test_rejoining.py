"""A node that stood still tells all again, though nobody came or went for it and there is no news: others may have
forgotten it. Digests are off, so nothing else makes it look.
"""

from __future__ import annotations

import asyncio
import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np

from kvstore.config import ClusterConfig
from kvstore.directory.base import Member
from kvstore.directory.directory import Directory
from kvstore.directory.messages import ALL_BUCKETS, Announce, Status, Taken
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.node.locator import Locator
from kvstore.testing.clock import VirtualClock
from kvstore.testing.models.cluster import ClusterNode, Judge
from kvstore.testing.network import Network, Weather
from kvstore.testing.world import World
from kvstore.wire import claims as wire

NEVER_MS = 1 << 40
NS = hashlib.sha256(b"a namespace").digest()
STEPS = 50  # of the event loop, each as long as nothing: far less than its next look in real time


class Pair:
    """Two simulated nodes that see each other, the first of which holds a block."""

    def __init__(self) -> None:
        self.world = World(1)
        network = Network(self.world, Weather(MS))
        settings = DirectorySettings(settle_ms=600, grace_ms=2_000, digest_ms=NEVER_MS)
        judge = Judge(lambda *_: None, lambda *_: None)
        self.holder, self.home = (
            ClusterNode(self.world, network, name * 16, settings, Directory, judge, 1 << 30) for name in (b"n", b"h")
        )
        for node in (self.holder, self.home):
            node.start(wiped=True)
        self.holder.holdings.put((NS, bytes(32)), 0, 1, 0)
        for node in (self.holder, self.home):
            self.sees(node, both=True)

    def sees(self, node: ClusterNode, *, both: bool) -> None:
        node.see({each.name: each.incarnation for each in (self.holder, self.home) if both or each is node})

    @property
    def claimed(self) -> int:
        return len(self.home.directory.claims.table)

    def end(self) -> None:
        self.holder.running = self.home.running = False


def test_a_simulated_node_that_stood_still_tells_those_that_forgot_it() -> None:
    pair = Pair()
    at, seen = pair.world.at, []
    at(1_000 * MS, lambda: seen.append(pair.claimed))
    at(1_000 * MS, pair.holder.stop)
    at(1_500 * MS, lambda: pair.sees(pair.home, both=False))
    at(5_000 * MS, lambda: (pair.home.poll(), seen.append(pair.claimed)))
    at(5_100 * MS, pair.holder.wake)
    at(5_100 * MS, lambda: pair.sees(pair.home, both=True))
    at(5_400 * MS, pair.holder.rejoined)
    at(6_000 * MS, lambda: (seen.append(pair.claimed), pair.end()))
    pair.world.run(10_000, lambda: None)
    assert seen == [1, 0, 1], "told, forgotten, told again"


class Peers:
    """Nodes that take what they are told."""

    def __init__(self) -> None:
        self.told: list[int] = []  # buckets whose telling from scratch begins

    async def call(self, _address: str, method: int, body: bytes, _deadline_s: float) -> bytes:
        message = wire.message_of(method, body, b"m" * 16, 1)
        assert isinstance(message, Announce)
        self.told.append(message.begin)
        return wire.answer_bytes(Taken(Status.TAKEN))


async def _steps() -> None:
    for _ in range(STEPS):
        await asyncio.sleep(0)


def test_a_node_that_stood_still_tells_all_again_at_once() -> None:
    async def play() -> list[int]:
        me, other = Member("127.0.0.1:1", b"m" * 16, 1, "me"), Member("127.0.0.1:2", b"o" * 16, 2, "other")
        nothing = np.zeros((0, 32), np.uint8), np.zeros(0, np.uint32)
        core: Any = SimpleNamespace(incarnation=1, event_sequence=0, begun_sequence=0, namespaces_end=0)
        core.changes_since = lambda *_: (0, False, *nothing, [])
        core.begun_since = lambda *_: (0, *nothing)
        core.scan_held = lambda *_: (0, *nothing, np.zeros(0, np.uint64), np.zeros(0, np.uint8))
        peers: Any = Peers()
        clock = VirtualClock(1_000 * MS)
        config = ClusterConfig(digest_ms=NEVER_MS)
        locator = Locator(me, core, config, peers, clock, {other.id: other}.get)
        locator.see({me.id: 1, other.id: 2})
        locator.start()
        try:
            for _ in range(5):
                await _steps()
                clock.advance_ns(1_000 * MS)
                locator._wake.set()
            await _steps()
            told = len(peers.told)
            locator.stood_still()
            locator.rejoined()
            await _steps()
            clock.advance_ns(1 * MS)
            return list(peers.told[told:])
        finally:
            await locator.stop()

    again = asyncio.run(play())
    assert again and again[0] == ALL_BUCKETS
