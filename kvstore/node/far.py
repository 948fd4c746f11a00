"""Blocks that other nodes hold, leased there for clients of this one: located, asked for, handed on.

 client -- LEASE far --> this node: who says that he holds them (locator.py) -> holders, nearest first
                             -- PEER_LEASE, to all of them at once --> each holds and grants what it has (leases.py)
 client <-- sections: descriptors and offers of the holders --      reads one-sidedly -- RELEASE --> PEER_RELEASE

Rules
- No block passes through this node. What it hands on is the holders' word; the client compares checksums.
- A lease belongs to the client's connection here, and to this node's connection there: it ends with either, by its
  release, or by its time.
- A holder that fails, has nothing or does not answer within ASK_S is passed over: for this lease, and for PASS_OVER_S.
  Then its replicas are asked, then it is a miss; all within the time that the client gave.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from google.protobuf.message import DecodeError

from kvstore.client.landed import leading
from kvstore.directory.base import distance
from kvstore.errors import KvStoreError, Rejected
from kvstore.node.crowding import BUSY_S, Crowds, also, one_holder
from kvstore.node.far_lookup import FAR
from kvstore.node.far_plan import Piece, demoted, is_cut, plan
from kvstore.node.held_here import held_here
from kvstore.node.speeds import Speeds
from kvstore.node.wanted import Wanted, family_of
from kvstore.tiers.base import TierKind
from kvstore.wire import framed, store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvstore.config import LimitsConfig
    from kvstore.directory.base import Member
    from kvstore.directory.locating import Holders
    from kvstore.native import NodeCore
    from kvstore.node.cluster import Cluster
    from kvstore.node.namespaces import Opened
    from kvstore.node.streams import Prefix

    Keys = NDArray[np.uint8]

__all__ = ["ASK_S", "FarCounts", "FarLeases", "Lender", "Lent", "far_tier"]

log = logging.getLogger(__name__)

ASK_S: Final = 0.4  # for a holder's answer, beyond what it may wait for blocks to come up
RELEASE_S: Final = 2.0
PASS_OVER_S: Final = 2.0  # its pings have decided by then whether it lives
DEADLINE_S_MAX: Final = 60.0
FAR_BYTES_PER_S: Final = 1 << 30  # as cluster.far_bytes_per_s, where nothing is said
PASSING: Final = frozenset({"moving_bytes_max", "holds_per_connection_max", "grants_max"})  # limits of who holds
LEASES_MAX: Final = 256  # of one connection; their bytes are limited by the holders


@dataclass(slots=True)
class FarCounts:
    """Since the start. blocks, bytes: that clients have read and verified, by the holder's tier. passed_over: holders
    that failed or had nothing. busy: that had too many readers. corrupt: blocks that did not verify. replicas: blocks
    that this node copied for itself. wanted: chains that it copied because they were asked for again; unwanted: that it
    did not for want of room or time.
    """

    leases: int = 0
    asked: int = 0
    passed_over: int = 0
    corrupt: int = 0
    bytes: int = 0
    replicas: int = 0
    busy: int = 0
    wanted: int = 0
    unwanted: int = 0
    blocks: dict[int, int] = field(default_factory=lambda: {int(TierKind.MEMORY): 0, int(TierKind.FILE): 0})


@dataclass(frozen=True, slots=True)
class Lent:
    """What one holder has leased: by which number, and its answer. full: nothing, since this node has as much of it as
    it may.
    """

    node: Member
    number: int
    told: framed.LeaseResponse
    full: bool = False

    @property
    def blocks(self) -> int:
        return len(self.told.offsets)


@dataclass(frozen=True, slots=True)
class _FarLease:
    lent: Sequence[Lent]
    lapse: asyncio.TimerHandle


@dataclass(slots=True)
class _Search:
    """Of whom a lease may still be had. slower: had nothing in memory any more. crowds: those with too many readers."""

    holders: Holders
    avoided: set[bytes]
    crowds: Crowds
    slower: set[bytes] = field(default_factory=set)

    @property
    def left(self) -> Holders:
        return demoted(self.holders.among(set(self.holders.nodes) - self.avoided - self.crowds.busy), self.slower)

    @property
    def narrowed(self) -> bool:
        return bool(self.avoided or self.slower or self.crowds.busy)


@dataclass(slots=True)
class Lender:
    """Of a node: asks other nodes for leases, and gives them back."""

    cluster: Cluster
    core: NodeCore
    limits: LimitsConfig
    has_files: bool
    counts: FarCounts = field(default_factory=FarCounts)
    wanted: Wanted = field(default_factory=Wanted)
    speeds: Speeds = field(default_factory=lambda: Speeds(FAR_BYTES_PER_S))
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _passed_over: dict[int, float] = field(default_factory=dict)  # by incarnation: until when
    _releasing: set[asyncio.Task[None]] = field(default_factory=set)

    async def lend(
        self, opened: Opened, prefix: Prefix, request: framed.LeaseRequest, source: bytes | None = None
    ) -> tuple[list[Lent], bool]:
        """Sections from the chain's first block on, and whether it is worth asking again from their end; none and so:
        this node has that block by now. source: a node that has it, for all that is known; nobody else is asked then.
        """
        locator = self.cluster.locator
        loop = asyncio.get_running_loop()
        began = loop.time()
        until = began + min(request.deadline_ms / 1e3, DEADLINE_S_MAX)
        patient_s = max(BUSY_S, min(request.wait_ms, self.limits.hold_wait_ms_max) / 1e3)
        block_bytes = sum(opened.shards[request.shard].part_bytes)
        keys = prefix.keys[: max(1, self.limits.window_bytes // block_bytes)]
        if locator is None or not len(keys) or not request.carriers:
            return [], False
        keys = keys[: self._absent(opened.handle, request.shard, keys)]
        if not len(keys):
            return [], True
        remembered = None if source is not None else locator.remembered(opened.digest, keys)
        named = one_holder(source, request.shard, len(keys)) if source is not None else remembered
        holders = named or await locator.locate(opened.digest, keys)
        avoided = self._avoided(request.avoid, began) - {source}  # who has just asked for this lives
        search = _Search(holders, avoided, Crowds(min(until, began + patient_s)))
        while (left_s := until - loop.time()) > 0:
            pieces = plan(search.left, request.shard, self._distances(search.holders), block_bytes)
            if not pieces and remembered is not None:
                search.holders, remembered = await locator.locate(opened.digest, keys), None
                continue
            if not pieces:
                # Those that are busy come last, again and again for a while: a lease takes milliseconds.
                pause_s = search.crowds.pause_s(loop.time())
                if pause_s is None or not self._absent(opened.handle, request.shard, keys[:1]):
                    break
                await asyncio.sleep(pause_s)
                continue
            lent = await self._asked(opened, keys, request, pieces, left_s)
            whole = _leading(lent, pieces)
            for piece, one in zip(pieces, lent, strict=True):
                if one is not None and one.told.busy:
                    self.wanted.crowded(opened.handle, request.shard, family_of(prefix))
                self._heard(search, piece, one, request.shard)
            for one in lent[len(whole) :]:
                if one is not None and one.blocks:
                    self.give_back(one, framed.ReleaseRequest())
            if whole:
                blocks = sum(one.blocks for one in whole)
                cut = blocks < pieces[-1].end or is_cut(pieces, block_bytes) or search.narrowed
                cut = cut or remembered is not None  # more may have come since
                return whole, blocks < len(prefix.keys) and (blocks == len(keys) or cut)
        return [], not self._absent(opened.handle, request.shard, keys[:1])  # another reader's copy has come

    def _heard(self, search: _Search, piece: Piece, one: Lent | None, shard: int) -> None:
        """What a holder's answer says of whom to ask next."""
        if one is not None and one.told.busy:
            self.counts.busy += 1
            living = [node for node in one.told.others if self.cluster.living(node) is not None]
            search.holders = also(search.holders, living, shard, piece.first, piece.end)
            search.crowds.busy.add(piece.node)
        elif one is not None and one.full:  # until this node's other clients have read theirs
            search.crowds.busy.add(piece.node)
        elif one is not None and not one.blocks and piece.in_memory and piece.node not in search.slower:
            search.slower.add(piece.node)  # it may have them in files by now
        elif one is None or not one.blocks:
            search.avoided.add(piece.node)
            self._pass_over(piece.node, asyncio.get_running_loop().time(), failed=one is None)

    def number(self) -> int:
        """Of a lease at another node."""
        return next(self._numbers)

    def _absent(self, handle: int, shard: int, keys: Keys) -> int:
        """How many blocks from the first on this node has not itself."""
        return leading(~held_here(self.core, handle, shard, keys, has_files=self.has_files))

    def _avoided(self, incarnations: Sequence[int], now: float) -> set[bytes]:
        self._passed_over = {one: until for one, until in self._passed_over.items() if until > now}
        told = {*incarnations, *self._passed_over}
        return {node for node, incarnation in self.cluster.incarnations().items() if incarnation in told}

    def _pass_over(self, node: bytes, now: float, *, failed: bool) -> None:
        self.counts.passed_over += 1
        member = self.cluster.living(node)
        if failed and member is not None:
            self._passed_over[member.incarnation] = now + PASS_OVER_S

    def _distances(self, holders: Holders) -> dict[bytes, tuple[int, float]]:
        """Of living holders: how far, and how soon they answer pings."""
        members = {node: self.cluster.living(node) for node in holders.nodes}
        return {
            node: (distance(self.cluster.me, member), self.cluster.rtt_s(member.address))
            for node, member in members.items()
            if member is not None
        }

    # ---- holders --------------------------------------------------------------------------------------------------

    async def _asked(
        self,
        opened: Opened,
        keys: Keys,
        request: framed.LeaseRequest,
        pieces: Sequence[Piece],
        left_s: float,
    ) -> list[Lent | None]:
        """All at once; None of those that failed. Whoever gives this up has leased nothing."""
        asking = [
            asyncio.ensure_future(
                self._ask(
                    piece,
                    framed.LeaseRequest(
                        namespace=opened.digest,
                        shard=request.shard,
                        chain=store.Chain(
                            keys=keys[piece.first : piece.end].tobytes(), position=request.chain.position + piece.first
                        ),
                        hints=request.hints,
                        wait_ms=0 if piece.in_memory else min(request.wait_ms, round(left_s * 500)),
                        lease=self.number(),
                        carriers=request.carriers,
                        metas=request.metas,
                        clears=self.cluster.clearing.namespaces.clears_word(opened),
                    ),
                    left_s,
                )
            )
            for piece in pieces
        ]
        try:
            return list(await asyncio.gather(*asking))
        except BaseException:
            for task in asking:
                task.cancel()
            for one in await asyncio.gather(*asking, return_exceptions=True):
                if isinstance(one, Lent):
                    self.give_back(one, framed.ReleaseRequest())
            raise

    async def _ask(self, piece: Piece, request: framed.LeaseRequest, left_s: float) -> Lent | None:
        node = self.cluster.living(piece.node)
        if node is None:
            return None
        self.counts.asked += 1
        deadline_s = min(left_s, request.wait_ms / 1e3 + ASK_S)
        nothing = Lent(node, request.lease, framed.LeaseResponse())
        try:
            body = await self.cluster.peers.call(
                node.address, store.METHOD_PEER_LEASE, request.SerializeToString(), deadline_s
            )
            told = framed.LeaseResponse.FromString(body)
            if not told.offsets:
                return Lent(node, request.lease, told) if told.busy else nothing
            _check(told, piece.end - piece.first)
        except asyncio.CancelledError:
            self.give_back(nothing, framed.ReleaseRequest())
            raise
        except Rejected as error:  # it has no more to give just now
            log.debug("%s: %s", node.address, error)
            return replace(nothing, full=error.limit in PASSING)
        except (KvStoreError, ValueError, DecodeError) as error:  # a cleared namespace is one of these
            log.debug("%s: no lease: %s", node.address, error)
            self.give_back(nothing, framed.ReleaseRequest())  # whatever it answers yet
            return None
        return Lent(node, request.lease, told)

    def give_back(self, lent: Lent, release: framed.ReleaseRequest) -> None:
        """Waits for nobody. A holder that does not hear it lets the lease lapse."""
        if not self.cluster.peers.connected(lent.node.address):
            return  # it has ended with its connection
        release.lease = lent.number
        task = asyncio.ensure_future(self._tell(lent.node, release.SerializeToString()))
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _tell(self, node: Member, body: bytes) -> None:
        try:
            await self.cluster.peers.call(node.address, store.METHOD_PEER_RELEASE, body, RELEASE_S)
        except (KvStoreError, ValueError) as error:
            log.debug("%s: not told of a release: %s", node.address, error)

    async def close(self) -> None:
        """Waits for releases under way, for RELEASE_S at most."""
        await asyncio.gather(*self._releasing, return_exceptions=True)


@dataclass(slots=True)
class FarLeases:
    """Of one client's connection, from its first far lease to `close`."""

    lender: Lender
    _leases: dict[int, _FarLease] = field(default_factory=dict)
    _asking: dict[int, asyncio.Task[object]] = field(default_factory=dict)

    async def lease(self, opened: Opened, prefix: Prefix, request: framed.LeaseRequest) -> framed.LeaseResponse:
        """Raises ValueError naming the field, Rejected. No blocks and no lease: nobody has it, or (`window_full`) this
        node has it itself by now.
        """
        number = request.lease
        if request.metas:
            raise ValueError("metas: of what others hold they are told to nodes only")
        if len(self._leases) + len(self._asking) >= LEASES_MAX:
            raise Rejected(f"far_leases_max: {LEASES_MAX} are open on this connection", limit="far_leases_max")
        with self.asking(number):
            lent, more = await self.lender.lend(opened, prefix, request)
        if not lent:
            return framed.LeaseResponse(window_full=more)
        self.lender.counts.leases += 1
        lease_ms = min(one.told.lease_ms for one in lent)
        lapse = asyncio.get_running_loop().call_later(lease_ms / 1e3, self._end, number)
        self._leases[number] = _FarLease(lent, lapse)
        return _handed_on(lent, lease_ms, more)

    @contextlib.contextmanager
    def asking(self, number: int) -> Iterator[None]:
        """A release of this number gives up what the present task does meanwhile. Raises ValueError for one that is
        taken.
        """
        if number in self._asking or number in self._leases:
            raise ValueError(f"lease: {number} is the number of another one")
        task = asyncio.current_task()
        assert task is not None
        self._asking[number] = task
        try:
            yield
        finally:
            del self._asking[number]

    def release(self, request: framed.ReleaseRequest) -> bool:
        """Whether it was one of these. One that is not answered yet is given up."""
        asking = self._asking.get(request.lease)
        if asking is not None:
            asking.cancel()
            return True
        lease = self._leases.pop(request.lease, None)
        if lease is None:
            return False
        lease.lapse.cancel()
        counts, first = self.lender.counts, 0
        reads = [*request.reads, *([framed.LeaseRead()] * len(lease.lent))]
        for lent, read in zip(lease.lent, reads, strict=False):
            end = first + lent.blocks
            corrupt = [lent.told.tickets[at - first] for at in request.corrupt if first <= at < end]
            counts.corrupt += len(corrupt)
            for tier in lent.told.tiers[: read.blocks]:
                if tier in counts.blocks:
                    counts.blocks[tier] += 1
            counts.bytes += read.bytes
            self.lender.speeds.read(lent.node.id, read.bytes, read.elapsed_us / 1e6)
            self.lender.give_back(lent, framed.ReleaseRequest(corrupt=corrupt, reads=[read]))
            first = end
        return True

    def _end(self, number: int) -> None:
        self.release(framed.ReleaseRequest(lease=number))

    def close(self) -> None:
        for number in [*self._asking, *self._leases]:
            self._end(number)


def _handed_on(lent: Sequence[Lent], lease_ms: int, more: bool) -> framed.LeaseResponse:
    """Tickets of several holders may be alike: a block's is its place."""
    answer = framed.LeaseResponse(lease_ms=lease_ms, window_full=more)
    for one in lent:
        answer.offsets.extend(one.told.offsets)
        answer.tiers += bytes(far_tier(tier) for tier in one.told.tiers)
        answer.checksums += one.told.checksums
        section = answer.sections.add()
        section.CopyFrom(one.told.sections[0])
        section.blocks, section.incarnation = one.blocks, one.node.incarnation
    answer.tickets.extend(range(len(answer.offsets)))
    return answer


def far_tier(tier: int) -> int:
    """As clients of this node are told a tier of another."""
    return tier + FAR if tier in {TierKind.MEMORY, TierKind.FILE} else tier


def _leading(lent: Sequence[Lent | None], pieces: Sequence[Piece]) -> list[Lent]:
    """Those that follow upon each other without a hole."""
    whole: list[Lent] = []
    for one, piece in zip(lent, pieces, strict=True):
        if one is None or not one.blocks:
            break
        whole.append(one)
        if one.blocks < piece.end - piece.first:
            break
    return whole


def _check(told: framed.LeaseResponse, keys: int) -> None:
    """Raises ValueError where another node's answer does not fit what was asked; the client looks at the rest."""
    blocks = len(told.offsets)
    sizes = (len(told.tiers), len(told.tickets), len(told.sections))
    if blocks > keys or sizes != (blocks, blocks, 1) or len(told.checksums) % (8 * blocks):
        raise ValueError("lease: the holder's answer does not fit the request")
