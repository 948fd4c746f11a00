"""The Admin service: look at a node and steer it. Every call needs the right `admin`, but for Offer."""

# ruff: noqa: N802, ARG002 - methods are named by the contract, and take what it gives them

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final

from kvstore import native
from kvstore.errors import Rejected, Unavailable
from kvstore.node.asking import node_row
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.verification import verify
from kvstore.wire import admin, convert, services, store

if TYPE_CHECKING:
    from kvstore.node.auth import Peer
    from kvstore.node.grpc_door import Context, Entrance
    from kvstore.node.handlers import Handlers, NodeHost
    from kvstore.node.namespaces import Opened
    from kvstore.node.streams import Prefix

log = logging.getLogger(__name__)

PIN_MS: Final = 60_000
PINS_MAX: Final = 10_000


class AdminService(services.AdminServicer):
    """kvstore.v1.Admin."""

    def __init__(self, host: NodeHost, handlers: Handlers, entrance: Entrance) -> None:
        self._host, self._handlers, self._entrance = host, handlers, entrance
        self._core = host.bridge.core
        self._questions = handlers.questions
        self._owner = self._core.new_owner()  # of pins, which outlive the call that asked for them
        self._pins: dict[int, tuple[int, list[int]]] = {}  # pin: when it lapses, its holds

    @asynccontextmanager
    async def _call(self, context: Context, *, endless: bool = False) -> AsyncIterator[Peer]:
        async with self._entrance.call(context, endless=endless) as peer:
            peer.require("admin")
            yield peer

    # ---- looking ------------------------------------------------------------------------------------------------

    async def Status(self, request: admin.StatusRequest, context: Context) -> admin.StatusResponse:
        async with self._call(context):
            return self._questions.status()

    async def Tiers(self, request: admin.TiersRequest, context: Context) -> admin.TiersResponse:
        async with self._call(context):
            return self._questions.tiers()

    async def Hits(self, request: admin.HitsRequest, context: Context) -> admin.HitsResponse:
        async with self._call(context):
            return self._questions.hits()

    async def Families(self, request: admin.FamiliesRequest, context: Context) -> admin.FamiliesResponse:
        async with self._call(context):
            return self._questions.families(request)

    async def Namespaces(self, request: admin.NamespacesRequest, context: Context) -> admin.NamespacesResponse:
        async with self._call(context):
            return self._questions.namespaces()

    async def Locate(self, request: admin.LocateRequest, context: Context) -> admin.LocateResponse:
        async with self._call(context):
            return await self._questions.locate(request)

    async def Nodes(self, request: admin.NodesRequest, context: Context) -> admin.NodesResponse:
        async with self._call(context):
            cluster = self._host.cluster
            discovery = cluster.discovery
            return admin.NodesResponse(
                nodes=[node_row(node) for node in cluster.nodes()],
                discovery=discovery.kind,
                discovery_away_s=discovery.away_s,
            )

    async def Ask(self, request: admin.AskRequest, context: Context) -> None:  # type: ignore[override]
        async with self._call(context), aclosing(self._handlers.asking.ask(request)) as answers:
            async for answer in answers:
                await context.write(answer)

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
            opened = self._questions.opened(request.namespace)
            convert.check_shards([request.shard], len(opened.shards))
            prefix = self._handlers.prefix(opened, request.chain, store.Hints())
            duration_ms = min(request.duration_ms or PIN_MS, 2**31)
            self._forget_lapsed()
            if len(self._pins) >= PINS_MAX:
                raise Rejected(f"pins_max: {PINS_MAX} are in force", limit="pins_max")
            holds: list[int] = []
            try:
                blocks = await self._held(request, opened, prefix, duration_ms / 1e3, holds)
            except BaseException:  # nobody is told its number: it would last, and only its time would end it
                self._let_go(holds)
                raise
            if not holds:
                return admin.PinResponse()
            self._pins[holds[0]] = (self._host.clock.now_ns() + duration_ms * 1_000_000, holds)
            log.info("%s pinned %d blocks of %s for %d ms", peer.name, blocks, opened.tenant, duration_ms)
            size = sum(opened.shards[request.shard].part_bytes)
            return admin.PinResponse(pin=holds[0], blocks=blocks, bytes=blocks * size)

    async def _held(
        self, request: admin.PinRequest, opened: Opened, prefix: Prefix, lease_s: float, holds: list[int]
    ) -> int:
        """How many blocks, from the first on; their holds are added one by one. Raises Rejected."""
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
                lease_s=lease_s,
            )
            if run.status == native.Status.REJECTED and not holds:
                raise Rejected("pinned_bytes_max: no room for more pins", limit="pinned_bytes_max")
            if not run.hold:
                break
            holds.append(run.hold)
            blocks += len(run.offsets)
            if not run.window_full:
                break
        return blocks

    def _let_go(self, holds: Iterable[int]) -> None:
        for hold in holds:
            self._core.release(MEMORY_TIER, self._owner, hold)

    async def Unpin(self, request: admin.UnpinRequest, context: Context) -> admin.UnpinResponse:
        async with self._call(context):
            self._forget_lapsed()
            _, holds = self._pins.pop(request.pin, (0, []))
            self._let_go(holds)
            return admin.UnpinResponse(released=bool(holds))

    def _forget_lapsed(self) -> None:
        now = self._host.clock.now_ns()
        self._pins = {pin: (lapses, holds) for pin, (lapses, holds) in self._pins.items() if lapses > now}

    async def Retire(self, request: admin.RetireRequest, context: Context) -> admin.RetireResponse:
        async with self._call(context) as peer:
            opened = self._questions.opened(request.namespace)
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
            only = self._questions.opened(request.namespace) if request.namespace else None
            keys: frozenset[bytes] | None = None
            if request.HasField("chain"):
                if only is None:
                    raise ValueError("namespace: needed with a chain")
                keys = frozenset(key.tobytes() for key in self._handlers.keys(only, request.chain))
            log.info("%s verifies %s", peer.name, only.tenant if only else "everything")
            async for progress in verify(self._host, only, keys):
                await context.write(progress)
