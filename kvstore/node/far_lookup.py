"""A lookup from anywhere: what this node holds, and what other nodes say that they do, into one boundary.

Rules
- Homes are asked for what is not here in memory or files alone: at most `directory_width` messages.
- A claim is a hint: a wrong one costs a miss of what is far.
- The estimate speaks of what is far: bytes at the speed measured of each holder (speeds.py), one after the other, since
  it is this node's own network that they share, and the longest of the holders' last pings.
- Tiers are told by the number of the holder's own, and FAR; slower ones count, in the order of SLOWER.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from kvstore.directory.base import distance
from kvstore.directory.locating import Holders, longest_boundary
from kvstore.native import NeedKind
from kvstore.tiers.base import TierKind
from kvstore.wire import store

if TYPE_CHECKING:
    from kvstore import native
    from kvstore.node.cluster import Cluster
    from kvstore.node.handlers import InPacks
    from kvstore.node.namespaces import Opened
    from kvstore.node.speeds import Speeds

__all__ = ["FAR", "FarFound", "FarLookup"]

FAR: Final = 8
# Places by number of a tier: which of two is slower. What is on no tier is slowest of all.
SLOWER: Final = (
    TierKind.MEMORY,
    TierKind.FILE,
    FAR + TierKind.MEMORY,
    FAR + TierKind.FILE,
    TierKind.OBJECT,
)

FARTHEST: Final = 9
RUNS_MAX: Final = 4_096  # holders that one answer names, a run each; what is behind them is found all the same
Need = tuple[int, int, int]  # shard, kind, blocks
Keys = npt.NDArray[np.uint8]
Tiers = npt.NDArray[np.uint8]

_NEAR: Final = np.zeros(FAR + 8, np.bool_)  # by tier: it is here, and no other node need be asked
_NEAR[[int(TierKind.MEMORY), int(TierKind.FILE)]] = True
_RANKS: Final = np.zeros(FAR + 8, np.uint8)
for _place, _tier in enumerate(SLOWER):
    _RANKS[int(_tier)] = _place + 1


@dataclass(frozen=True, slots=True)
class FarFound:
    """fetch_s: of what is far alone. holders: of that, by shard and block."""

    blocks: int
    tiers: bytes
    fetch_s: float
    holders: list[store.Holder] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FarLookup:
    """in_packs: which blocks lie in packs that this node knows. has_files: whether it has a tier of files."""

    core: native.NodeCore
    cluster: Cluster
    speeds: Speeds
    has_files: bool
    in_packs: InPacks | None

    async def find(self, opened: Opened, keys: Keys, needs: Sequence[Need]) -> FarFound:
        wanted = list(needs) or [(0, int(NeedKind.ALL), 0)]
        shards = sorted({shard for shard, _, _ in wanted})
        here = {shard: self._here(opened.handle, shard, keys) for shard in shards}
        near = np.logical_and.reduce([_NEAR[tiers] for tiers in here.values()])
        asked = np.flatnonzero(~near)
        locator = self.cluster.locator
        holders = Holders((), np.zeros((0, len(keys)), np.uint64), np.zeros((0, len(keys)), np.uint8))
        if locator is not None and len(asked):
            whole = len(asked) == len(keys)
            holders = await locator.locate(opened.digest, keys if whole else keys[asked])
            if not whole:
                holders = spread_out(holders, asked, len(keys))
        for shard, tiers in here.items():
            claimed = nearest(holders, shard)
            far = (claimed > 0) & ~_NEAR[tiers]
            tiers[far] = claimed[far] + FAR
        bitmap = np.zeros(len(keys), np.uint64)
        for shard, tiers in here.items():
            bitmap |= (tiers > 0).astype(np.uint64) << np.uint64(shard)
        blocks = longest_boundary(wanted, bitmap)
        read = reads(wanted, blocks)
        return self._told(opened, here, holders, read, blocks)

    def _here(self, handle: int, shard: int, keys: Keys) -> Tiers:
        """The nearest tier of each block at this node; 0: none."""
        tiers = np.zeros(len(keys), np.uint8)
        if self.in_packs is not None:
            tiers[self.in_packs(handle, shard, keys)] = TierKind.OBJECT
        if self.has_files:
            tiers[self.core.find(int(TierKind.FILE), handle, shard, keys)] = TierKind.FILE
        tiers[self.core.find(int(TierKind.MEMORY), handle, shard, keys)] = TierKind.MEMORY
        return tiers

    def _told(
        self, opened: Opened, here: dict[int, Tiers], holders: Holders, read: dict[int, int], blocks: int
    ) -> FarFound:
        slowest = np.zeros(blocks, np.uint8)
        told: list[store.Holder] = []
        moving_s, pings = 0.0, [0.0]
        order, rtts = self._order(holders.nodes)
        for shard, first in read.items():
            tiers = here[shard][:blocks].copy()
            tiers[:first] = 0
            slowest = np.where(_RANKS[tiers] > _RANKS[slowest], tiers, slowest)
            size = sum(opened.shards[shard].part_bytes)
            for begin, end in stretches(tiers > FAR):
                for run in holders.runs(shard, begin, end, order):
                    pings.append(rtts[run.node])
                    moving_s += run.count * size / self.speeds.of(run.node)
                    member = self.cluster.living(run.node)
                    if member is not None and len(told) < RUNS_MAX:
                        told.append(
                            store.Holder(
                                node=member.name,
                                address=member.address,
                                shard=shard,
                                first=run.first,
                                count=run.count,
                            )
                        )
        fetch_s = moving_s + max(pings) if moving_s else 0.0
        return FarFound(blocks, slowest.astype(np.uint8).tobytes(), fetch_s, told)

    def _order(self, nodes: Sequence[bytes]) -> tuple[list[bytes], dict[bytes, float]]:
        """Whom to name first of those that have the same: of this machine, by RDMA, then by how soon they answer."""
        rtts, far = {}, {}
        for node in nodes:
            member = self.cluster.living(node)
            far[node] = distance(self.cluster.me, member) if member is not None else FARTHEST
            rtts[node] = self.cluster.rtt_s(member.address) if member is not None else 0.0
        return sorted(nodes, key=lambda node: (far[node], rtts[node], node)), rtts


def spread_out(found: Holders, asked: npt.NDArray[np.intp], count: int) -> Holders:
    """What was found of some blocks, at their places among all."""
    shards = np.zeros((len(found.nodes), count), np.uint64)
    tiers = np.zeros((len(found.nodes), count), np.uint8)
    shards[:, asked], tiers[:, asked] = found.shards, found.tiers
    return Holders(found.nodes, shards, tiers)


def nearest(holders: Holders, shard: int) -> Tiers:
    """The nearest tier that somebody claims of each block of a shard; 0: nobody does."""
    has = (holders.shards >> np.uint64(shard) & np.uint64(1)).astype(np.bool_) & (holders.tiers > 0)
    none = np.uint8(255)
    least = np.where(has, holders.tiers, none).min(axis=0, initial=none)
    return np.where(least == none, np.uint8(0), least).astype(np.uint8)


def reads(needs: Sequence[Need], boundary: int) -> dict[int, int]:
    """Of each shard the first block that is read for this boundary."""
    first: dict[int, int] = {}
    for shard, kind, blocks in needs:
        span = {int(NeedKind.ALL): boundary, int(NeedKind.LAST): blocks, int(NeedKind.STATE): 1}[int(kind)]
        at = boundary - min(span, boundary)
        first[shard] = min(first.get(shard, at), at)
    return first


def stretches(chosen: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Begin and end of each run of true ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], chosen, [False]]).astype(np.int8)))
    return [(int(begin), int(end)) for begin, end in zip(edges[::2], edges[1::2], strict=True)]
