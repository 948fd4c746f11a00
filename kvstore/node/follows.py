"""Who follows what is being published: a client of this node, wherever the publisher is, or another node for its own.

 client -- FOLLOW --> this node: here (following.py), or who says that he has the first block, in whatever state?
                      -- PEER_FOLLOW --> that node, asked again and again: its answers are handed on
 client <-- news: parts that are ready, granted, and their checksums --   reads one-sidedly, compares -- FOLLOW ...
 client -- RELEASE --> this node -- PEER_RELEASE --> that node

Rules
- A follower may come before the publisher: until somebody is found, what is here is watched and others are asked for
  again, ever more seldom, down to once in AGAIN_S.
- Once found, the publisher's node is the only one that is asked. When it fails, dies or is another one, that is an end
  without a seal: abandoned, like the publisher's own.
- A follow that nobody asks about for lease_ms, and as long as a question may take, ends.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from google.protobuf.message import DecodeError

from kvstore.client.followed import goes_on
from kvstore.errors import KvStoreError, Rejected
from kvstore.node.far import ASK_S, Lent, far_tier
from kvstore.node.following import Following
from kvstore.node.streams import Prefix
from kvstore.tiers.base import TierKind
from kvstore.wire import framed, store

if TYPE_CHECKING:
    from kvstore.directory.base import Member
    from kvstore.node.far import Lender
    from kvstore.node.leases import Allowance, MovingHost
    from kvstore.node.namespaces import Opened

__all__ = ["Follows"]

log = logging.getLogger(__name__)

FOLLOWS_MAX: Final = 64  # of one connection; their bytes are limited, too
WAIT_S_MAX: Final = 60.0
FIRST_S: Final = 0.01  # between two looks for a publisher, and twice as long each time
AGAIN_S: Final = 0.1  # at most
RELAY_S: Final = 1.0  # that another node may wait for something new before it says that there is nothing
Named = Callable[[], tuple["Opened", Prefix]]


class _Source(Protocol):
    async def ask(self, wait_s: float) -> framed.FollowResponse: ...
    async def end(self, request: framed.ReleaseRequest) -> bool: ...


def something(told: framed.FollowResponse) -> bool:
    """Whether an answer says more than that there is nothing yet."""
    return bool(told.ready) or told.abandoned


@dataclass(slots=True)
class _AtNode:
    """Blocks that another node holds for us; `number`: of the lease there. count, parts: of what is followed."""

    lender: Lender
    node: Member
    number: int
    count: int
    part_count: int
    _ready: list[int] = field(default_factory=list)
    _sealed: int = 0

    async def first(self, opened: Opened, shard: int, prefix: Prefix, carriers: list[int]) -> framed.FollowResponse:
        chain = store.Chain(keys=prefix.keys.tobytes(), position=prefix.hint(0).position)
        request = framed.FollowRequest(
            lease=self.number,
            namespace=opened.digest,
            shard=shard,
            chain=chain,
            carriers=carriers,
            clears=self.lender.cluster.clearing.namespaces.clears_word(opened),
        )
        return await self._asked(request, ASK_S)

    async def ask(self, wait_s: float) -> framed.FollowResponse:
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while True:
            waits_s = min(RELAY_S, max(0.0, until - loop.time()))
            before = self._ready.copy(), self._sealed
            told = await self._asked(framed.FollowRequest(lease=self.number, wait_ms=round(waits_s * 1e3)), waits_s)
            if told.abandoned or (self._ready, self._sealed) != before or loop.time() >= until:
                return told

    async def _asked(self, request: framed.FollowRequest, wait_s: float) -> framed.FollowResponse:
        cluster = self.lender.cluster
        living = cluster.living(self.node.id)
        if living is None or living.incarnation != self.node.incarnation:
            return self._lost(f"{self.node.name} is gone")
        try:
            body = await cluster.peers.call(
                self.node.address, store.METHOD_PEER_FOLLOW, request.SerializeToString(), wait_s + ASK_S
            )
            told = framed.FollowResponse.FromString(body)
            self._check(told)
        except (KvStoreError, ValueError, DecodeError) as error:
            return self._lost(f"{self.node.name}: {error}")
        told.tiers = bytes(map(far_tier, told.tiers))
        if told.HasField("section"):
            told.section.incarnation = self.node.incarnation
        return told

    def _lost(self, why: str) -> framed.FollowResponse:
        return framed.FollowResponse(abandoned=True, why=why, ready=self._ready, sealed=self._sealed)

    def _check(self, told: framed.FollowResponse) -> None:
        """Raises ValueError where an answer does not go on from those before it."""
        if not goes_on(told, self._ready, self._sealed, self.count, self.part_count):
            raise ValueError("follow: the answer does not fit those before it")
        self._ready, self._sealed = list(told.ready), told.sealed

    async def end(self, request: framed.ReleaseRequest) -> bool:
        counts = self.lender.counts
        for read in request.reads:
            counts.blocks[TierKind.MEMORY] += read.blocks
            counts.bytes += read.bytes
        counts.corrupt += len(request.corrupt)
        told = framed.ReleaseRequest(corrupt=request.corrupt, reads=request.reads)
        self.lender.give_back(Lent(self.node, self.number, framed.LeaseResponse()), told)
        return True


@dataclass(slots=True)
class _Seeking:
    """Until somebody is found who publishes. `here`: what is at this node."""

    lender: Lender
    here: Following
    carriers: list[int]
    _found: _Source | None = None

    async def ask(self, wait_s: float) -> framed.FollowResponse:
        if self._found is not None:
            return await self._found.ask(wait_s)
        loop = asyncio.get_running_loop()
        until, pause_s = loop.time() + wait_s, FIRST_S
        while True:
            told = await self.here.ask(0.0)
            if something(told):
                self._found = self.here
                return told
            far = await self._others()
            if far is not None:
                return far
            left_s = until - loop.time()
            if left_s <= 0:
                return told
            await self.here.watch.wait(min(left_s, pause_s))
            pause_s = min(2 * pause_s, AGAIN_S)

    async def _others(self) -> framed.FollowResponse | None:
        """The first answer of one who has the chain's beginning, in whatever state."""
        cluster, here = self.lender.cluster, self.here
        if cluster.locator is None:
            return None
        holders = await cluster.locator.locate(here.opened.digest, here.prefix.keys[:1], publishing=True)
        members = [
            cluster.living(node) for node, tiers in zip(holders.nodes, holders.tiers, strict=True) if tiers.any()
        ]
        for member in sorted((one for one in members if one is not None), key=lambda one: cluster.rtt_s(one.address)):
            source = _AtNode(self.lender, member, self.lender.number(), len(here.prefix.keys), len(here.part_bytes))
            told = framed.FollowResponse()
            try:
                told = await source.first(here.opened, here.shard, here.prefix, self.carriers)
            finally:
                if not told.ready:  # whatever it answers yet
                    await source.end(framed.ReleaseRequest())
            if told.ready:
                self._found = source
                return told
        return None

    async def end(self, request: framed.ReleaseRequest) -> bool:
        found = self._found
        if found is not None and found is not self.here:
            await found.end(request)
            request = framed.ReleaseRequest()
        return await self.here.end(request)


@dataclass(slots=True)
class _Open:
    source: _Source
    lapse: asyncio.TimerHandle
    asking: asyncio.Task[object] | None = None


@dataclass(slots=True)
class Follows:
    """Of one connection, from its first follow to `close`. owner: whose the holds are, in the core."""

    host: MovingHost
    owner: int
    allowance: Allowance
    lender: Lender
    _open: dict[int, _Open] = field(default_factory=dict)
    _ending: set[asyncio.Task[bool]] = field(default_factory=set)
    _kept: int = 0

    async def ask(self, request: framed.FollowRequest, named: Named, *, for_node: bool) -> framed.FollowResponse:
        """for_node: of what is here alone; where that is nothing, nothing is kept. Raises ValueError naming the field,
        NotOpen, Rejected, Unavailable.
        """
        number = request.lease
        if number not in self._open:
            if not request.namespace:
                raise ValueError(f"lease: {number} has ended, or is none of this connection's")
            self._begin(request, *named(), for_node=for_node)
        one = self._open[number]
        if one.asking is not None:
            raise ValueError(f"lease: {number} is being asked about")
        one.asking = asyncio.current_task()
        one.lapse.cancel()  # a question has its own end
        try:
            told = await one.source.ask(min(request.wait_ms / 1e3, WAIT_S_MAX))
        except BaseException:
            self._end(number, framed.ReleaseRequest())
            raise
        finally:
            one.asking = None
        one.lapse = self._lapsing(number)
        if for_node and not told.ready:
            self._end(number, framed.ReleaseRequest())
        return told

    def _begin(self, request: framed.FollowRequest, opened: Opened, prefix: Prefix, *, for_node: bool) -> None:
        if len(self._open) >= FOLLOWS_MAX:
            raise Rejected(f"follows_max: {FOLLOWS_MAX} are open on this connection", limit="follows_max")
        most = max(1, self.host.bridge.core.window_bytes // sum(opened.shards[request.shard].part_bytes))
        if not 0 < len(prefix.keys) <= most:
            raise ValueError(f"chain: {len(prefix.keys)} blocks, must be 1 to {most} of a follow")
        here = Following.begin(self.host, self.owner, self.allowance, opened, request.shard, prefix, request.carriers)
        source = here if for_node else _Seeking(self.lender, here, list(request.carriers))
        self._open[request.lease] = _Open(source, self._lapsing(request.lease))

    def _lapsing(self, number: int) -> asyncio.TimerHandle:
        lapse_s = self.host.limits.lease_ms_max / 1e3 + WAIT_S_MAX
        return asyncio.get_running_loop().call_later(lapse_s, self._end, number, framed.ReleaseRequest())

    def release(self, request: framed.ReleaseRequest) -> bool:
        """Whether it was one of these. One that is being asked about is given up."""
        return self._end(request.lease, request)

    def _end(self, number: int, request: framed.ReleaseRequest) -> bool:
        one = self._open.pop(number, None)
        if one is None:
            return False
        one.lapse.cancel()
        if one.asking is not None and one.asking is not asyncio.current_task():
            one.asking.cancel()
        task = asyncio.ensure_future(self._ended(one, request))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        return True

    async def _ended(self, one: _Open, request: framed.ReleaseRequest) -> bool:
        if one.asking is not None:
            await asyncio.wait([one.asking])
        done = await one.source.end(request)
        self._kept += int(not done)
        return done

    async def close(self) -> bool:
        """Ends all. Whether everything was let go, now and before."""
        for number in list(self._open):
            self._end(number, framed.ReleaseRequest())
        await asyncio.gather(*self._ending)
        return not self._kept
