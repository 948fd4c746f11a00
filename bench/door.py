"""The framed socket: a client and a node in another process, beside what the machine can do with the same bytes.

Batches (door_throughput), single blocks (door_latency) and lookups (door_lookups), of one node.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.door_blocks import GIB
from bench.door_latency import singles
from bench.door_lookups import lookups
from bench.door_throughput import batches
from bench.harness import Row
from bench.peers.process import NO_PEERS, Peers
from bench.serving import node
from kvstore import Client

__all__ = ["rows"]

MEMORY_BYTES = 3 * GIB // 2


def rows(quick: bool, peers: Peers = NO_PEERS) -> list[Row]:
    rounds = 3 if quick else 15
    with (
        tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder,
        node(Path(folder), MEMORY_BYTES, "file.enabled=false") as served,
        Client(served.address) as client,
    ):
        return [
            *batches(client, rounds, peers),
            *singles(client, rounds),
            *lookups(client, served.address, rounds, 0.5 if quick else 2.0, peers),
        ]
