"""put(replicas=n): blocks of this node on other hosts too, chosen by rendezvous on their family.

Rules
- Hosts count, not nodes: nodes of one machine die together. `Member.host` says which (cluster.host).
- A family has the same hosts at every put, for as long as they live, so the blocks of one prompt lie together. What
  goes on from a prompt's beginning, of a family that is not named, has its own.
- A host that fails or refuses makes way for the next in order, while there is time. Fewer than asked is an answer.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from kvstore.client.landed import leading
from kvstore.errors import KvStoreError
from kvstore.node.handing import by_rendezvous
from kvstore.node.held_here import held_here
from kvstore.node.wanted import family_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kvstore.directory.base import Member
    from kvstore.native import NodeCore
    from kvstore.node.bringing import Bringer
    from kvstore.node.cluster import Cluster
    from kvstore.node.namespaces import Opened
    from kvstore.node.streams import Prefix
    from kvstore.wire import framed

__all__ = ["Spreading", "in_turn"]

REPLICATE_S_MAX: Final = 60.0


def in_turn(family: bytes, nodes: Iterable[Member], own_host: str) -> list[Member]:
    """Nodes of other hosts in the order in which they are asked: the best of each host by weight, best first, then the
    second best of each. Pure.
    """
    others = {node.id: node for node in nodes if node.host != own_host}
    seen: Counter[str] = Counter()
    turns: list[tuple[int, Member]] = []
    for one in by_rendezvous(family, others):
        node = others[one]
        turns.append((seen[node.host], node))
        seen[node.host] += 1
    return [node for _, node in sorted(turns, key=lambda turn: turn[0])]


@dataclass(frozen=True, slots=True)
class Spreading:
    """Of a node."""

    cluster: Cluster
    core: NodeCore
    bringer: Bringer
    has_files: bool

    async def replicate(
        self, opened: Opened, shard: int, prefix: Prefix, request: framed.ReplicateRequest
    ) -> NDArray[np.uint8]:
        """On how many hosts each block of the prefix is sealed, this one among them; at most `deadline_ms`."""
        here = held_here(self.core, opened.handle, shard, prefix.keys, has_files=self.has_files)
        hosts = here.astype(np.uint8)
        blocks = leading(here)
        wanted = request.replicas - 1
        if not blocks or not wanted:
            return hosts
        until = asyncio.get_running_loop().time() + min(request.deadline_ms / 1e3, REPLICATE_S_MAX)
        family = family_of(prefix).to_bytes(8, "little") + opened.digest
        order = in_turn(family, self.cluster.members(), self.cluster.me.host)
        asking = _Asking(self.bringer, opened, shard, prefix, request, blocks, until)
        for came in (await asking.all(order, wanted)).values():
            hosts[:came] += 1
        return hosts


@dataclass(frozen=True, slots=True)
class _Asking:
    bringer: Bringer
    opened: Opened
    shard: int
    prefix: Prefix
    request: framed.ReplicateRequest
    blocks: int
    until: float

    async def all(self, order: Sequence[Member], wanted: int) -> dict[str, int]:
        """How many blocks from the first on each host has; `wanted` hosts are asked at once, and the next one for each
        that has not all of them.
        """
        came: dict[str, int] = {}
        left = iter(order)
        await asyncio.gather(*(self._one(left, came) for _ in range(wanted)))
        return came

    async def _one(self, left: Iterator[Member], came: dict[str, int]) -> None:
        loop = asyncio.get_running_loop()
        for node in left:
            if came.get(node.host) == self.blocks:
                continue
            left_s = self.until - loop.time()
            if left_s <= 0:
                return
            try:
                brought = await self.bringer.bring(
                    node,
                    self.opened,
                    self.shard,
                    self.prefix.keys[: self.blocks],
                    parent=self.prefix.parent,
                    position=self.request.chain.position,
                    hints=self.request.hints,
                    deadline_s=left_s,
                )
            except KvStoreError:
                continue
            if came.get(node.host) == self.blocks:  # another node of it was asked meanwhile
                continue
            came[node.host] = max(came.get(node.host, 0), brought.blocks)
            if brought.blocks == self.blocks:
                return
