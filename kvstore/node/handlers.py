"""The rare verbs, once for both doors: OpenNamespace, Clear, Prefetch, Info, Watch, Offer, a lookup at other nodes.

A handler takes the peer and the request message, and answers the response message or raises:
Denied; NotOpen; ValueError or TypeError naming the field; Rejected naming the limit; Unavailable.
What a peer may not see is answered exactly as what does not exist.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import kvstore
from kvstore import native
from kvstore.errors import Rejected
from kvstore.node.asking import Asking
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.namespaces import Namespaces, NotOpen, Opened
from kvstore.node.news import News
from kvstore.node.questions import Questions
from kvstore.node.shares import Shares
from kvstore.node.streams import Bring, Prefix
from kvstore.node.watching import Telling, Watch
from kvstore.security import DEFAULT_TENANT
from kvstore.wire import convert, framed, store
from kvstore.wire.labels import label_id

if TYPE_CHECKING:
    import numpy as np
    from google.protobuf.message import Message
    from numpy.typing import NDArray

    from kvstore.clock import Clock
    from kvstore.config import GrpcConfig, LimitsConfig
    from kvstore.node.auth import Peer
    from kvstore.node.bridge import CoreBridge
    from kvstore.node.cluster import Cluster
    from kvstore.node.copies import Copies
    from kvstore.node.far import Lender
    from kvstore.node.far_lookup import FarLookup
    from kvstore.node.replicas import Replicas
    from kvstore.node.spreading import Spreading
    from kvstore.transfers import Transfers

log = logging.getLogger(__name__)

PREFETCHES_MAX: Final = 64
REPLICAS_MAX: Final = 16  # hosts of a put
REPLICATIONS_MAX: Final = 64  # puts that wait for other hosts
NAMELESS: Final = frozenset({store.METHOD_INFO, store.METHOD_OFFER, store.METHOD_LABEL})  # of no namespace


# (namespace handle, shard, keys, position of keys[0], seconds): looks in the object tier for a chain's rest.
FindPacks = Callable[[int, int, "NDArray[np.uint8]", int, float], Awaitable[None]]
InPacks = Callable[[int, int, "NDArray[np.uint8]"], "NDArray[np.bool_]"]


@dataclass(frozen=True, slots=True)
class TierReport:
    """One tier as Admin tells it. `stats`: as the core counts them, by name. asked_bytes: what the settings wanted."""

    tier: int
    medium: str
    capacity_bytes: int
    asked_bytes: int
    stats: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DoorsReport:
    """Where a node listens, and how safely. Of the framed door: connections; refused: who had no or a wrong
    token; located: questions of other nodes' lookups that it answered by itself, from the claims that this node keeps.
    """

    addresses: tuple[str, ...]
    connections: int
    refused: int
    located: int
    tls: bool
    insecure: bool


@dataclass(frozen=True, slots=True)
class NodeHost:
    """What the handlers and services need of their node. Composed in node.py.

    payload: the memory tier's mapping, writable. slab_bytes: of one slab of it, the largest block.
    find_packs: looks for packs that are not known yet. in_packs: which blocks lie in known ones. None without an object
    tier.
    several_tenants: whether callers of different tenants are told apart here (shares.py).
    transfers: how peers reach this node.
    far: what a lookup finds at other nodes. lender: what their holders lease to clients of this one.
    tiers, doors, cluster: for Admin; settings, too, as texts (settings_told.py).
    readers: by tier, how to read (offset, bytes) of it; None where that fails.
    """

    name: str
    bridge: CoreBridge
    payload: memoryview
    slab_bytes: int
    clock: Clock
    namespaces: Namespaces
    limits: LimitsConfig
    grpc: GrpcConfig
    family_blocks: int
    several_tenants: Callable[[], bool]
    started_ns: int
    transfers: Transfers
    tiers: Callable[[], Sequence[TierReport]]
    doors: Callable[[], DoorsReport]
    cluster: Cluster
    far: FarLookup
    lender: Lender
    settings: Mapping[str, str]
    readers: Mapping[int, Callable[[int, int], Awaitable[memoryview | None]]]
    find_packs: FindPacks | None = None
    in_packs: InPacks | None = None


@dataclass(slots=True)
class Handlers:
    host: NodeHost
    _prefetches: set[asyncio.Task[None]] = field(default_factory=set)
    _labels: dict[int, str] = field(default_factory=dict)
    _shares: Shares = field(init=False)
    _spreads: Shares = field(init=False)
    news: News = field(init=False)
    questions: Questions = field(init=False)
    asking: Asking = field(init=False)
    replicas: Replicas | None = None  # before the framed door opens
    _telling: Telling = field(init=False)
    spreading: Spreading | None = None  # as well
    copies: Copies | None = None  # as well

    def __post_init__(self) -> None:
        self._shares = Shares("prefetches_max", PREFETCHES_MAX, self.host.several_tenants)
        self._spreads = Shares("replications_max", REPLICATIONS_MAX, self.host.several_tenants)
        self._telling = Telling(self.host.several_tenants)
        core = self.host.bridge.core
        self.news = News(lambda: core.event_sequence)
        self.questions = Questions(self.host, self)
        self.asking = Asking(self.host.cluster, self.questions)

    async def call(self, peer: Peer, method: int, body: bytes, on_open: Callable[[int], object]) -> bytes:
        """One CALL of the framed door. `on_open`: told the handle that this connection may use from now on."""
        answer: Message
        try:
            match method:
                case store.METHOD_OPEN_NAMESPACE:
                    answer = opened = self.open_namespace(peer, store.OpenNamespaceRequest.FromString(body))
                    on_open(opened.handle)
                case store.METHOD_CLEAR:
                    answer = await self.clear(peer, store.ClearRequest.FromString(body))
                case store.METHOD_PREFETCH:
                    answer = await self.prefetch(peer, store.PrefetchRequest.FromString(body))
                case store.METHOD_LOOKUP_FAR:
                    answer = await self.lookup_far(peer, store.LookupRequest.FromString(body))
                case store.METHOD_REPLICATE:
                    answer = await self.replicate(peer, framed.ReplicateRequest.FromString(body))
                case store.METHOD_INFO:
                    answer = self.info()
                case store.METHOD_OFFER:
                    answer = await self.offer()
                case store.METHOD_LABEL:
                    self._note("family", store.LabelRequest.FromString(body).family)
                    answer = store.LabelResponse()
                case store.METHOD_WATCH:
                    watch = store.WatchRequest.FromString(body)
                    wait_ms = min(watch.wait_ms, self.host.limits.hold_wait_ms_max)
                    answer = await self.watch(peer, watch, wait_ms / 1e3)
                case _:
                    raise ValueError(f"method: {method} is none of this node's")
        except convert.DecodeError as error:
            raise ValueError("body: not a message of this method") from error
        return answer.SerializeToString()

    def opened(self, peer: Peer, digest: bytes) -> Opened:
        """The namespace, if it is open and the peer's. Raises NotOpen."""
        opened = self.host.namespaces.find(digest)
        if opened is None or not peer.may_use(opened.tenant):
            raise NotOpen
        return opened

    def prefix(self, opened: Opened, chain: store.Chain, hints: store.Hints) -> Prefix:
        """A chain as the request names it. Raises ValueError naming its field, Rejected."""
        chain_keys = self.keys(opened, chain)
        if hints.family:
            self._note("hints.family", hints.family)
        return Prefix(
            chain_keys,
            chain.parent,
            lambda first: convert.hint(hints, chain_keys, self.host.family_blocks, chain.position, first),
        )

    def keys(self, opened: Opened, chain: store.Chain) -> NDArray[np.uint8]:
        """The chain's keys, (n, 32). Raises ValueError naming its field, Rejected."""
        return convert.keys(chain, opened.seed, opened.block_tokens, self.host.limits.keys_per_call_max)

    def label(self, family: int) -> str:
        """The text that a family goes by, if a caller gave one; else nothing."""
        return self._labels.get(family, "")

    def _note(self, field: str, label: str) -> None:
        """Keeps a label for people to read. One that they could not, or that would lie to them about where it ends,
        is left out. ValueError where it is too long.
        """
        convert.check_label(field, label)
        if not label.isprintable():
            return
        family = label_id(label)
        self._labels[family] = label
        if len(self._labels) > 2 * self.host.limits.families_max:
            counted = {row["family"] for row in self.host.bridge.core.counters()["families"]}
            self._labels = {one: text for one, text in self._labels.items() if one in counted or one == family}

    def open_namespace(self, peer: Peer, request: store.OpenNamespaceRequest) -> store.OpenNamespaceResponse:
        tenant = request.tenant or DEFAULT_TENANT
        peer.require_tenant(tenant)
        shared = peer.tenants is not None and self.host.several_tenants()
        opened = self.host.namespaces.open(convert.identity_of(request.layout, tenant), shared=shared)
        return store.OpenNamespaceResponse(
            digest=opened.digest,
            generation=opened.generation,
            seed=opened.seed,
            block_tokens=opened.block_tokens,
            shards=convert.shard_messages(opened.shards),
            node=self.info(),
            handle=opened.handle,
        )

    async def clear(self, peer: Peer, request: store.ClearRequest) -> store.ClearResponse:
        """Whoever still names an earlier generation means what there is now: others may have cleared it meanwhile."""
        opened = self.host.namespaces.find_former(request.namespace)
        if opened is None or not peer.may_use(opened.tenant):
            raise NotOpen
        self.host.namespaces.clear(opened)
        nodes, known = await self.host.cluster.cleared(opened.origin)
        generation = self.host.namespaces.generation(opened)
        log.info(
            "%s cleared a namespace of %s: generation %d, known to %d of %d nodes",
            peer.name,
            opened.tenant,
            generation,
            nodes,
            known,
        )
        return store.ClearResponse(generation=generation, nodes=nodes, nodes_known=known)

    def info(self) -> store.NodeInfo:
        limits = self.host.limits
        return store.NodeInfo(
            node=self.host.name,
            version=kvstore.__version__,
            epoch=self.host.bridge.core.incarnation,
            keys_per_call_max=limits.keys_per_call_max,
            window_bytes=limits.window_bytes,
            message_bytes_max=self.host.grpc.message_bytes_max,
            lease_ms_max=limits.lease_ms_max,
            hold_wait_ms_max=limits.hold_wait_ms_max,
            reserve_lapse_ms=limits.reserve_lapse_ms,
            family_blocks=self.host.family_blocks,
            clustered=self.host.cluster.is_clustered,
        )

    async def lookup_far(self, peer: Peer, request: store.LookupRequest) -> store.LookupResponse:
        """What a lookup over the framed door does not say: it was counted there, and told what fetching from here
        takes.
        """
        opened = self.opened(peer, request.namespace)
        keys = self.keys(opened, request.chain)
        found = await self.host.far.find(opened, keys, convert.needs(request.needs, len(opened.shards)))
        if self.host.namespaces.find(opened.digest) is not opened:
            raise NotOpen
        if self.host.find_packs is not None and found.blocks < len(keys):
            # The core looks for packs where its own chain ends; this one ends behind what others have.
            rest, position = keys[found.blocks :], request.chain.position + found.blocks
            for shard in range(len(opened.shards)):
                await self.host.find_packs(opened.handle, shard, rest, position, 0.0)
        return store.LookupResponse(
            blocks=found.blocks,
            tokens=found.blocks * opened.block_tokens,
            tiers=found.tiers,
            fetch_s=found.fetch_s,
            keys=keys.tobytes() if request.return_keys else b"",
            holders=found.holders,
        )

    async def replicate(self, peer: Peer, request: framed.ReplicateRequest) -> framed.ReplicateResponse:
        """Has other hosts copy blocks of this node, and says on how many each is then."""
        opened = self.opened(peer, request.namespace)
        convert.check_shard("shard", request.shard, len(opened.shards))
        if not 1 <= request.replicas <= REPLICAS_MAX:
            raise ValueError(f"replicas: {request.replicas}, must be 1 to {REPLICAS_MAX}")
        prefix = self.prefix(opened, request.chain, request.hints)
        self._spreads.take(peer.tenants)
        try:
            assert self.spreading is not None, "the framed door is open"
            hosts = await self.spreading.replicate(opened, request.shard, prefix, request)
        finally:
            self._spreads.give(peer.tenants)
        return framed.ReplicateResponse(hosts=hosts.tobytes())

    async def offer(self) -> store.OfferResponse:
        transfers = self.host.transfers
        return store.OfferResponse(
            offer=transfers.connector.offer.encode(),
            probes=[
                store.Probe(
                    carrier=int(probe.carrier), descriptor=probe.descriptor, bytes=probe.size, sha256=probe.sha256
                )
                for probe in await transfers.probes()
            ],
        )

    def bringer(self, opened: Opened, prefix: Prefix, request: store.GetRequest, wait_s: float) -> Bring | None:
        """For gets of those who read nothing one-sidedly: what only other nodes have becomes a replica here first."""
        replicas = self.replicas
        if replicas is None or not self.host.cluster.is_clustered:
            return None

        async def bring(first: int, blocks: int) -> int:
            asked = framed.LeaseRequest(
                shard=request.shard, hints=request.hints, chain=store.Chain(position=request.chain.position + first)
            )
            return await replicas.bring(opened, prefix.part(first, first + blocks), asked, wait_s)

        return bring

    # ---- prefetch -----------------------------------------------------------------------------------------------

    async def prefetch(self, peer: Peer, request: store.PrefetchRequest) -> store.PrefetchResponse:
        opened = self.opened(peer, request.namespace)
        prefix = self.prefix(opened, request.chain, request.hints)
        shards = list(request.shards) or list(range(len(opened.shards)))
        convert.check_shards(shards, len(opened.shards))
        blocks, tiers = self._found(opened, shards, prefix)
        if blocks < len(prefix.keys) and self.host.find_packs is not None:
            rest, position = prefix.keys[blocks:], request.chain.position + blocks
            wait_s = self.host.limits.hold_wait_ms_max / 1e3
            find = self.host.find_packs
            await asyncio.gather(*(find(opened.handle, shard, rest, position, wait_s) for shard in shards))
            blocks, tiers = self._found(opened, shards, prefix)
        position = request.chain.position
        far = self.replicas if blocks < len(prefix.keys) and self.host.cluster.is_clustered else None
        if far is not None or any(tier != MEMORY_TIER for tier in tiers):
            self._shares.take(peer.tenants)
            task = asyncio.create_task(self._bring_up(opened, shards, prefix, blocks, position, far))
            self._prefetches.add(task)
            task.add_done_callback(self._prefetches.discard)
            task.add_done_callback(lambda _: self._shares.give(peer.tenants))
        return store.PrefetchResponse(blocks=blocks)

    def _found(self, opened: Opened, shards: list[int], prefix: Prefix) -> tuple[int, bytes]:
        """How many blocks some tier has of every shard, and which tier. Raises NotOpen."""
        needs = [(shard, native.NeedKind.ALL, 0) for shard in shards]
        status, blocks, tiers, *_ = self.host.bridge.core.lookup(opened.handle, prefix.keys, needs)
        if status == native.Status.STALE_NAMESPACE:
            raise NotOpen
        return int(blocks), tiers

    async def _bring_up(
        self,
        opened: Opened,
        shards: list[int],
        prefix: Prefix,
        blocks: int,
        position: int,
        far: Replicas | None,
    ) -> None:
        """A get that copies nothing: holds run after run until each is up, so that the mover works in chain order.
        far: brings what other nodes have, behind what is here.
        """
        core, owner = self.host.bridge.core, self.host.bridge.core.new_owner()
        try:
            for shard in shards:
                at = 0
                while at < blocks:
                    run = await self.host.bridge.fetch(
                        owner,
                        opened.handle,
                        shard,
                        prefix.keys[at:blocks],
                        kind=native.HoldKind.LEASE,
                        hint=prefix.hint(at),
                        wait_s=self.host.limits.hold_wait_ms_max / 1e3,
                        lease_s=self.host.limits.lease_ms_max / 1e3,
                    )
                    core.release(MEMORY_TIER, owner, run.hold)
                    at += len(run.offsets)
                    if len(run.offsets) == 0 or not run.window_full:
                        break
                if far is not None:
                    request = framed.LeaseRequest(shard=shard, chain=store.Chain(position=position))
                    await far.bring(opened, prefix, request, self.host.limits.hold_wait_ms_max / 1e3)
        except (NotOpen, Rejected) as error:  # cleared meanwhile, or no room: nobody waits for it
            log.debug("a prefetch ends: %s", error)
        finally:
            core.owner_gone(owner)

    async def close(self) -> None:
        for task in tuple(self._prefetches):
            task.cancel()
        await asyncio.gather(*self._prefetches, return_exceptions=True)

    # ---- watch --------------------------------------------------------------------------------------------------

    def watching(self, peer: Peer, request: store.WatchRequest) -> Watch:
        """A reader of events, to be closed. Raises NotOpen for a namespace that the peer may not see."""
        only = self.opened(peer, request.namespace) if request.namespace else None
        return Watch(self.host, self._telling, peer, only, request)

    async def watch(self, peer: Peer, request: store.WatchRequest, wait_s: float) -> store.WatchBatch:
        """One batch: at once if there is news, else when there is, else an empty one after `wait_s`."""
        if request.held:
            raise ValueError("held: what is held is told over gRPC, which has streams")
        watch = self.watching(peer, request)
        begin = batch = watch.begin()
        until = self.host.clock.now_ns() + int(wait_s * 1e9)
        while request.HasField("after"):
            batch = watch.news()
            batch.gap |= begin.gap
            left_ns = until - self.host.clock.now_ns()
            if batch.events or batch.gap or left_ns <= 0:
                break
            await self.news.after(watch.sequence, left_ns / 1e9)
        return batch
