"""The framed socket: a client and a node in another process, beside what the machine can do with the same bytes.

Batches (door_throughput), single blocks (door_latency) and lookups (door_lookups), of one node.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from bench.door_blocks import GIB
from bench.door_latency import singles
from bench.door_lookups import lookups
from bench.door_throughput import batches
from bench.harness import Row
from bench.peers.process import NO_PEERS, Peers
from kvstore import Client

__all__ = ["rows"]

MEMORY_BYTES = 3 * GIB // 2


@contextmanager
def _node() -> Iterator[str]:
    """A node of its own, without tiers below memory, over a socket in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder:
        flags = [
            "--data-dir",
            f"{folder}/data",
            "--socket",
            f"{folder}/s",
            "--memory",
            str(MEMORY_BYTES),
            "--grpc",
            "none",
        ]
        command = [
            sys.executable,
            "-m",
            "kvstore",
            "node",
            *flags,
            "--set",
            "memory.keep=false",
            "--set",
            "file.enabled=false",
            "--set",
            "object.url=none",
            "--json",
        ]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError("the node did not start")
            try:
                yield f"unix:{folder}/s"
            finally:
                process.terminate()


def rows(quick: bool, peers: Peers = NO_PEERS) -> list[Row]:
    rounds = 3 if quick else 15
    with _node() as address, Client(address) as client:
        return [
            *batches(client, rounds, peers),
            *singles(client, rounds),
            *lookups(client, address, rounds, 0.5 if quick else 2.0, peers),
        ]
