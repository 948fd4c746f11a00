"""Which holder is asked for which blocks."""

from __future__ import annotations

import numpy as np

from kvstore.directory.base import Member, distance
from kvstore.directory.locating import Holders
from kvstore.node.far_plan import FILES_BYTES, PIECES_MAX, Piece, demoted, is_cut, plan

A, B, C = (bytes([name]) * 16 for name in b"abc")
NEAR, BY_RDMA, FAR_AWAY = (0, 0.001), (1, 0.001), (2, 0.001)
MIB = 1 << 20


def holders(**tiers: str) -> Holders:
    """Each node's tier of each block; "." where it has none."""
    names = tuple(name.encode() * 16 for name in tiers)
    table = np.array([[0 if one == "." else int(one) for one in row] for row in tiers.values()], np.uint8)
    return Holders(names, (table > 0).astype(np.uint64), table)


def test_memory_before_files_and_this_machine_before_others() -> None:
    found = holders(a="2222", b="11..", c=".11.")
    near = {A: NEAR, B: FAR_AWAY, C: FAR_AWAY}
    assert plan(found, 0, near, 1000) == [Piece(B, 0, 2, True), Piece(C, 2, 3, True), Piece(A, 3, 4, False)]
    assert plan(holders(a="11", b="11"), 0, {A: FAR_AWAY, B: NEAR}, 1000) == [Piece(B, 0, 2, True)]
    assert plan(holders(a="11", b="11"), 0, {A: (True, 0.2), B: (True, 0.1)}, 1000) == [Piece(B, 0, 2, True)]


def test_it_ends_at_the_first_block_that_nobody_has() -> None:
    assert plan(holders(a="11.1"), 0, {A: NEAR}, 1000) == [Piece(A, 0, 2, True)]
    assert plan(holders(a=".1"), 0, {A: NEAR}, 1000) == []
    assert plan(holders(a="1"), 0, {}, 1000) == []
    assert plan(holders(a="1"), 1, {A: NEAR}, 1000) == [], "of another shard"


def test_what_several_have_alike_is_shared_out() -> None:
    found = holders(a="1" * 16, b="1" * 16)
    assert plan(found, 0, {A: NEAR, B: NEAR}, 2 * MIB) == [Piece(A, 0, 8, True), Piece(B, 8, 16, True)]
    assert plan(found, 0, {A: NEAR, B: NEAR}, MIB // 2) == [Piece(A, 0, 16, True)], "too little to share"
    assert plan(found, 0, {A: NEAR, B: FAR_AWAY}, 2 * MIB) == [Piece(A, 0, 16, True)], "not alike"


def test_pieces_are_limited() -> None:
    turns = holders(a="1." * 40, b=".1" * 40)
    assert len(plan(turns, 0, {A: NEAR, B: NEAR}, 1000)) == PIECES_MAX


def test_of_what_lies_in_files_one_lease_takes_a_little() -> None:
    found = holders(a="1" * 8 + "2" * 80, b="1" * 8 + "2" * 80)
    near = {A: NEAR, B: NEAR}
    pieces = plan(found, 0, near, 2 * MIB)
    assert sum(one.end - one.first for one in pieces if not one.in_memory) == FILES_BYTES // (2 * MIB) == 16
    assert is_cut(pieces, 2 * MIB) and pieces[-1].end == 24
    assert not is_cut(plan(holders(a="2" * 15), 0, near, 2 * MIB), 2 * MIB)
    assert not is_cut(plan(holders(a="1" * 80), 0, near, 2 * MIB), 2 * MIB), "what is in memory comes whole"
    assert plan(holders(a="22"), 0, near, 2 * FILES_BYTES) == [Piece(A, 0, 1, False)], "a block at least"


def test_who_has_it_in_memory_no_more_may_have_it_in_files() -> None:
    found = holders(a="1.1", b="112")
    assert demoted(found, {A}).tiers.tolist() == [[2, 0, 2], [1, 1, 2]]
    assert demoted(found, set()) is found and found.tiers.tolist() == [[1, 0, 1], [1, 1, 2]]


def test_how_far_a_node_is() -> None:
    me = Member("me:1", host="here", fabrics=("ib:1", "roce"))
    assert distance(me, Member("a:1", host="here")) == 0
    assert distance(me, Member("b:1", host="there", fabrics=("roce",))) == 1
    assert distance(me, Member("c:1", host="there", fabrics=("ib:2",))) == 2
    assert distance(me, Member("d:1", host="there")) == 2


def test_whom_rdma_leads_to_comes_before_whom_it_does_not() -> None:
    pieces = plan(holders(a="111", b="111"), 0, {A: FAR_AWAY, B: BY_RDMA}, MIB)
    assert [(piece.node, piece.first, piece.end) for piece in pieces] == [(B, 0, 3)]
