"""Which nodes hold which blocks, what the directory says of it, and how many copies there are. Pure.

A claim is a hint: "claimed" is what the directory names a node for, "held" what that node says itself, asked now. A
block has as many copies as that one of its shards which has the fewest; two nodes of one machine are one host.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.admin import rows
from kvstore.admin.rows import Row
from kvstore.admin.sums import answered, name_of
from kvstore.wire import admin

PLACE_COLUMNS: Final = ("blocks", "shard", "node", "claimed", "held")
COPY_COLUMNS: Final = ("namespace", "tenant", "model", "copies", "on_hosts", "on_nodes")
TIERS: Final = ("memory", "file", "object")
WHOLE: Final = 1 << 64  # below it, everything

Words: TypeAlias = npt.NDArray[np.uint64]
# Of a block's shard at a node: the tier that is claimed, and where it is; None: it has not answered.
Place: TypeAlias = tuple[str | None, tuple[str, ...] | None]


# ---- locate ----------------------------------------------------------------------------------------------------------


def holders(located: admin.LocateResponse, told: Sequence[admin.NodeAnswer]) -> list[Row]:
    """Runs of blocks that are alike at a node: by block, then shard, then node. `located`: of the node that knows the
    keys, with claims; `told`: what every node says that it has of them.
    """
    blocks = len(located.blocks)
    claims = {claim.node: _claims(claim) for claim in located.claims}
    out: list[Row] = []
    for one in told:
        held = _held(one, blocks)
        claimed = claims.get(one.node.id, ({}, ()))
        shards = sorted({*(held or {}), *_shards(claimed[0])})
        for shard in shards:
            places: list[Place] = [
                (_claimed(claimed, shard, at), held[shard][at] if held is not None and shard in held else _none(held))
                for at in range(blocks)
            ]
            out += _runs(one.node, shard, places)
    return sorted(out, key=lambda row: (row["first"], row["shard"], row["node"]))


def _none(held: object) -> tuple[str, ...] | None:
    return None if held is None else ()


def _claims(claim: admin.NodeClaims) -> tuple[Mapping[int, int], Sequence[int]]:
    """By block: the bitmap of shards, and the tier."""
    shards = np.frombuffer(claim.shards, "<u8")
    return {at: int(bitmap) for at, bitmap in enumerate(shards) if bitmap}, list(claim.tiers)


def _shards(bitmaps: Mapping[int, int]) -> set[int]:
    every = 0
    for bitmap in bitmaps.values():
        every |= bitmap
    return {shard for shard in range(64) if every >> shard & 1}


def _claimed(claimed: tuple[Mapping[int, int], Sequence[int]], shard: int, at: int) -> str | None:
    bitmaps, tiers = claimed
    return rows.TIER_NAMES.get(tiers[at]) if bitmaps.get(at, 0) >> shard & 1 else None


def _held(one: admin.NodeAnswer, blocks: int) -> dict[int, list[tuple[str, ...]]] | None:
    """By shard: the tiers that each block is on. None: it has not answered. An answer without blocks: nothing."""
    if not one.HasField("answer"):
        return None
    places = list(one.answer.locate.blocks)
    every = 0
    for block in places:
        every |= block.memory_shards | block.file_shards | block.object_shards
    return {
        shard: [
            tuple(tier for tier in TIERS if getattr(places[at], f"{tier}_shards") >> shard & 1)
            if at < len(places)
            else ()
            for at in range(blocks)
        ]
        for shard in range(64)
        if every >> shard & 1
    }


def _runs(node: admin.NodeRow, shard: int, places: Sequence[Place]) -> list[Row]:
    out: list[Row] = []
    first = 0
    for at in range(1, len(places) + 1):
        if at < len(places) and places[at] == places[first]:
            continue
        claimed, held = places[first]
        if claimed or held:
            out.append(
                {
                    "node": name_of(node),
                    "address": node.address,
                    "shard": shard,
                    "first": first,
                    "count": at - first,
                    "claimed": claimed,
                    "held": None if held is None else list(held),
                }
            )
        first = at
    return out


def holders_shown(found: Iterable[Row]) -> list[Row]:
    """For people."""
    out: list[Row] = []
    for row in found:
        first, count, held = row["first"], row["count"], row["held"]
        assert isinstance(first, int) and isinstance(count, int)
        says = "no answer" if held is None else ", ".join(map(str, held)) if isinstance(held, list) and held else "no"
        out.append(
            {
                "blocks": f"{first}-{first + count - 1}" if count > 1 else str(first),
                "shard": row["shard"],
                "node": row["node"],
                "claimed": row["claimed"] or "no",
                "held": says,
            }
        )
    return out


def located_told(blocks: int, found: Sequence[Row]) -> str:
    """In one line: how much of the chain is where, and how good the directory is."""
    held = np.zeros(blocks, np.bool_)
    wrong = np.zeros(blocks, np.bool_)
    untold = np.zeros(blocks, np.bool_)
    for row in found:
        first, count, where = row["first"], row["count"], row["held"]
        assert isinstance(first, int) and isinstance(count, int)
        run = slice(first, first + count)
        if isinstance(where, list) and where:
            held[run] = True
            untold[run] |= row["claimed"] is None and set(where) & {"memory", "file"} != set()
        elif isinstance(where, list):
            wrong[run] = True
    first_hole = int(np.flatnonzero(~held)[0]) if not held.all() else blocks
    return (
        f"{blocks} blocks: held by some node: {int(held.sum())}, the first {first_hole} without a hole; "
        f"claimed by a node that has them not: {int(wrong.sum())}; "
        f"held by a node that is not named for them: {int(untold.sum())}"
    )


# ---- copies ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Copies:
    """By number of copies: how many blocks. below: of the sample; WHOLE: it is all of them."""

    rows: list[Row]
    below: int

    @property
    def share(self) -> float:
        return self.below / WHOLE

    @property
    def exact(self) -> bool:
        return self.below == WHOLE


def of_holdings(told: Sequence[admin.NodeAnswer]) -> Copies:
    """By namespace, over the nodes that have answered; what lies in packs is no copy."""
    have = answered(told)
    below = min((one.answer.holdings.below or WHOLE for one in have), default=WHOLE)
    names: dict[bytes, admin.NamespaceHeld] = {}
    blocks: dict[tuple[bytes, bytes], list[tuple[int, int]]] = {}  # namespace and key: node and shards
    for place, one in enumerate(have):
        holdings = one.answer.holdings
        spaces = [space.digest for space in holdings.namespaces]
        names |= {space.digest: space for space in holdings.namespaces}
        keys = [holdings.keys[at : at + 16] for at in range(0, len(holdings.keys), 16)]
        whose, shards = np.frombuffer(holdings.places, "<u2"), np.frombuffer(holdings.shards, "<u8")
        for key, space, bitmap in zip(keys, whose.tolist(), shards.tolist(), strict=True):
            if int.from_bytes(key[:8], "big") < below:
                blocks.setdefault((spaces[space], key), []).append((place, bitmap))
    hosts = _hosts(have)
    counts: dict[bytes, tuple[Counter[int], Counter[int]]] = {}
    for (digest, _), held in blocks.items():
        on_nodes, on_hosts = counts.setdefault(digest, (Counter(), Counter()))
        on_nodes[fewest(held, range(len(have)))] += 1
        on_hosts[fewest(held, hosts)] += 1
    out: list[Row] = []
    for digest in sorted(counts, key=lambda one: -counts[one][0].total()):
        name = names[digest]
        about: Row = {"namespace": digest.hex(), "tenant": name.tenant, "model": name.model}
        out += [about | row for row in _rows(*counts[digest])]
    return Copies(out, below)


def of_chain(told: Sequence[admin.NodeAnswer]) -> list[Row]:
    """Of the blocks of one prompt; 0 copies: nobody has it in memory or files."""
    have = answered(told)
    hosts = _hosts(have)
    on_nodes: Counter[int] = Counter()
    on_hosts: Counter[int] = Counter()
    for at in range(max((len(one.answer.locate.blocks) for one in have), default=0)):
        held = []
        for place, one in enumerate(have):
            if at < len(one.answer.locate.blocks):
                block = one.answer.locate.blocks[at]
                held.append((place, block.memory_shards | block.file_shards))
        on_nodes[fewest(held, range(len(have)))] += 1
        on_hosts[fewest(held, hosts)] += 1
    return _rows(on_nodes, on_hosts)


def fewest(held: Iterable[tuple[int, int]], of: Sequence[object]) -> int:
    """How many have that shard which the fewest have. held: nodes, by place, with bitmaps; of: what each counts as."""
    having: dict[int, set[object]] = {}
    for node, bitmap in held:
        for shard in range(bitmap.bit_length()):
            if bitmap >> shard & 1:
                having.setdefault(shard, set()).add(of[node])
    return min(map(len, having.values()), default=0)


def _hosts(have: Sequence[admin.NodeAnswer]) -> list[object]:
    """A node whose machine is not known is one of its own."""
    return [one.node.host or (place,) for place, one in enumerate(have)]


def _rows(on_nodes: Counter[int], on_hosts: Counter[int]) -> list[Row]:
    return [
        {"copies": copies, "on_hosts": on_hosts[copies], "on_nodes": on_nodes[copies]}
        for copies in sorted({*on_nodes, *on_hosts})
    ]
