"""The directory of a node among others, driven: batches to homes, answers to other nodes, and lookups that ask homes.

Rules
- What to send and whom to ask is decided in kvstore/directory; here it is sent, awaited and told back, nothing else.
- Everything has its deadline. Whoever has not answered by then has not answered: nothing it says later is believed.
- What came or went is looked for every `announce_ms`: the hot verbs wake nobody (news.py says why).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore.directory.directory import Directory
from kvstore.directory.holdings import CoreHoldings
from kvstore.directory.messages import Announce, Answer, Bytes, Digest, Locate, LocateAnswer, Message, Status
from kvstore.directory.settings import MS, DirectorySettings
from kvstore.errors import KvStoreError
from kvstore.native import ClaimTable, NodeCore
from kvstore.node.locate_calls import LocateCalls
from kvstore.node.recent import Recent
from kvstore.wire import claims as wire

if TYPE_CHECKING:
    from kvstore.clock import Clock
    from kvstore.config import ClusterConfig
    from kvstore.directory.base import Member
    from kvstore.directory.locating import Holders
    from kvstore.node.peers import Peers

__all__ = ["Locator", "LocatorCounts"]

log = logging.getLogger(__name__)

TELL_S: Final = 2.0  # for a batch to be answered; it is sent again after that


@dataclass(slots=True)
class LocatorCounts:
    """Since the start. told: rows of batches that homes took. asked, hedged: messages of lookups, and how many of them
    went to second homes. unanswered: messages of either kind that came to nothing. answered: what lookups of other
    nodes asked, as far as the door did not answer it by itself. claims: that this node keeps, and their memory, as of
    the last turn.
    """

    told: int = 0
    resyncs: int = 0
    lookups: int = 0
    asked: int = 0
    hedged: int = 0
    unanswered: int = 0
    answered: int = 0
    claims: int = 0
    claims_bytes: int = 0


class Locator:
    """On the node's event loop, from `start` to `stop`. living: a node that answers, by its id."""

    def __init__(
        self,
        me: Member,
        core: NodeCore,
        config: ClusterConfig,
        peers: Peers,
        clock: Clock,
        living: Callable[[bytes], Member | None],
    ) -> None:
        self._core, self._peers, self._clock, self._living = core, peers, clock, living
        settings = directory_settings(config)
        table = ClaimTable(config.claims_max, secrets.randbits(64))
        self.directory = Directory(me.id, core.incarnation, CoreHoldings(core), table, settings)
        self.counts = LocatorCounts()
        self._recent = Recent()
        self._turn_s = settings.announce_ms / 1e3
        self._wake = asyncio.Event()
        self._seen = (-1, -1, -1)
        self._still = False  # what it holds may have been cleared meanwhile: it tells of none of it
        self._running: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        self._running = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Idempotent."""
        tasks = [*self._calls, *([self._running] if self._running is not None else [])]
        self._running = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- who is there ---------------------------------------------------------------------------------------------

    def see(self, live: Mapping[bytes, int]) -> None:
        """Who answers pings, and as which incarnation; this node among them."""
        if live != self.directory.view.live:
            self.directory.view_changed(live, self._clock.now_ns())
            self._wake.set()

    def stood_still(self) -> None:
        self._still = True
        self.directory.stood_still(self._clock.now_ns())

    def rejoined(self) -> None:
        self._still = False
        self.directory.rejoined(self._clock.now_ns())
        self._wake.set()

    # ---- telling --------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        due = 0
        while True:
            now = self._clock.now_ns()
            table = self.directory.claims.table
            self.counts.claims, self.counts.claims_bytes = len(table), table.memory_bytes  # as read by another thread
            state = (self._core.event_sequence, self._core.begun_sequence, self._core.namespaces_end)
            if state != self._seen or now >= due or self._wake.is_set():
                self._seen = state
                self._wake.clear()
                due = self._poll(now)
            try:
                async with asyncio.timeout(min(self._turn_s, max(0.001, (due - now) / 1e9))):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _poll(self, now: int) -> int:
        """When to look again, whatever happens."""
        try:
            for to, message in self.directory.poll(now):
                task = asyncio.ensure_future(self._tell(to, message))
                self._calls.add(task)
                task.add_done_callback(self._calls.discard)
            return self.directory.wake_at(now)
        except Exception:  # ours; without it nobody would be told anything any more
            log.exception("the directory failed")
            return now + self.directory.settings.announce_retry_ms * MS

    async def _tell(self, to: bytes, message: Announce | Digest) -> None:
        answer = await self._ask(to, message, TELL_S) if not self._still else None
        if answer is not None and answer.status is Status.TAKEN and isinstance(message, Announce):
            self.counts.told += sum(map(len, message.rows))
        elif answer is not None and answer.status is Status.RESYNC:
            self.counts.resyncs += 1
        self.directory.answered(to, message, answer, self._clock.now_ns())
        self._wake.set()

    async def _ask(self, to: bytes, message: Message, deadline_s: float) -> Answer | None:
        node = self._living(to)
        if node is None:
            return None
        try:
            body = wire.message_bytes(message)
            answered = await self._peers.call(node.address, wire.method_of(message), body, deadline_s)
            return wire.answer_of(message, answered)
        except (KvStoreError, ValueError) as error:  # pings will tell whether it lives
            self.counts.unanswered += 1
            log.debug("%s: %s", node.address, error)
        except Exception:  # ours; without an end of this message its home would be told nothing any more
            log.exception("%s: was not told", node.address)
        return None

    # ---- answering ------------------------------------------------------------------------------------------------

    def handle(self, node: Member, method: int, body: bytes) -> bytes:
        """What another node tells or asks. Raises ValueError naming the field."""
        message = wire.message_of(method, body, node.id, node.incarnation)
        self.counts.answered += isinstance(message, Locate)
        return wire.answer_bytes(self.directory.handle(message, self._clock.now_ns()))

    def claimed_here(self, ns: bytes, keys: Bytes) -> tuple[bytes, ...]:
        """Nodes that claim one of these blocks here, as far as this node is a home of it."""
        answer = self.directory.handle(Locate(ns, np.ascontiguousarray(keys[:, :16])), self._clock.now_ns())
        return answer.nodes if isinstance(answer, LocateAnswer) else ()

    def answer_until(self, until: int) -> None:
        """Until then the door answers by itself what other nodes ask of `claims`."""
        self.directory.answer_until(until, self._clock.now_ns())

    @property
    def claims(self) -> ClaimTable:
        return self.directory.claims.table

    # ---- asking ---------------------------------------------------------------------------------------------------

    async def locate(self, ns: bytes, keys: Bytes, *, publishing: bool = False) -> Holders:
        """Which other living nodes say that they hold blocks; publishing: or parts of them, unsealed. Never longer than
        `locate_ms_max`.
        """
        holders = await self._located(ns, keys)
        others = holders.among(set(holders.nodes) - {self.directory.me}).only(publishing=publishing)
        if not publishing:
            self._recent.add(ns, keys, others, self._clock.now_ns() / 1e9)
        return others

    async def claimed(self, ns: bytes, keys: Bytes) -> Holders:
        """As `locate`, and this node among them if it has told so itself."""
        return (await self._located(ns, keys)).only(publishing=False)

    async def _located(self, ns: bytes, keys: Bytes) -> Holders:
        locating = self.directory.locate(ns, keys, self._clock.now_ns())
        calls = LocateCalls(locating, self.directory.me, self._begin, self._clock)
        await calls.over()
        self.counts.lookups += 1
        self.counts.asked += locating.messages
        self.counts.hedged += locating.hedges
        self.counts.unanswered += calls.unanswered
        return locating.holders().among(self.directory.view.live.keys())

    def _begin(self, to: bytes, message: Locate, deadline_s: float) -> asyncio.Future[bytes] | LocateAnswer | None:
        if to == self.directory.me:
            answer = self.directory.handle(message, self._clock.now_ns())
            assert isinstance(answer, LocateAnswer)
            return answer
        node = self._living(to)
        if node is None:
            return None
        return self._peers.begin(node.address, wire.method_of(message), wire.message_bytes(message), deadline_s)

    def remembered(self, ns: bytes, keys: Bytes) -> Holders | None:
        """What `locate` answered of these a moment ago, of nodes that may have died since."""
        return self._recent.find(ns, keys, self._clock.now_ns() / 1e9)


def directory_settings(config: ClusterConfig) -> DirectorySettings:
    return DirectorySettings(
        width=config.directory_width,
        claims_max=config.claims_max,
        holders_max=config.holders_max,
        settle_ms=config.settle_ms,
        grace_ms=config.grace_ms,
        announce_ms=config.announce_ms,
        digest_ms=config.digest_ms,
        hedge_ms=config.hedge_ms,
        locate_ms_max=config.locate_ms_max,
    )
