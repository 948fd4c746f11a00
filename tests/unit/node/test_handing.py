"""What is handed on, in which order and to whom."""

from __future__ import annotations

import hashlib

import numpy as np

from kvstore.directory.base import Member
from kvstore.node.handing import Run, first_claimed, order, runs_of
from kvstore.node.spreading import in_turn


def digest(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


FAMILY = digest(1000)


def key(number: int) -> np.ndarray:
    return np.frombuffer(number.to_bytes(32, "big"), np.uint8)


def listed(*rows: tuple[int, int, int, int, int]) -> list[Run]:
    """(namespace, shard, key, parent or 0, position) each."""
    ns, shards, keys, parents, positions = zip(*rows, strict=True)
    return runs_of(
        np.array(ns, np.uint32),
        np.array(shards, np.uint16),
        np.stack([key(one) for one in keys]),
        np.stack([key(one) for one in parents]),
        np.array(positions, np.uint32),
    )


def told(run: Run) -> tuple[int, int, list[int], int, int, int]:
    keys = [int.from_bytes(one.tobytes(), "big") for one in run.keys]
    parent = int.from_bytes(run.parent, "big")
    return run.ns, run.shard, keys, parent, run.position, int.from_bytes(run.family, "big")


def test_slots_become_chains_and_a_family_stays_together() -> None:
    runs = listed(
        (1, 0, 13, 12, 2),
        (1, 0, 11, 0, 0),
        (1, 0, 12, 11, 1),
        (1, 0, 22, 12, 2),  # a branch
        (1, 0, 23, 22, 3),
        (1, 1, 11, 0, 0),  # another shard
        (2, 0, 32, 31, 5),  # whose parent is not here
    )
    found = [told(run) for run in runs]
    assert sorted(one for _, _, keys, *_ in found for one in keys) == [11, 11, 12, 13, 22, 23, 32]
    assert (1, 1, [11], 0, 0, 11) in found and (2, 0, [32], 31, 5, 31) in found
    first, second = (one for one in found if one[:2] == (1, 0))
    assert first[2] in ([11, 12, 13], [11, 12, 22, 23]) and first[3:] == (0, 0, 11)
    assert second[2] in ([22, 23], [13]) and second[3:] == (12, 2, 11)


def test_a_run_is_cut_and_knows_what_came_before() -> None:
    (run,) = listed(*((1, 0, 10 + i, 9 + i if i else 0, i) for i in range(5)))
    cut = [told(part) for part in run.cut(2)]
    assert [(keys, parent, at) for _, _, keys, parent, at, _ in cut] == [
        ([10, 11], 0, 0),
        ([12, 13], 11, 2),
        ([14], 13, 4),
    ]
    assert {family for *_, family in cut} == {10}


def test_those_with_room_come_first_by_rendezvous_then_the_emptiest() -> None:
    nodes = [digest(i)[:16] for i in range(6)]
    rooms = dict.fromkeys(nodes, 100)
    ranked = order(FAMILY, 100, rooms)
    assert sorted(ranked) == sorted(nodes)
    assert {order(digest(i), 100, rooms)[0] for i in range(50)} == set(nodes), "families are spread"
    rooms[ranked[0]], rooms[ranked[1]] = 10, 50
    assert order(FAMILY, 100, rooms) == [*ranked[2:], ranked[1], ranked[0]]
    assert order(FAMILY, 1, {}) == []


def test_replicas_go_to_other_hosts_the_best_node_of_each_first() -> None:
    nodes = [Member(f"a{i}", id=digest(i)[:16], host=f"h{i % 3}") for i in range(9)]
    turns = in_turn(FAMILY, nodes, "h0")
    assert len(turns) == 6 and {node.host for node in turns} == {"h1", "h2"}
    assert all({node.host for node in turns[i : i + 2]} == {"h1", "h2"} for i in (0, 2, 4))
    assert turns == in_turn(FAMILY, reversed(nodes), "h0")
    assert {in_turn(digest(i), nodes, "h0")[0].id for i in range(60)} == {node.id for node in turns}
    assert in_turn(FAMILY, nodes[:1], "h0") == []


def test_how_many_nobody_claims() -> None:
    assert first_claimed(np.array([False, False, True])) == 2
    assert first_claimed(np.array([False, False])) == 2
