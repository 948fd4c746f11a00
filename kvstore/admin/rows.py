"""What `store-admin` shows, as plain rows: the same for tables and for --json. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from kvstore.allowed import human
from kvstore.wire import admin, store

Value = str | int | float | bool | None | list[str] | list[int] | Mapping[str, int] | Mapping[str, str | None]
Row = dict[str, Value]

TIER_NAMES: Final = {1: "memory", 2: "file", 3: "object"}
EVENT_NAMES: Final = {0: "stored", 1: "removed", 2: "cleared"}
TIER_COLUMNS: Final = (
    "tier",
    "capacity_bytes",
    "used_bytes",
    "free_bytes",
    "blocks",
    "reserved",
    "retired",
    "index_bytes",
)
HIT_COLUMNS: Final = ("namespace", "tenant", "model", "asked", "hit_rate", "memory", "file", "object")
NAMESPACE_COLUMNS: Final = ("namespace", "tenant", "generation", "model", "revision", "dtype", "block_tokens")
FAMILY_COLUMNS: Final = ("family", "tenant", "namespace", "asked", "hit_rate", "memory", "file", "object")
NODE_STATES: Final = {0: "alive", 1: "suspect", 2: "dead"}
DRAIN_STATES: Final = {0: None, 1: "draining", 2: "drained"}
PLACES: Final = ("memory_shards", "file_shards", "object_shards")
# What goes from a table into the next command line.
COPIED: Final = frozenset({"namespace", "key", "pin", "family", "tier", "node", "name"})
OBJECT: Final = 3


def rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def status(answer: admin.StatusResponse) -> Row:
    return {
        "node": answer.node.node,
        "version": answer.node.version,
        "uptime_s": round(answer.uptime_s, 1),
        "listening": list(answer.listening),
        "tls": answer.tls,
        "insecure": answer.insecure,
        "namespaces": answer.namespaces,
        "connections": answer.connections,
        "holds": answer.holds,
        "pinned_bytes": answer.pinned_bytes,
        "event_sequence": answer.event_sequence,
    }


def nodes(answer: admin.NodesResponse) -> list[Row]:
    return [node(one) for one in answer.nodes]


def node(one: admin.NodeRow) -> Row:
    return {
        "name": one.name or None,
        "id": one.id.hex() or None,
        "address": one.address,
        "grpc": one.grpc or None,
        "version": one.version or None,
        "host": one.host or None,
        "state": NODE_STATES[one.state],
        "for_s": None if one.self else round(one.state_s, 1),
        "rtt_ms": round(one.rtt_ms, 3) or None,
        "self": one.self,
        "problem": one.problem or None,
    }


def discovery_told(answer: admin.NodesResponse) -> str:
    away = f", not to be reached for {answer.discovery_away_s:,.0f} s" if answer.discovery_away_s else ""
    return f"discovery: {answer.discovery}{away}; asked: {answer.nodes[0].name}"


def unanswered(told: Iterable[admin.NodeAnswer]) -> list[str]:
    """A line for each node that has not answered."""
    return [
        f"{one.node.name or 'a node'} ({one.node.address}): {one.problem}" for one in told if not one.HasField("answer")
    ]


def tiers(answer: admin.TiersResponse) -> list[Row]:
    return [
        {
            "tier": TIER_NAMES[tier.tier],
            "medium": tier.medium,
            "capacity_bytes": tier.capacity_bytes,
            "asked_bytes": tier.asked_bytes,
            "used_bytes": tier.used_bytes,
            # Others write to the same bucket, and of what lies there this node knows what it has met.
            "free_bytes": None if tier.tier == OBJECT else tier.free_bytes,
            "blocks": tier.counters["blocks_known"] if tier.tier == OBJECT else tier.slots_sealed,
            "reserved": tier.slots_reserved,
            "retired": tier.slots_retired,
            "index_bytes": tier.index_bytes,
            "counters": dict(sorted(tier.counters.items())),
        }
        for tier in answer.tiers
    ]


def happened(row: Row) -> str:
    """What has happened to a tier, as a line under the table."""
    counters = row["counters"]
    assert isinstance(counters, dict)
    name = str(row["tier"])
    asked = row["asked_bytes"]
    less = f", {shown('asked_bytes', asked)} asked for" if asked != row["capacity_bytes"] else ""
    told = [
        f"{key.removeprefix(name + '_').removesuffix('_bytes').replace('_', ' ')} {shown(key, count)}"
        for key, count in counters.items()
        if count and key not in {"blocks_known", "holds", "pinned_bytes"}
    ]
    return f"{name} ({row['medium']}{less}): {', '.join(told) or 'nothing evicted, lapsed or dropped yet'}"


def places_told(found: list[Row]) -> str:
    """Where the chain lies, in one line."""
    memory, file, packs = (sum(1 for row in found if row[name]) for name in PLACES)
    run = next((i for i, row in enumerate(found) if not here(row)), len(found))
    return f"{len(found)} blocks: the first {run} are here; {memory} in memory, {file} in files, {packs} in packs"


def here(row: Row) -> bool:
    """Whether some tier has some shard of a block."""
    return any(row[name] for name in PLACES)


def namespaces(answer: admin.NamespacesResponse) -> list[Row]:
    return [
        {
            "namespace": row.digest.hex(),
            "tenant": row.tenant,
            "generation": row.generation,
            "model": row.layout.model,
            "revision": row.layout.revision,
            "dtype": row.layout.dtype,
            "block_tokens": row.layout.block_tokens,
            "engine": row.layout.engine,
            "shard_bytes": [sum(shard.part_bytes) for shard in row.layout.shards],
            "fingerprint": row.layout.fingerprint.hex(),
        }
        for row in answer.rows
    ]


def places(answer: admin.LocateResponse) -> list[Row]:
    return [
        {
            "block": index,
            "key": block.key.hex(),
            "memory_shards": _shards(block.memory_shards),
            "file_shards": _shards(block.file_shards),
            "object_shards": _shards(block.object_shards),
        }
        for index, block in enumerate(answer.blocks)
    ]


def corrupt(blocks: Iterable[admin.CorruptBlock]) -> list[Row]:
    return [
        {
            "namespace": block.namespace.hex(),
            "key": block.key.hex(),
            "shard": block.shard,
            "tier": TIER_NAMES[block.tier],
        }
        for block in blocks
    ]


def event(told: store.Event) -> Row:
    row: Row = {"sequence": told.sequence, "kind": EVENT_NAMES[told.kind], "namespace": told.namespace.hex()}
    if told.kind != 2:
        row |= {"tier": TIER_NAMES.get(told.tier), "shard": told.shard, "key": told.key.hex()}
        row |= {"parent": told.parent.hex() or None, "meta_bytes": len(told.meta)}
    return row


def event_told(row: Row) -> str:
    """An event as a line: what came last is what may be long."""
    told = [f"{row['sequence']:>8}", f"{row['kind']:<7}", str(row["namespace"])[:12]]
    if row["kind"] != EVENT_NAMES[2]:
        told += [f"{row['tier']:<6}", f"shard {row['shard']}", f"key {str(row['key'])[:12]}"]
        told += [f"after {str(row['parent'])[:12]}"] if row["parent"] else ["begins a chain"]
        told += [f"meta {shown('meta_bytes', row['meta_bytes'])}"] if row["meta_bytes"] else []
    return "  ".join(told)


def heading(name: str) -> str:
    """A column's, or a line's, for people."""
    return "bytes" if name == "checked_bytes" else name.removesuffix("_bytes").replace("_", " ")


def _shards(bitmap: int) -> list[int]:
    return [shard for shard in range(64) if bitmap >> shard & 1]


def shown(name: str, value: Value) -> str:
    """One cell of a table, for people."""
    match value:
        case None:
            text = "-"
        case bool():
            text = "yes" if value else "no"
        case list():
            text = ",".join(map(str, value)) or "-"
        case float():
            text = f"{value:.1%}" if name.endswith("rate") else f"{value:,.1f}"
        case int():
            text = human(value) if name.endswith("bytes") else str(value) if name == "pin" else f"{value:,}"
        case Mapping():
            text = "  ".join(f"{key} {count}" for key, count in value.items() if count) or "-"
        case _:
            text = value[:12] if name in {"namespace", "key", "parent", "id"} else value
    return text
