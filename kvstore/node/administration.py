"""The Admin service: look at a node and steer it. Every call needs the right `admin`, but for Offer."""

# ruff: noqa: N802, ARG002 - methods are named by the contract, and take what it gives them

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from kvstore import native
from kvstore.errors import Rejected, Unavailable
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.namespaces import NotOpen
from kvstore.node.verification import verify
from kvstore.wire import admin, convert, services, store

if TYPE_CHECKING:
    from kvstore.node.auth import Peer
    from kvstore.node.cluster import NodeSeen
    from kvstore.node.grpc_door import Context, Entrance
    from kvstore.node.handlers import Handlers, NodeHost, TierReport
    from kvstore.node.namespaces import Opened
    from kvstore.tiers.base import Keys

log = logging.getLogger(__name__)

FILE_TIER: Final = 2
FAMILY_ROWS: Final = 20
PIN_MS: Final = 60_000
PINS_MAX: Final = 10_000


class AdminService(services.AdminServicer):
    """kvstore.v1.Admin."""

    def __init__(self, host: NodeHost, handlers: Handlers, entrance: Entrance) -> None:
        self._host, self._handlers, self._entrance = host, handlers, entrance
        self._core = host.bridge.core
        self._owner = self._core.new_owner()  # of pins, which outlive the call that asked for them
        self._pins: dict[int, tuple[int, list[int]]] = {}  # pin: when it lapses, its holds

    @asynccontextmanager
    async def _call(self, context: Context, *, endless: bool = False) -> AsyncIterator[Peer]:
        async with self._entrance.call(context, endless=endless) as peer:
            peer.require("admin")
            yield peer

    def _opened(self, digest: bytes) -> Opened:
        opened = self._host.namespaces.find(digest)
        if opened is None:
            raise NotOpen
        return opened

    # ---- looking ------------------------------------------------------------------------------------------------

    async def Status(self, request: admin.StatusRequest, context: Context) -> admin.StatusResponse:
        async with self._call(context):
            memory = self._core.stats(MEMORY_TIER)
            doors = self._host.doors()
            return admin.StatusResponse(
                node=self._handlers.info(),
                uptime_s=(self._host.clock.now_ns() - self._host.started_ns) / 1e9,
                namespaces=len(self._host.namespaces.all()),
                connections=doors.connections,
                holds=memory["holds"],
                pinned_bytes=memory["pinned_bytes"],
                event_sequence=self._core.event_sequence,
                listening=doors.addresses,
                tls=doors.tls,
                insecure=doors.insecure,
            )

    async def Tiers(self, request: admin.TiersRequest, context: Context) -> admin.TiersResponse:
        async with self._call(context):
            return admin.TiersResponse(tiers=[_tier_status(tier) for tier in self._host.tiers()])

    async def Hits(self, request: admin.HitsRequest, context: Context) -> admin.HitsResponse:
        async with self._call(context):
            rows = []
            for ns, counts in self._core.counters()["namespaces"].items():
                opened = self._host.namespaces.by_handle(ns)
                if opened is None:
                    continue
                _, memory, file, objects = counts["by_tier"]
                row = admin.HitRow(
                    namespace=opened.digest,
                    tenant=opened.tenant,
                    model=opened.identity.model,
                    block_tokens=opened.block_tokens,
                    blocks_asked=counts["asked"],
                    blocks_memory=memory,
                    blocks_file=file,
                    blocks_object=objects,
                )
                rows.append(row)
            return admin.HitsResponse(rows=rows)

    async def Families(self, request: admin.FamiliesRequest, context: Context) -> admin.FamiliesResponse:
        async with self._call(context):
            families = sorted(self._core.counters()["families"], key=lambda family: -int(family["asked"]))
            rows = []
            for family in families[: request.rows_max or FAMILY_ROWS]:
                opened = self._host.namespaces.by_handle(family["ns"])
                _, memory, file, objects = family["by_tier"]
                row = admin.FamilyRow(
                    family=self._handlers.label(family["family"]) or f"{family['family']:016x}",
                    namespace=opened.digest if opened else b"",
                    tenant=opened.tenant if opened else "",
                    blocks_asked=family["asked"],
                    blocks_memory=memory,
                    blocks_file=file,
                    blocks_object=objects,
                    error=family["error"],
                )
                rows.append(row)
            return admin.FamiliesResponse(rows=rows)

    async def Namespaces(self, request: admin.NamespacesRequest, context: Context) -> admin.NamespacesResponse:
        async with self._call(context):
            rows = [
                admin.NamespaceRow(
                    digest=opened.digest,
                    tenant=opened.tenant,
                    generation=opened.generation,
                    layout=convert.layout_message(opened.identity),
                )
                for opened in self._host.namespaces.all()
            ]
            return admin.NamespacesResponse(rows=rows)

    async def Locate(self, request: admin.LocateRequest, context: Context) -> admin.LocateResponse:
        async with self._call(context):
            opened = self._opened(request.namespace)
            keys = self._handlers.keys(opened, request.chain)
            places = [admin.BlockPlaces(key=key.tobytes()) for key in keys]
            for tier, field in ((MEMORY_TIER, "memory_shards"), (FILE_TIER, "file_shards")):
                if not any(status.tier == tier for status in self._host.tiers()):
                    continue
                for shard in range(len(opened.shards)):
                    _mark(places, field, shard, self._core.find(tier, opened.handle, shard, keys))
            if self._host.in_packs is not None:
                for shard in range(len(opened.shards)):
                    there = await self._packs(request.chain.position, opened.handle, shard, keys)
                    _mark(places, "object_shards", shard, there)
            return admin.LocateResponse(blocks=places)

    async def _packs(self, position: int, ns: int, shard: int, keys: Keys) -> Iterable[bool]:
        in_packs, find_packs = self._host.in_packs, self._host.find_packs
        assert in_packs is not None and find_packs is not None
        known = in_packs(ns, shard, keys)
        if not known.all():
            hole = int(known.argmin())
            await find_packs(ns, shard, keys[hole:], position + hole, self._host.limits.hold_wait_ms_max / 1e3)
        return in_packs(ns, shard, keys)

    async def Nodes(self, request: admin.NodesRequest, context: Context) -> admin.NodesResponse:
        async with self._call(context):
            cluster = self._host.cluster
            discovery = cluster.discovery
            return admin.NodesResponse(
                nodes=[_node_row(node) for node in cluster.nodes()],
                discovery=discovery.kind,
                discovery_away_s=discovery.away_s,
                view_epoch=cluster.view_epoch,
            )

    async def Events(self, request: store.WatchRequest, context: Context) -> None:  # type: ignore[override]
        from kvstore.node.service import tell_events

        async with self._call(context, endless=True) as peer:
            await tell_events(self._handlers, peer, request, context)

    async def Offer(self, request: store.OfferRequest, context: Context) -> store.OfferResponse:
        async with self._entrance.call(context):  # whoever may call at all: it tells where to knock, and opens nothing
            return await self._handlers.offer()

    # ---- steering -----------------------------------------------------------------------------------------------

    async def Pin(self, request: admin.PinRequest, context: Context) -> admin.PinResponse:
        async with self._call(context) as peer:
            opened = self._opened(request.namespace)
            convert.check_shards([request.shard], len(opened.shards))
            prefix = self._handlers.prefix(opened, request.chain, store.Hints())
            duration_ms = min(request.duration_ms or PIN_MS, 2**31)
            self._forget_lapsed()
            if len(self._pins) >= PINS_MAX:
                raise Rejected(f"pins_max: {PINS_MAX} are in force", limit="pins_max")
            holds: list[int] = []
            blocks = 0
            while blocks < len(prefix.keys):
                run = await self._host.bridge.fetch(
                    self._owner,
                    opened.handle,
                    request.shard,
                    prefix.keys[blocks:],
                    kind=native.HoldKind.PIN,
                    hint=prefix.hint(blocks),
                    wait_s=min(request.wait_ms or 2**31, self._host.limits.hold_wait_ms_max) / 1e3,
                    lease_s=duration_ms / 1e3,
                )
                if run.status == native.Status.REJECTED and not holds:
                    raise Rejected("pinned_bytes_max: no room for more pins", limit="pinned_bytes_max")
                if not run.hold:
                    break
                holds.append(run.hold)
                blocks += len(run.offsets)
                if not run.window_full:
                    break
            if not holds:
                return admin.PinResponse()
            self._pins[holds[0]] = (self._host.clock.now_ns() + duration_ms * 1_000_000, holds)
            log.info("%s pinned %d blocks of %s for %d ms", peer.name, blocks, opened.tenant, duration_ms)
            size = sum(opened.shards[request.shard].part_bytes)
            return admin.PinResponse(pin=holds[0], blocks=blocks, bytes=blocks * size)

    async def Unpin(self, request: admin.UnpinRequest, context: Context) -> admin.UnpinResponse:
        async with self._call(context):
            self._forget_lapsed()
            _, holds = self._pins.pop(request.pin, (0, []))
            for hold in holds:
                self._core.release(MEMORY_TIER, self._owner, hold)
            return admin.UnpinResponse(released=bool(holds))

    def _forget_lapsed(self) -> None:
        now = self._host.clock.now_ns()
        self._pins = {pin: (lapses, holds) for pin, (lapses, holds) in self._pins.items() if lapses > now}

    async def Retire(self, request: admin.RetireRequest, context: Context) -> admin.RetireResponse:
        async with self._call(context) as peer:
            opened = self._opened(request.namespace)
            slots = self._core.retire_keys(opened.handle, self._handlers.keys(opened, request.chain))
            log.info("%s retired %d slots of %s", peer.name, slots, opened.tenant)
            return admin.RetireResponse(slots=slots)

    async def Drain(self, request: admin.DrainRequest, context: Context) -> None:  # type: ignore[override]
        async with self._call(context, endless=True) as peer:
            copies = self._handlers.copies
            if copies is None:
                raise Unavailable("drain: this node is still starting")
            async for progress in copies.drained(request, peer.name):
                await context.write(progress)

    async def Verify(self, request: admin.VerifyRequest, context: Context) -> None:  # type: ignore[override]
        async with self._call(context, endless=True) as peer:
            only = self._opened(request.namespace) if request.namespace else None
            keys: frozenset[bytes] | None = None
            if request.HasField("chain"):
                if only is None:
                    raise ValueError("namespace: needed with a chain")
                keys = frozenset(key.tobytes() for key in self._handlers.keys(only, request.chain))
            log.info("%s verifies %s", peer.name, only.tenant if only else "everything")
            async for progress in verify(self._host, only, keys):
                await context.write(progress)


def _node_row(node: NodeSeen) -> admin.NodeRow:
    member = node.member
    return admin.NodeRow(
        name=member.name,
        id=member.id,
        address=member.address,
        grpc=member.grpc,
        version=member.version,
        host=member.host,
        state=admin.NodeState.ValueType(node.state),
        state_s=node.state_s,
        rtt_ms=(node.rtt_s or 0.0) * 1e3,
        self=node.own,
        in_view=node.in_view,
        problem=node.problem,
    )


def _tier_status(tier: TierReport) -> admin.TierStatus:
    stats = dict(tier.stats)
    return admin.TierStatus(
        tier=store.Tier.ValueType(tier.tier),
        medium=tier.medium,
        capacity_bytes=tier.capacity_bytes,
        asked_bytes=tier.asked_bytes,
        used_bytes=stats.pop("payload_bytes_sealed", 0),
        free_bytes=stats.pop("bytes_free", 0),
        slots_sealed=stats.pop("slots_sealed", 0),
        slots_reserved=stats.pop("slots_reserved", 0),
        slots_retired=stats.pop("slots_retired", 0),
        index_bytes=stats.pop("index_bytes", 0),
        counters=stats,
    )


def _mark(places: Sequence[admin.BlockPlaces], field: str, shard: int, there: Iterable[bool]) -> None:
    """Sets the shard's bit of each block that is there."""
    for place, here in zip(places, there, strict=True):
        if here:
            setattr(place, field, getattr(place, field) | 1 << shard)
