"""What a node tells an operator about itself: asked by Admin's own calls, and by other nodes for their operators.

Whoever may ask was looked at before: by Admin (the right `admin`), or at the node that the operator called. Nothing is
changed by a question. Raises NotOpen; ValueError naming the field; Unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore.errors import Unavailable
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.holdings import least_keys
from kvstore.node.namespaces import NotOpen
from kvstore.tiers.base import TierKind
from kvstore.wire import admin, convert, store

if TYPE_CHECKING:
    from kvstore.node.handlers import Handlers, NodeHost, TierReport
    from kvstore.node.namespaces import Opened
    from kvstore.tiers.base import Keys

__all__ = ["Questions"]

FILE_TIER: Final = int(TierKind.FILE)
FAMILY_ROWS: Final = 20
FAMILY_ROWS_MAX: Final = 10_000
KEYS_MAX: Final = 65_536  # of one answer about holdings
PACKS_S: Final = 4.0  # that an answer waits for an object store: what else is known is told in time


@dataclass(slots=True)
class Questions:
    """Of a node."""

    host: NodeHost
    handlers: Handlers

    async def answer(self, question: admin.Question) -> admin.Answer:  # noqa: PLR0911 - a question a line
        match question.WhichOneof("about"):
            case "status":
                return admin.Answer(status=self.status())
            case "tiers":
                return admin.Answer(tiers=self.tiers())
            case "hits":
                return admin.Answer(hits=self.hits())
            case "families":
                return admin.Answer(families=self.families(question.families))
            case "namespaces":
                return admin.Answer(namespaces=self.namespaces())
            case "locate":
                return admin.Answer(locate=await self.locate(question.locate))
            case "settings":
                return admin.Answer(settings=self.settings())
            case "holdings":
                return admin.Answer(holdings=await self.holdings(question.holdings))
            case _:
                raise ValueError("question: none that this node knows; its release may be older")

    def opened(self, digest: bytes) -> Opened:
        opened = self.host.namespaces.find(digest)
        if opened is None:
            raise NotOpen
        return opened

    def status(self) -> admin.StatusResponse:
        """Raises Unavailable before this node has joined: whoever waits for it, or stops the next one once this one is
        back, goes by this question.
        """
        host = self.host
        if not host.cluster.is_open:
            raise Unavailable("this node is still starting, and serves nothing yet")
        memory = host.bridge.core.stats(MEMORY_TIER)
        doors = host.doors()
        locator = host.cluster.locator
        return admin.StatusResponse(
            node=self.handlers.info(),
            uptime_s=(host.clock.now_ns() - host.started_ns) / 1e9,
            namespaces=len(host.namespaces.all()),
            connections=doors.connections,
            holds=memory["holds"],
            pinned_bytes=memory["pinned_bytes"],
            event_sequence=host.bridge.core.event_sequence,
            listening=doors.addresses,
            tls=doors.tls,
            insecure=doors.insecure,
            tiers=[_tier_status(tier, counters=False) for tier in host.tiers()],
            claims=locator.counts.claims if locator is not None else 0,
            claims_bytes=locator.counts.claims_bytes if locator is not None else 0,
            stood_still=not host.cluster.fit,
            drain=self.handlers.copies.drain.state if self.handlers.copies is not None else admin.DRAIN_NONE,
            clears=host.namespaces.generations.hash,
        )

    def tiers(self) -> admin.TiersResponse:
        return admin.TiersResponse(tiers=[_tier_status(tier, counters=True) for tier in self.host.tiers()])

    def hits(self) -> admin.HitsResponse:
        rows = []
        for ns, counts in self.host.bridge.core.counters()["namespaces"].items():
            opened = self.host.namespaces.by_handle(ns)
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
        far = self.host.lender.counts.blocks
        return admin.HitsResponse(rows=rows, far_memory=far[TierKind.MEMORY], far_file=far[TierKind.FILE])

    def families(self, request: admin.FamiliesRequest) -> admin.FamiliesResponse:
        families = sorted(self.host.bridge.core.counters()["families"], key=lambda family: -int(family["asked"]))
        most = min(request.rows_max or FAMILY_ROWS, FAMILY_ROWS_MAX)
        rows = []
        for family in families[:most]:
            opened = self.host.namespaces.by_handle(family["ns"])
            _, memory, file, objects = family["by_tier"]
            row = admin.FamilyRow(
                family=self.handlers.label(family["family"]) or f"{family['family']:016x}",
                namespace=opened.digest if opened else b"",
                tenant=opened.tenant if opened else "",
                blocks_asked=family["asked"],
                blocks_memory=memory,
                blocks_file=file,
                blocks_object=objects,
                error=family["error"],
                number=family["family"],
            )
            rows.append(row)
        return admin.FamiliesResponse(rows=rows, untold_max=self._untold(families, most))

    def _untold(self, families: Sequence[dict[str, int]], told: int) -> int:
        """How much a family may have been asked for that is not among those told: one counted and cut off here, or one
        that had to make way, which it does as the one asked for least.
        """
        if len(families) > told:
            return families[told]["asked"]
        full = len(families) >= self.host.limits.families_max
        return families[-1]["asked"] if full and families else 0

    def namespaces(self) -> admin.NamespacesResponse:
        rows = [
            admin.NamespaceRow(
                digest=opened.digest,
                tenant=opened.tenant,
                generation=opened.generation,
                layout=convert.layout_message(opened.identity),
            )
            for opened in self.host.namespaces.all()
        ]
        return admin.NamespacesResponse(rows=rows)

    def settings(self) -> admin.SettingsResponse:
        return admin.SettingsResponse(agreed=self.host.cluster.settings, settings=self.host.settings)

    # ---- blocks -------------------------------------------------------------------------------------------------

    async def locate(self, request: admin.LocateRequest) -> admin.LocateResponse:
        if request.known_only and self.host.namespaces.find(request.namespace) is None:
            return admin.LocateResponse()
        opened = self.opened(request.namespace)
        keys = self.handlers.keys(opened, request.chain)
        places = [admin.BlockPlaces(key=b"" if request.known_only else key.tobytes()) for key in keys]
        core = self.host.bridge.core
        for tier, field in ((MEMORY_TIER, "memory_shards"), (FILE_TIER, "file_shards")):
            if not any(status.tier == tier for status in self.host.tiers()):
                continue
            for shard in range(len(opened.shards)):
                _mark(places, field, shard, core.find(tier, opened.handle, shard, keys))
        if self.host.in_packs is not None:
            shards = range(len(opened.shards))
            there = await asyncio.gather(*(self._packs(request, opened.handle, shard, keys) for shard in shards))
            for shard, packed in zip(shards, there, strict=True):
                _mark(places, "object_shards", shard, packed)
        claims = await self._claims(opened, keys) if request.with_claims else []
        return admin.LocateResponse(blocks=places, claims=claims)

    async def _packs(self, request: admin.LocateRequest, ns: int, shard: int, keys: Keys) -> Iterable[bool]:
        in_packs, find_packs = self.host.in_packs, self.host.find_packs
        assert in_packs is not None and find_packs is not None
        known = in_packs(ns, shard, keys)
        if not known.all() and not request.known_only:
            hole, wait_s = int(known.argmin()), min(PACKS_S, self.host.limits.hold_wait_ms_max / 1e3)
            await find_packs(ns, shard, keys[hole:], request.chain.position + hole, wait_s)
        return in_packs(ns, shard, keys)

    async def _claims(self, opened: Opened, keys: Keys) -> list[admin.NodeClaims]:
        locator = self.host.cluster.locator
        if locator is None:
            return []
        claimed = await locator.claimed(opened.digest, keys)
        return [
            admin.NodeClaims(node=node, shards=shards.astype("<u8").tobytes(), tiers=tiers.tobytes())
            for node, shards, tiers in zip(claimed.nodes, claimed.shards, claimed.tiers, strict=True)
        ]

    async def holdings(self, request: admin.HoldingsRequest) -> admin.HoldingsResponse:
        most = min(request.keys_max or KEYS_MAX, KEYS_MAX)
        only = self.host.namespaces.find(request.namespace) if request.namespace else None
        if request.namespace and only is None:
            return admin.HoldingsResponse()
        held = await least_keys(self.host.bridge.core, most, only.handle if only is not None else -1)
        told = [
            (place, blocks, opened)
            for place, (ns, blocks) in enumerate(held.blocks.items())
            if (opened := self.host.namespaces.by_handle(ns)) is not None
        ]
        numbers = np.full(len(held.blocks) + 1, -1, np.int64)
        numbers[[place for place, _, _ in told]] = np.arange(len(told))
        places = numbers[held.places]
        known = places >= 0  # the others were closed meanwhile
        return admin.HoldingsResponse(
            namespaces=[
                admin.NamespaceHeld(
                    digest=opened.digest, tenant=opened.tenant, model=opened.identity.model, blocks=blocks
                )
                for _, blocks, opened in told
            ],
            keys=held.keys[known].tobytes(),
            places=places[known].astype("<u2").tobytes(),
            shards=held.shards[known].astype("<u8").tobytes(),
            below=held.below,
        )


def _tier_status(tier: TierReport, *, counters: bool) -> admin.TierStatus:
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
        counters=stats if counters else {},
    )


def _mark(places: Sequence[admin.BlockPlaces], field: str, shard: int, there: Iterable[bool]) -> None:
    """Sets the shard's bit of each block that is there."""
    for place, here in zip(places, there, strict=True):
        if here:
            setattr(place, field, getattr(place, field) | 1 << shard)
