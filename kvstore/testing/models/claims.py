"""The claim table as plain dicts: what native/directory/claims.hpp says, without its memory. And homes, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

__all__ = ["ClaimTableModel", "Row", "bucket_of", "claim_hash", "highest", "homes_of", "key_hash", "mixed"]

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15
BUCKETS = 64
EVICT_SHARE = 256
NODES_MAX = 4096


def mixed(word: int) -> int:
    """The finalizer of MurmurHash3."""
    word ^= word >> 33
    word = word * 0xFF51AFD7ED558CCD & MASK
    word ^= word >> 33
    word = word * 0xC4CEB9FE1A85EC53 & MASK
    return word ^ word >> 33


def key_hash(name: bytes) -> int:
    """Of the first 16 bytes of a key, a node's id or a namespace's digest."""
    low, high = int.from_bytes(name[:8], "little"), int.from_bytes(name[8:16], "little")
    return mixed(low ^ mixed((high + GOLDEN) & MASK))


def bucket_of(key: bytes) -> int:
    return key_hash(key) >> 58


def claim_hash(ns: int, key: bytes, shards: int, tier: int) -> int:
    return mixed(key_hash(key) ^ mixed((shards + (ns << 8 | tier)) & MASK))


def highest(thing: bytes, nodes: Sequence[int], width: int) -> list[int]:
    order = sorted(range(len(nodes)), key=lambda place: (-mixed(key_hash(thing) ^ nodes[place]), place))
    return sorted(order[:width])


def homes_of(key: bytes, nodes: Sequence[int]) -> tuple[int, int]:
    order = sorted(range(len(nodes)), key=lambda place: (-mixed(key_hash(key) ^ nodes[place]), place))
    first, second = [*order, -1, -1][:2]
    return first, second


@dataclass(slots=True)
class Row:
    shards: int
    tier: int
    old: bool = False


@dataclass(slots=True)
class _Node:
    """`claims`: said longest ago first."""

    claims: dict[tuple[int, bytes], Row] = field(default_factory=dict)
    named: bool = True
    evicted: int = 0


class ClaimTableModel:
    def __init__(self, claims_max: int) -> None:
        self.claims_max = claims_max
        self.nodes: dict[int, _Node] = {}

    def __len__(self) -> int:
        return sum(len(node.claims) for node in self.nodes.values())

    def add_node(self) -> int:
        number = next(number for number in range(NODES_MAX + 1) if number not in self.nodes)
        if number == NODES_MAX:
            return -1
        self.nodes[number] = _Node()
        return number

    def drop_node(self, node: int) -> int:
        return len(self.nodes.pop(node).claims)

    def set_named(self, node: int, named: bool) -> None:
        self.nodes[node].named = named

    def apply(self, node: int, ns: int, rows: Iterable[tuple[bytes, int, int]]) -> tuple[int, int, int, int, int]:
        added = changed = withdrawn = unknown = evicted = 0
        claims = self.nodes[node].claims
        for key, shards, tier in rows:
            before = claims.pop((ns, key), None)
            if not shards:
                withdrawn += before is not None
                unknown += before is None
                continue
            if before is None:
                if len(self) >= self.claims_max:
                    evicted += self._make_room()
                added += 1
            else:
                changed += (before.shards, before.tier) != (shards, tier)
            claims[ns, key] = Row(shards, tier)
        return added, changed, withdrawn, unknown, evicted

    def _make_room(self) -> int:
        most = max(sorted(self.nodes), key=lambda number: len(self.nodes[number].claims))
        node = self.nodes[most]
        batch = list(node.claims)[: max(self.claims_max // EVICT_SHARE, 1)]
        for name in batch:
            del node.claims[name]
        node.evicted += len(batch)
        return len(batch)

    def drop_namespace(self, node: int, ns: int) -> int:
        claims = self.nodes[node].claims
        gone = [name for name in claims if name[0] == ns]
        for name in gone:
            del claims[name]
        return len(gone)

    def begin(self, node: int, buckets: int) -> None:
        if buckets == MASK:
            self.nodes[node].evicted = 0
        for (_, key), row in self.nodes[node].claims.items():
            row.old |= bool(buckets >> bucket_of(key) & 1)

    def end(self, node: int, buckets: int) -> int:
        claims = self.nodes[node].claims
        gone = [name for name, row in claims.items() if row.old and buckets >> bucket_of(name[1]) & 1]
        for name in gone:
            del claims[name]
        return len(gone)

    def holders(self, ns: int, key: bytes) -> dict[int, tuple[int, int]]:
        """Shards and tier by node, of those that are named."""
        named = ((number, node.claims.get((ns, key))) for number, node in self.nodes.items() if node.named)
        return {number: (row.shards, row.tier) for number, row in named if row is not None}

    def digests(self, node: int) -> list[int]:
        out = [0] * BUCKETS
        for (ns, key), row in self.nodes[node].claims.items():
            out[bucket_of(key)] ^= claim_hash(ns, key, row.shards, row.tier)
        return out
