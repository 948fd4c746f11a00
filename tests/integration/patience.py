"""What tests wait for, so that a machine that is slow for a while fails none of them, and a store that is wrong does.

Busy machines keep a process from its core for a second, and disks stand still as long. What the store may take longer
for is waited for; what it promises within a time is given a margin; what it may answer otherwise for want of time is
asked again, but only where the answer took that time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import grpc
import numpy as np

from kvstore import Namespace
from kvstore.node.far import ASK_S, PASS_OVER_S
from kvstore.wire import admin, services, store
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, eventually

__all__ = ["DEAD_S", "SLOW_S", "WAITS_S", "claimed", "come_down", "in_time", "written_behind"]

T = TypeVar("T")

FILE: Final = 2  # kvstore.v1.Tier
SLOW_S: Final = 3.0  # what a machine may add to what the store promises
DEAD_S: Final = 3.0 + SLOW_S  # within 3 s a dead node is known to be that
PIECES: Final = 16  # of memory: what is put at once is less than the quarter that write-behind keeps written
WAITS_S: Final = 20.0


def in_time(ask: Callable[[], T], whole: Callable[[T], bool]) -> T:
    """The answer to what other nodes are asked for. One that does not answer within ASK_S is passed over for a while,
    and what only it has is a miss meanwhile: such an answer has taken that long. One that is not whole and came sooner
    has no such reason.
    """
    until = time.monotonic() + WAITS_S
    while True:
        began = time.monotonic()
        told = ask()
        took = time.monotonic() - began
        if whole(told):
            return told
        assert took > 0.9 * ASK_S and time.monotonic() < until, (told, f"{took:.3f} s")
        time.sleep(PASS_OVER_S)


def claimed(node: NodeProcess, ns: Namespace, chain: np.ndarray, holders: int) -> None:
    """Until so many nodes have told homes that they have all of it, as this one finds out. Each does so a moment after
    it was put there, and one that has not yet is not asked where another one fails.
    """
    request = admin.LocateRequest(namespace=ns.digest, chain=store.Chain(keys=chain.tobytes()), with_claims=True)

    def told() -> bool:
        with grpc.insecure_channel(f"unix:{node.socket}.grpc") as channel:
            claims = services.AdminStub(channel).Locate(request, timeout=10).claims
        return sum(all(one.tiers) for one in claims) >= holders

    eventually(told, WAITS_S)


def come_down(node: NodeProcess, ns: Namespace, chains: Iterable[np.ndarray], memory_bytes: int) -> None:
    """Puts blocks of SIZE at a node that has none yet, no faster than its files take them: nothing is dropped, and what
    memory has no room for is in files.
    """
    step, put = max(1, memory_bytes // PIECES // SIZE), 0
    for chain in chains:
        for at in range(0, len(chain), step):
            piece = chain[at : at + step]
            parent = chain[at - 1] if at else None
            put += ns.put(piece, blocks_of(piece), parent=parent, position=at).stored
            written_behind(node, put, memory_bytes)


def written_behind(node: NodeProcess, put: int, memory_bytes: int) -> None:
    """After so many blocks that a node was put, none dropped, when nobody else holds any: what of them has made way is
    in files, and of a memory that is full the coldest quarter, which makes way next; and nothing is in motion, which
    other blocks would make way for.
    """
    if (put + memory_bytes // SIZE // PIECES) * SIZE >= memory_bytes:
        least = put * SIZE - memory_bytes * 3 // 4
        eventually(lambda: node.counters(FILE)["used"] >= least and node.holds() == 0, WAITS_S)
