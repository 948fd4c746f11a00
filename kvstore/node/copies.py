"""What nodes ask of nodes about copies of blocks: bring these, how much room is there, drain. And a drain from afar.

An operator asks any node to drain any other: the asked one passes it on and tells how far it is, for as long as he
listens. The drain itself goes on without him.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kvstore.errors import Rejected, Unavailable
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.bringing import Bringer, Bringing
from kvstore.node.drain import Drain, Sources
from kvstore.node.spreading import Spreading
from kvstore.tiers.base import TierKind
from kvstore.wire import admin, convert, peers, store

if TYPE_CHECKING:
    from pathlib import Path

    from google.protobuf.message import Message

    from kvstore.directory.base import Member
    from kvstore.node.cluster import Cluster
    from kvstore.node.handlers import Handlers, NodeHost
    from kvstore.node.object_store import ObjectStore
    from kvstore.node.replicas import Replicas
    from kvstore.node.visitors import Visitors

__all__ = ["METHODS", "Copies", "make_copies"]

METHODS: Final = frozenset({store.METHOD_PEER_BRING, store.METHOD_PEER_ROOM, store.METHOD_PEER_DRAIN})
TELL_S: Final = 0.25  # between two looks at how far a drain is
ASK_S: Final = 5.0
AWAY_S: Final = 30.0  # a node that is started again goes on draining; after that it is taken for gone


@dataclass(slots=True)
class Copies:
    """Of a node among others."""

    cluster: Cluster
    bringing: Bringing
    drain: Drain

    async def call(self, node: Member, method: int, body: bytes) -> bytes:
        """What another node asks. Raises ValueError naming the field, Rejected, Unavailable."""
        answer: Message
        try:
            match method:
                case store.METHOD_PEER_BRING:
                    answer = await self.bringing.bring(node, peers.PeerBringRequest.FromString(body))
                case store.METHOD_PEER_ROOM:
                    answer = self.bringing.room()
                case _:
                    request = peers.PeerDrainRequest.FromString(body)
                    told = self._steer(request.verb, f"{request.who[:256]!r} at {node.name}")
                    answer = peers.PeerDrainResponse(progress=told.SerializeToString())
        except convert.DecodeError as error:
            raise ValueError("body: not a message of this method") from error
        return answer.SerializeToString()

    def _steer(self, verb: int, who: str) -> admin.DrainProgress:
        if verb == peers.DRAIN_BEGIN:
            self.drain.begin(who)
        elif verb == peers.DRAIN_CANCEL:
            self.drain.cancel(who)
        return self.drain.progress()

    # ---- for operators ----------------------------------------------------------------------------------------------

    async def drained(self, request: admin.DrainRequest, who: str) -> AsyncIterator[admin.DrainProgress]:
        """How far it is, until it is done. Raises ValueError for a node that is not known, Unavailable."""
        verb = peers.DRAIN_LOOK if request.look else peers.DRAIN_CANCEL if request.cancel else peers.DRAIN_BEGIN
        node = self._named(request.node)
        loop = asyncio.get_running_loop()
        last = None
        while True:
            try:
                told = await self._asked(node, verb, who)
                last = loop.time()
            except Unavailable:
                if last is None or loop.time() - last > AWAY_S:
                    raise
                await asyncio.sleep(TELL_S)
                continue
            yield told
            if told.done or (verb != peers.DRAIN_BEGIN and request.cancel):
                return
            verb = peers.DRAIN_LOOK
            await asyncio.sleep(TELL_S)

    def _named(self, name: str) -> Member:
        """By its name, id or address; "" is this one. Raises ValueError."""
        me, others = self.cluster.me, self.cluster.members()
        if not name or name in {me.name, me.id.hex(), me.address}:
            return me
        found = [one for one in others if name in {one.name, one.id.hex(), one.address}]
        if len(found) != 1:
            known = ", ".join(sorted(one.name for one in [me, *others]))
            raise ValueError(f"node: {name!r} is {'none' if not found else 'several'} of the living nodes: {known}")
        return found[0]

    async def _asked(self, node: Member, verb: peers.DrainVerb.ValueType, who: str) -> admin.DrainProgress:
        if node is self.cluster.me:
            return self._steer(verb, who)
        request = peers.PeerDrainRequest(verb=verb, who=who)
        try:
            body = await self.cluster.peers.call(
                node.address, store.METHOD_PEER_DRAIN, request.SerializeToString(), ASK_S
            )
            return admin.DrainProgress.FromString(peers.PeerDrainResponse.FromString(body).progress)
        except (Rejected, convert.DecodeError) as error:
            raise Unavailable(f"{node.name}: {error}") from error


def make_copies(
    host: NodeHost,
    handlers: Handlers,
    replicas: Replicas,
    visitors: Visitors,
    objects: ObjectStore | None,
    mark: Path,
    refuse_puts: Callable[[bool], None],
) -> Copies:
    """Of a node, whose handlers and visitors learn of it. mark: what says that it drains. refuse_puts: those that the
    framed door answers natively.
    """
    core, cluster, namespaces = host.bridge.core, host.cluster, host.namespaces

    def refuse(draining: bool) -> None:
        refuse_puts(draining)
        replicas.draining = visitors.draining = draining

    bringer = Bringer(cluster.peers)
    # A directory is this machine's; a bucket is everybody's.
    shared = objects if objects is not None and not objects.url.startswith("file:") else None
    sources = Sources(
        core,
        namespaces,
        (MEMORY_TIER, int(TierKind.FILE)) if replicas.has_files else (MEMORY_TIER,),
        in_packs=shared.tier.lookup if shared is not None else None,
        flush=shared.writer.flush if shared is not None else None,
    )
    drain = Drain(mark, sources, cluster, bringer, refuse, host.limits.reserve_lapse_ms / 1e3)
    bringing = Bringing(core, namespaces, replicas, host.limits, host.family_blocks, lambda: drain.draining)
    handlers.spreading = Spreading(cluster, core, bringer, replicas.has_files)
    handlers.copies = copies = Copies(cluster, bringing, drain)
    return copies
