"""Sums over nodes: what is counted once, what is shared, what a node that does not answer leaves out, and says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from kvstore.admin import rows, sums
from kvstore.wire import admin, store

NS, OTHER = b"n" * 32, b"o" * 32


def node(name: str, host: str = "", state: int = 0) -> admin.NodeRow:
    return admin.NodeRow(name=name, address=f"{name}:7400", host=host, state=admin.NodeState.ValueType(state))


def told(name: str, host: str = "", **answer: Any) -> admin.NodeAnswer:
    return admin.NodeAnswer(node=node(name, host), answer=admin.Answer(**answer))


GONE = admin.NodeAnswer(node=node("gone", state=2), problem="dead for 7.0 s: Connection refused")


def hit(ns: bytes, asked: int, memory: int = 0, file: int = 0, objects: int = 0) -> admin.HitRow:
    return admin.HitRow(
        namespace=ns,
        tenant="acme",
        model="m",
        block_tokens=16,
        blocks_asked=asked,
        blocks_memory=memory,
        blocks_file=file,
        blocks_object=objects,
    )


HITS = [
    told("a", hits=admin.HitsResponse(rows=[hit(NS, 90, memory=90), hit(OTHER, 4, file=1)], far_memory=3, far_file=2)),
    told("b", hits=admin.HitsResponse(rows=[hit(NS, 10, memory=1, objects=1)])),
    told("c", hits=admin.HitsResponse()),
    GONE,
]


def test_a_rate_over_nodes_is_of_sums_and_no_mean() -> None:
    first, second = sums.hits_sum(HITS)
    assert (first["namespace"], first["asked"], first["hit"]) == (NS.hex(), 100, 92)
    assert first["hit_rate"] == pytest.approx(0.92)  # the mean of both nodes' would be 0.6
    assert (first["memory"], first["file"], first["object"], first["tokens_asked"]) == (91, 0, 1, 1600)
    assert (second["namespace"], second["asked"], second["file"]) == (OTHER.hex(), 4, 1)
    total = sums.total(HITS)
    assert (total["asked"], total["hit"], total["far"]) == (104, 93, 5)


def test_every_node_has_a_row() -> None:
    a, b, c, gone = sums.hits_of_nodes(HITS)
    assert (a["node"], a["asked"], a["hit"], a["far"], a["problem"]) == ("a", 94, 91, 5, None)
    assert (b["asked"], b["far"], c["asked"], c["hit_rate"]) == (10, 0, 0, None)
    assert gone == dict.fromkeys(a) | {
        "node": "gone",
        "address": "gone:7400",
        "state": "dead",
        "problem": "dead for 7.0 s: Connection refused",
    }
    assert rows.unanswered(HITS) == ["gone (gone:7400): dead for 7.0 s: Connection refused"]


def test_the_rows_are_alike_whether_a_node_answers_or_not() -> None:
    status = admin.StatusResponse(node=store.NodeInfo(node="a"), tiers=[admin.TierStatus(tier=store.TIER_MEMORY)])
    tiers = admin.TiersResponse(tiers=[admin.TierStatus(tier=store.TIER_FILE)])
    for table in (
        sums.status_of_nodes([told("a", status=status), GONE]),
        sums.tiers_of_nodes([told("a", tiers=tiers), GONE]),
        sums.families_of_nodes([told("a", families=admin.FamiliesResponse()), GONE]),
        sums.room_of_nodes([told("a", status=status), GONE]),
    ):
        there, gone = table
        assert there.keys() == gone.keys()
        assert gone["problem"] and gone["state"] == "dead" and json.dumps(table)


def test_nodes_say_whether_they_drain_and_what_they_know_of_clears() -> None:
    status = admin.StatusResponse(drain=admin.DRAIN_WORKING, clears=0xAB)
    (row,) = sums.room_of_nodes([told("a", status=status)])
    assert (row["drain"], row["clears"]) == ("draining", "00000000000000ab")


# ---- tiers ----------------------------------------------------------------------------------------------------------


def tier(kind: store.Tier.ValueType, medium: str, size: int, **more: Any) -> admin.TierStatus:
    return admin.TierStatus(tier=kind, medium=medium, capacity_bytes=size, asked_bytes=size, **more)


def test_tiers_add_up() -> None:
    one = tier(store.TIER_MEMORY, "shared memory", 10, used_bytes=3, free_bytes=7, slots_sealed=2, counters={"x": 1})
    two = tier(store.TIER_MEMORY, "shared memory", 20, used_bytes=5, free_bytes=1, counters={"x": 2, "y": 4})
    file = tier(store.TIER_FILE, "io_uring", 100, used_bytes=50)
    both = [
        told("a", tiers=admin.TiersResponse(tiers=[one, file])),
        GONE,
        told("b", tiers=admin.TiersResponse(tiers=[two])),
    ]
    memory, files = sums.tier_sums(both, [[one, file], [two]])
    assert (memory["capacity_bytes"], memory["used_bytes"], memory["free_bytes"], memory["blocks"]) == (30, 8, 8, 2)
    assert (memory["nodes"], memory["media"]) == (2, ["shared memory"])
    assert memory["counters"] == {"x": 3, "y": 4}
    assert (files["tier"], files["nodes"], files["used_bytes"]) == ("file", 1, 50)


def test_a_bucket_is_one_and_a_directory_is_its_machines() -> None:
    bucket = [
        tier(store.TIER_OBJECT, "s3://b/p", 100, used_bytes=40 + i, counters={"blocks_known": 9 - i}) for i in range(2)
    ]
    both = [told("a", "h1"), told("b", "h2")]
    (row,) = sums.tier_sums(both, [[one] for one in bucket])
    assert (row["capacity_bytes"], row["used_bytes"], row["blocks"], row["free_bytes"]) == (100, 41, 9, None)
    folder = [tier(store.TIER_OBJECT, "file:///var/o", 100, used_bytes=40)] * 3
    three = [told("a", "h1"), told("b", "h2"), told("c", "h2")]
    (row,) = sums.tier_sums(three, [[one] for one in folder])
    assert (row["capacity_bytes"], row["used_bytes"], row["nodes"]) == (200, 80, 3)


def test_what_a_cluster_is_in_one_row() -> None:
    status = admin.StatusResponse(
        claims=5,
        connections=2,
        holds=1,
        pinned_bytes=8,
        tiers=[tier(store.TIER_MEMORY, "shared memory", 10, used_bytes=3)],
    )
    row = sums.status_sum([told("a", status=status), told("b", status=status), GONE])
    assert (row["nodes"], row["answered"], row["alive"], row["suspect"], row["dead"]) == (3, 2, 2, 0, 1)
    assert (row["memory_used_bytes"], row["memory_capacity_bytes"], row["file_capacity_bytes"]) == (6, 20, 0)
    assert (row["claims"], row["connections"], row["holds"], row["pinned_bytes"]) == (10, 4, 2, 16)


# ---- families -------------------------------------------------------------------------------------------------------


def family(number: int, label: str, asked: int, memory: int, error: int = 0, ns: bytes = NS) -> admin.FamilyRow:
    return admin.FamilyRow(
        family=label or f"{number:016x}",
        number=number,
        namespace=ns,
        tenant="acme",
        blocks_asked=asked,
        blocks_memory=memory,
        error=error,
    )


def test_a_family_is_one_whoever_knows_its_label() -> None:
    a = admin.FamiliesResponse(rows=[family(7, "", 5, 1), family(8, "", 100, 0)])
    b = admin.FamiliesResponse(rows=[family(7, "the prompt", 50, 40, error=2), family(7, "", 1, 1, ns=OTHER)])
    found = sums.families_sum([told("a", families=a), told("b", families=b), GONE], 10)
    assert [(row["family"], row["asked"], row["hit"], row["nodes"]) for row in found] == [
        (f"{8:016x}", 100, 0, 1),
        ("the prompt", 55, 41, 2),
        (f"{7:016x}", 1, 1, 1),
    ]
    assert [row["asked_error_max"] for row in found] == [0, 2, 0]
    assert len(sums.families_sum([told("a", families=a), told("b", families=b)], 1)) == 1


def test_what_a_node_may_have_forgotten_is_in_the_error() -> None:
    full = admin.FamiliesResponse(rows=[family(1, "", 9, 0, error=1)], untold_max=9)
    other = admin.FamiliesResponse(rows=[family(1, "", 3, 0), family(2, "", 4, 0, error=3)], untold_max=2)
    found = {
        row["asked"]: row["asked_error_max"]
        for row in sums.families_sum([told("a", families=full), told("b", families=other)], 10)
    }
    assert found == {12: 1, 4: 3 + 9}


# ---- settings -------------------------------------------------------------------------------------------------------


def test_settings_that_differ_name_their_nodes() -> None:
    def of(name: str, **changed: str) -> admin.NodeAnswer:
        settings = {"node.name": name, "limits.x": "1", "grpc.y": "2"} | {
            k.replace("__", "."): v for k, v in changed.items()
        }
        return told(name, settings=admin.SettingsResponse(agreed={"format": "1"}, settings=settings))

    found = sums.settings([of("a"), of("b", limits__x="5"), of("c", new__z="3"), GONE])
    by_name = {row["setting"]: row for row in found}
    assert found[0]["setting"] == "format" and by_name["format"]["must_agree"]
    assert by_name["limits.x"]["differs"] and by_name["limits.x"]["values"] == {"a": "1", "b": "5", "c": "1"}
    assert by_name["new.z"]["values"] == {"a": None, "b": None, "c": "3"}
    assert (by_name["grpc.y"]["differs"], by_name["grpc.y"]["value"]) == (False, "2")
    shown = [(row["setting"], row["value"], row["nodes"]) for row in sums.settings_shown(found, everything=False)]
    assert shown == [
        ("format", "1", "all"),
        ("limits.x", "1", "a, c"),
        ("limits.x", "5", "b"),
        ("new.z", "not known", "a, b"),
        ("new.z", "3", "c"),
    ]
    assert {row["setting"] for row in sums.settings_shown(found, everything=True)} == set(by_name)
