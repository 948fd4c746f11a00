"""Which holder is asked for which blocks."""

from __future__ import annotations

import numpy as np

from kvstore.directory.locating import Holders
from kvstore.node.far_plan import PIECES_MAX, Piece, plan

A, B, C = (bytes([name]) * 16 for name in b"abc")
NEAR, FAR_AWAY = (False, 0.001), (True, 0.001)
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
