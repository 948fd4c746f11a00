"""What several nodes answered, as a row a node and as sums over them. Pure.

Gets are counted by the node of the client that made them, wherever the blocks lay, and once; so the hit rate of a
cluster is what its nodes found over what they were asked, and never a mean of rates. A node that has not answered has a
row that says why, with nothing in it, and is in no sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kvstore.admin import rows
from kvstore.admin.rows import Row, Value
from kvstore.wire import admin, store

STATUS_COLUMNS: Final = ("node", "state", "version", "uptime_s", "namespaces", "connections", "holds", "insecure")
ROOM_COLUMNS: Final = ("name", "address", "state", "for_s", "rtt_ms", "memory_free_bytes", "file_free_bytes", "claims")
TIER_COLUMNS: Final = ("node", "tier", "capacity_bytes", "used_bytes", "free_bytes", "blocks", "index_bytes")
HIT_COLUMNS: Final = ("node", "state", "asked", "hit_rate", "memory", "file", "object", "far")
FAMILY_COLUMNS: Final = ("node", "state", "families", "asked", "hit_rate")
FOUND: Final = ("asked", "hit", "hit_rate", "memory", "file", "object")
OF_A_STORE: Final = ("capacity_bytes", "asked_bytes", "used_bytes", "blocks")


@dataclass(slots=True)
class Found:
    """Blocks asked for and found; adds up."""

    asked: int = 0
    memory: int = 0
    file: int = 0
    object: int = 0
    error: int = 0

    def add(self, row: admin.HitRow | admin.FamilyRow) -> None:
        self.asked += row.blocks_asked
        self.memory += row.blocks_memory
        self.file += row.blocks_file
        self.object += row.blocks_object

    def row(self) -> Row:
        hit = self.memory + self.file + self.object
        return {
            "asked": self.asked,
            "hit": hit,
            "hit_rate": rows.rate(hit, self.asked),
            "memory": self.memory,
            "file": self.file,
            "object": self.object,
        }


def name_of(node: admin.NodeRow) -> str:
    return node.name or node.address


def answered(told: Iterable[admin.NodeAnswer]) -> list[admin.NodeAnswer]:
    return [one for one in told if one.HasField("answer")]


def by_node(told: Sequence[admin.NodeAnswer], values: Mapping[int, Row], names: Sequence[str]) -> list[Row]:
    """A row a node: who it is, then its values by place in `told`, or none under each of the names."""
    return [_who(one) | values.get(place, dict.fromkeys(names)) for place, one in enumerate(told)]


def _who(one: admin.NodeAnswer) -> Row:
    return {
        "node": name_of(one.node),
        "address": one.node.address,
        "state": rows.NODE_STATES.get(one.node.state),
        "problem": one.problem or None,
    }


# ---- status ----------------------------------------------------------------------------------------------------------


def status_of_nodes(told: Sequence[admin.NodeAnswer]) -> list[Row]:
    values = {
        place: {name: value for name, value in rows.status(one.answer.status).items() if name != "node"}
        for place, one in enumerate(told)
        if one.HasField("answer")
    }
    names = [name for name in rows.status(admin.StatusResponse()) if name != "node"]
    return by_node(told, values, names)


def status_sum(told: Sequence[admin.NodeAnswer]) -> Row:
    states = Counter(rows.NODE_STATES.get(one.node.state) for one in told)
    have = [one.answer.status for one in answered(told)]
    tiers = {str(row["tier"]): row for row in tier_sums(told, [list(one.tiers) for one in have])}
    out: Row = {"nodes": len(told), "answered": len(have)}
    out |= {state: states[state] for state in rows.NODE_STATES.values()}
    for name in ("memory", "file"):
        for what in ("used_bytes", "capacity_bytes"):
            out[f"{name}_{what}"] = tiers[name][what] if name in tiers else 0
    for what in ("connections", "holds", "pinned_bytes", "claims", "claims_bytes"):
        out[what] = sum(int(getattr(one, what)) for one in have)
    out["insecure"] = any(one.insecure for one in have)
    return out


def room_of_nodes(told: Sequence[admin.NodeAnswer]) -> list[Row]:
    """Who they are, as the node that was called sees them, and what room they have, as they say themselves."""
    out: list[Row] = []
    for one in told:
        row = rows.node(one.node)
        row["problem"] = one.problem or row["problem"]
        has = one.HasField("answer")
        status = one.answer.status
        tiers = {rows.TIER_NAMES[tier.tier]: tier for tier in status.tiers}
        for name in ("memory", "file"):
            for what in ("capacity_bytes", "used_bytes", "free_bytes"):
                row[f"{name}_{what}"] = int(getattr(tiers[name], what)) if name in tiers else None
        row["claims"] = status.claims if has else None
        row["claims_bytes"] = status.claims_bytes if has else None
        row["stood_still"] = status.stood_still if has else None
        row["drain"] = rows.DRAIN_STATES[status.drain] if has else None
        row["clears"] = f"{status.clears:016x}" if has else None
        out.append(row)
    return out


# ---- tiers -----------------------------------------------------------------------------------------------------------


def tiers_of_nodes(told: Sequence[admin.NodeAnswer]) -> list[Row]:
    """A row a node and tier; one for a node that has not answered."""
    nothing: Row = dict.fromkeys(
        name for name in rows.tiers(admin.TiersResponse(tiers=[admin.TierStatus(tier=store.TIER_MEMORY)]))[0]
    )
    out: list[Row] = []
    for one in told:
        have = rows.tiers(one.answer.tiers) if one.HasField("answer") else [nothing]
        out += [_who(one) | row for row in have]
    return out


def tier_sums(told: Sequence[admin.NodeAnswer], tiers: Sequence[Sequence[admin.TierStatus]]) -> list[Row]:
    """Over the nodes that have answered, in the order of `told`. A bucket is one for all nodes that name it, and so is
    a directory for those of one machine: what lies there is not added up.
    """
    out: dict[int, Row] = {}
    shared: dict[tuple[str, str], list[int]] = {}
    for one, statuses in zip(answered(told), tiers, strict=True):
        for row, tier in zip(rows.tiers(admin.TiersResponse(tiers=statuses)), statuses, strict=True):
            if tier.tier == rows.OBJECT:
                at = (tier.medium, one.node.host if tier.medium.startswith("file:") else "")
                seen = [tier.capacity_bytes, tier.asked_bytes, tier.used_bytes, tier.counters["blocks_known"]]
                shared[at] = list(map(max, shared.get(at, seen), seen))
                row.update(dict.fromkeys(OF_A_STORE, 0))
            known = out.get(tier.tier)
            out[tier.tier] = row | {"media": [tier.medium], "nodes": 1} if known is None else _added(known, row)
    if rows.OBJECT in out:
        sums = (sum(one) for one in zip(*shared.values(), strict=True))
        out[rows.OBJECT] |= dict(zip(OF_A_STORE, sums, strict=True))
    for row in out.values():
        row.pop("medium")
    return [out[tier] for tier in sorted(out)]


def _added(known: Row, row: Row) -> Row:
    out = dict(known)
    for name, value in row.items():
        if isinstance(value, int):
            was = known[name]
            out[name] = value + (was if isinstance(was, int) else 0)
    counters: Counter[str] = Counter()
    for one in (known["counters"], row["counters"]):
        assert isinstance(one, dict)
        counters.update({key: int(count) for key, count in one.items()})
    media, nodes = known["media"], known["nodes"]
    assert isinstance(media, list) and isinstance(nodes, int)
    out["counters"] = dict(sorted(counters.items()))
    out["media"] = sorted({*map(str, media), str(row["medium"])})
    out["nodes"] = nodes + 1
    return out


# ---- hits ------------------------------------------------------------------------------------------------------------


def hits_of_nodes(told: Sequence[admin.NodeAnswer]) -> list[Row]:
    values: dict[int, Row] = {}
    for place, one in enumerate(told):
        if one.HasField("answer"):
            found, hits = Found(), one.answer.hits
            for row in hits.rows:
                found.add(row)
            values[place] = found.row() | {"far": hits.far_memory + hits.far_file}
    return by_node(told, values, (*FOUND, "far"))


def hits_sum(told: Sequence[admin.NodeAnswer]) -> list[Row]:
    """By namespace, those asked for most first."""
    found: dict[bytes, Found] = {}
    named: dict[bytes, admin.HitRow] = {}
    for one in answered(told):
        for row in one.answer.hits.rows:
            found.setdefault(row.namespace, Found()).add(row)
            named[row.namespace] = row
    return [
        {"namespace": digest.hex(), "tenant": named[digest].tenant, "model": named[digest].model}
        | one.row()
        | {"tokens_asked": one.asked * named[digest].block_tokens}
        for digest, one in sorted(found.items(), key=lambda item: -item[1].asked)
    ]


def total(told: Sequence[admin.NodeAnswer]) -> Row:
    """Of all namespaces and nodes. far: among what was hit, read at another node than the client's own."""
    found, far = Found(), 0
    for one in answered(told):
        for row in one.answer.hits.rows:
            found.add(row)
        far += one.answer.hits.far_memory + one.answer.hits.far_file
    return found.row() | {"far": far}


# ---- families --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Family:
    found: Found = field(default_factory=Found)
    label: str = ""
    tenant: str = ""
    nodes: set[int] = field(default_factory=set)


def families_sum(told: Sequence[admin.NodeAnswer], top: int) -> list[Row]:
    """A family is one by its number: a node that was never told the label says only that. asked_error_max: what the
    nodes' own errors come to, and what those may have forgotten of it that do not tell of it.
    """
    families: dict[tuple[bytes, int], _Family] = {}
    have = answered(told)
    for place, one in enumerate(have):
        for row in one.answer.families.rows:
            family = families.setdefault((row.namespace, row.number), _Family())
            family.found.add(row)
            family.found.error += row.error
            if not family.label or family.label == f"{row.number:016x}":
                family.label = row.family
            family.tenant = family.tenant or row.tenant
            family.nodes.add(place)
    untold = [one.answer.families.untold_max for one in have]
    out: list[Row] = [
        {"family": family.label, "tenant": family.tenant, "namespace": namespace.hex()}
        | family.found.row()
        | {
            "asked_error_max": family.found.error
            + sum(most for place, most in enumerate(untold) if place not in family.nodes),
            "nodes": len(family.nodes),
        }
        for (namespace, _), family in sorted(families.items(), key=lambda item: -item[1].found.asked)
    ]
    return out[:top]


def families_of_nodes(told: Sequence[admin.NodeAnswer]) -> list[Row]:
    values: dict[int, Row] = {}
    for place, one in enumerate(told):
        if one.HasField("answer"):
            found = Found()
            for row in one.answer.families.rows:
                found.add(row)
            values[place] = {"families": len(one.answer.families.rows)} | found.row()
    return by_node(told, values, ("families", *FOUND))


# ---- settings --------------------------------------------------------------------------------------------------------

# Where a node is and what it is called: no two have the same.
OF_A_NODE: Final = frozenset(
    {
        *("node.name", "node.data_dir", "node.socket", "node.address", "cluster.address"),
        *("grpc.address", "metrics.address", "transfer.address", "transfer.rdma_address"),
    }
)


def settings(told: Sequence[admin.NodeAnswer]) -> list[Row]:
    """What must agree first, then all others, by name. `value`: where all nodes that have answered have the same."""
    out: list[Row] = []
    have = answered(told)
    for must in (True, False):
        tables = {
            name_of(one.node): dict(one.answer.settings.agreed if must else one.answer.settings.settings)
            for one in have
        }
        names = dict.fromkeys(name for table in tables.values() for name in sorted(table))
        for name in names:
            values: dict[str, str | None] = {node: table.get(name) for node, table in tables.items()}
            alike = len(set(values.values())) == 1
            value: Value = next(iter(values.values())) if alike else None
            out.append(
                {
                    "setting": name,
                    "must_agree": must,
                    "of_a_node": name in OF_A_NODE,
                    "differs": not alike,
                    "value": value,
                    "values": values,
                }
            )
    return out


def settings_shown(found: Sequence[Row], everything: bool) -> list[Row]:
    """For people: what must agree, and what differs though it need not; a row a value, with the nodes that have it."""
    out: list[Row] = []
    for row in found:
        if not (everything or row["must_agree"] or (row["differs"] and not row["of_a_node"])):
            continue
        values = row["values"]
        assert isinstance(values, dict)
        nodes: dict[str, list[str]] = {}
        for node, value in values.items():
            nodes.setdefault("not known" if value is None else str(value), []).append(node)
        for value, those in nodes.items():
            who = "all" if len(nodes) == 1 else ", ".join(those)
            out.append({"setting": row["setting"], "value": value, "nodes": who, "must_agree": row["must_agree"]})
    return out
