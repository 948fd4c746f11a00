"""Which holder is asked for which blocks of a chain. Pure.

Memory before files, this machine before others, then who has been given least so far, then who answers soonest. A run
that several hold alike is shared out among them, in pieces of PIECE_BYTES at least: their networks add up. One lease
names FILES_BYTES of what lies in files: they are read while their holders bring up those of the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kvstore.directory.locating import Holders
from kvstore.tiers.base import TierKind

__all__ = ["Piece", "demoted", "is_cut", "plan"]

PIECES_MAX: Final = 16  # of one lease
PIECE_BYTES: Final = 8 << 20
FILES_BYTES: Final = 32 << 20


@dataclass(frozen=True, slots=True)
class Piece:
    """Blocks [first, end) of one node, all of them in its memory or not."""

    node: bytes
    first: int
    end: int
    in_memory: bool


def plan(holders: Holders, shard: int, distances: Mapping[bytes, tuple[int, float]], block_bytes: int) -> list[Piece]:
    """From the first block on, up to the first that nobody has. distances: of nodes that may be asked: how far,
    and seconds.
    """
    asked = [i for i, node in enumerate(holders.nodes) if node in distances]
    if not asked or not holders.shards.shape[1]:
        return []
    has = (holders.shards[asked] >> np.uint64(shard) & np.uint64(1)).astype(np.bool_)
    tiers = np.where(has, holders.tiers[asked], np.uint8(0)).astype(np.uint8)
    names = [holders.nodes[i] for i in asked]
    count = tiers.shape[1]
    given = [0] * len(names)
    pieces: list[Piece] = []
    at, least = 0, max(1, PIECE_BYTES // block_bytes)
    while at < count and not is_cut(pieces, block_bytes):
        here = [i for i in range(len(names)) if tiers[i, at]]
        if not here:
            break
        ranks = {i: (int(tiers[i, at]), distances[names[i]][0]) for i in here}
        best = min(ranks.values())
        alike = [i for i in here if ranks[i] == best]
        ends = {i: _run_end(tiers[i], at) for i in alike}
        chosen = min(alike, key=lambda i: (given[i], -ends[i], distances[names[i]][1], names[i]))
        share = max(least, -(-(max(ends.values()) - at) // len(alike)))
        in_memory = best[0] == TierKind.MEMORY
        room = count if in_memory else max(1, FILES_BYTES // block_bytes) - _in_files(pieces)
        end = min(ends[chosen], at + share, at + room)
        given[chosen] += end - at
        last = pieces[-1] if pieces else None
        if last is not None and last.node == names[chosen] and last.in_memory == in_memory:
            pieces[-1] = Piece(last.node, last.first, end, in_memory)
        else:
            pieces.append(Piece(names[chosen], at, end, in_memory))
        at = end
    return pieces


def demoted(holders: Holders, nodes: Collection[bytes]) -> Holders:
    """As if what these nodes said to be in memory were in their files."""
    rows = [i for i, node in enumerate(holders.nodes) if node in nodes]
    if not rows:
        return holders
    tiers = holders.tiers.copy()
    tiers[rows] = np.where(tiers[rows] == TierKind.MEMORY, np.uint8(TierKind.FILE), tiers[rows])
    return Holders(holders.nodes, holders.shards, tiers)


def is_cut(pieces: Sequence[Piece], block_bytes: int) -> bool:
    """Whether one lease takes no more than these."""
    return len(pieces) >= PIECES_MAX or _in_files(pieces) >= max(1, FILES_BYTES // block_bytes)


def _in_files(pieces: Sequence[Piece]) -> int:
    return sum(piece.end - piece.first for piece in pieces if not piece.in_memory)


def _run_end(tiers: npt.NDArray[np.uint8], at: int) -> int:
    """Where the run of one tier that goes on at `at` ends."""
    other = np.flatnonzero(tiers[at:] != tiers[at])
    return at + int(other[0]) if len(other) else len(tiers)
