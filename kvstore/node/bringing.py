"""One node asks another to have blocks: who is to have them reads them (replicas.py), from the asker or who has them.

Rules
- What the asked node has already it answers at once, and copies nothing of it.
- A namespace that it has not open it opens, by its layout; one that it knows to be cleared it brings nothing of.
- Limited by number (BRINGS_MAX), by bytes under way (replicas.BRINGING_BYTES_MAX) and by time; a node whose memory is
  only holds, and one that is draining, refuses: Rejected, naming the limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from google.protobuf.message import DecodeError

from kvstore.errors import Rejected, Unavailable
from kvstore.identity import namespace_digest
from kvstore.node.bridge import MEMORY_TIER
from kvstore.node.namespaces import NotOpen
from kvstore.node.streams import Prefix
from kvstore.wire import convert, framed, peers, store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvstore.config import LimitsConfig
    from kvstore.directory.base import Member
    from kvstore.native import NodeCore
    from kvstore.node.namespaces import Namespaces, Opened
    from kvstore.node.peers import Peers
    from kvstore.node.replicas import Replicas

__all__ = ["DRAINING", "Bringer", "Bringing", "Brought", "refuse_draining"]

BRINGS_MAX: Final = 16  # at once, for all nodes together
BRING_S_MAX: Final = 60.0
ASK_S: Final = 1.0  # what an answer may take beyond its bytes
BYTES_PER_S: Final = 32 << 20  # that a node is given time for; a slower one is passed over
ROOM_S: Final = 2.0
DRAINING: Final = "draining"


def refuse_draining() -> Rejected:
    """What a node says that hands its blocks on."""
    return Rejected(f"{DRAINING}: this node hands its blocks on and takes no new ones", limit=DRAINING)


@dataclass(frozen=True, slots=True)
class Brought:
    """So many blocks from the first on are sealed there now; so many of them were before."""

    blocks: int
    held: int


@dataclass(slots=True)
class Bringing:
    """The asked side, of a node. draining: whether it is."""

    core: NodeCore
    namespaces: Namespaces
    replicas: Replicas
    limits: LimitsConfig
    family_blocks: int
    draining: Callable[[], bool]
    _under_way: int = 0

    async def bring(self, asker: Member, request: peers.PeerBringRequest) -> peers.PeerBringResponse:
        """Raises ValueError naming the field, Rejected."""
        if self.draining():
            raise refuse_draining()
        if self._under_way >= BRINGS_MAX:
            raise Rejected(f"brings_max: {BRINGS_MAX} are under way", limit="brings_max")
        try:
            opened = self._opened(request)
        except NotOpen:  # cleared: nothing of it is to be anywhere
            return peers.PeerBringResponse()
        prefix = self._prefix(opened, request)
        convert.check_shard("shard", request.shard, len(opened.shards))
        held = self.replicas.here(opened, request.shard, prefix.keys)
        if held == len(prefix.keys):
            return peers.PeerBringResponse(blocks=held, held=held)
        asked = framed.LeaseRequest(
            shard=request.shard, chain=store.Chain(position=request.position), hints=request.hints
        )
        wait_s = min(request.deadline_ms / 1e3, BRING_S_MAX)
        self._under_way += 1
        try:
            blocks = await self.replicas.bring(opened, prefix, asked, wait_s, source=asker.id, loud=True)
        except NotOpen:
            return peers.PeerBringResponse()
        finally:
            self._under_way -= 1
        return peers.PeerBringResponse(blocks=blocks, held=min(held, blocks))

    def room(self) -> peers.PeerRoomResponse:
        stats = self.core.stats(MEMORY_TIER)
        free = stats["bytes_free"]
        return peers.PeerRoomResponse(
            free_bytes=free, bytes=free + stats["payload_bytes_sealed"], draining=self.draining()
        )

    def _opened(self, request: peers.PeerBringRequest) -> Opened:
        """Raises NotOpen where it was cleared, here or there."""
        opened = self.namespaces.find(request.namespace)
        if opened is not None:
            return opened
        identity = replace(convert.identity_of(request.layout, request.tenant), generation=request.generation)
        if namespace_digest(identity) != request.namespace:
            raise ValueError("namespace: is not that of the layout, tenant and generation")
        opened = self.namespaces.open(identity)
        if opened.digest != request.namespace:
            raise NotOpen
        return opened

    def _prefix(self, opened: Opened, request: peers.PeerBringRequest) -> Prefix:
        chain = store.Chain(keys=request.keys, parent=request.parent, position=request.position)
        keys = convert.keys(chain, opened.seed, opened.block_tokens, self.limits.keys_per_call_max)
        if not len(keys):
            raise ValueError("keys: none")
        return Prefix(
            keys,
            request.parent,
            lambda first: convert.hint(request.hints, keys, self.family_blocks, request.position, first),
        )


@dataclass(frozen=True, slots=True)
class Bringer:
    """The asking side."""

    lines: Peers

    async def bring(
        self,
        node: Member,
        opened: Opened,
        shard: int,
        keys: NDArray[np.uint8],
        *,
        parent: bytes,
        position: int,
        hints: store.Hints,
        deadline_s: float,
    ) -> Brought:
        """At `node`. Raises Rejected naming the limit, Unavailable."""
        size = len(keys) * sum(opened.shards[shard].part_bytes)
        within_s = min(deadline_s, ASK_S + size / BYTES_PER_S)
        request = peers.PeerBringRequest(
            namespace=opened.digest,
            layout=convert.layout_message(opened.identity),
            tenant=opened.tenant,
            generation=opened.generation,
            shard=shard,
            keys=keys.tobytes(),
            parent=parent,
            position=position,
            hints=hints,
            deadline_ms=max(1, round(within_s * 0.9e3)),
        )
        try:
            body = await self.lines.call(
                node.address, store.METHOD_PEER_BRING, request.SerializeToString(), max(0.001, within_s)
            )
            told = peers.PeerBringResponse.FromString(body)
        except (ValueError, DecodeError) as error:  # another version of us
            raise Unavailable(f"{node.address}: {error}") from error
        if not told.held <= told.blocks <= len(keys):
            raise Unavailable(f"{node.address}: its answer does not fit what was asked")
        return Brought(told.blocks, told.held)

    async def rooms(self, nodes: list[Member]) -> dict[bytes, peers.PeerRoomResponse]:
        """Of those that answer, by id."""
        asked = [
            self.lines.call(node.address, store.METHOD_PEER_ROOM, peers.PeerRoomRequest().SerializeToString(), ROOM_S)
            for node in nodes
        ]
        told = await asyncio.gather(*asked, return_exceptions=True)
        rooms: dict[bytes, peers.PeerRoomResponse] = {}
        for node, body in zip(nodes, told, strict=True):
            if isinstance(body, bytes):
                try:
                    rooms[node.id] = peers.PeerRoomResponse.FromString(body)
                except DecodeError:
                    continue
            elif not isinstance(body, Exception):
                raise body
        return rooms
