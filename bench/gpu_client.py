"""What a client gets into device memory, and puts from it, beside cudaMemcpyAsync of as many bytes: by the node's
mapped memory, and over TCP on loopback as if from another machine. Verified, from memory that no cache holds.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

from bench.door_blocks import Held
from bench.harness import Figure, Row, measure, no_target
from bench.serving import Served, node
from kvstore import Client
from transfer.offers import Home

__all__ = ["BLOCK_BYTES", "COUNT", "client_rows"]

BLOCK_BYTES, COUNT = 2 << 20, 32
PARTS = 32  # a layer each
NODE_BYTES = 2 << 30


def client_rows(cupy: Any, to_device: Figure, to_host: Figure, rounds: int) -> list[Row]:
    """The figures: GiB/s of bare copies of COUNT blocks between pinned memory and the device."""
    made: list[Row] = []
    for way in ("mapped", "tcp"):
        with (
            tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder,
            node(Path(folder), NODE_BYTES, "file.enabled=false", address="127.0.0.1:0") as served,
            ExitStack() as stack,
        ):
            made += _of(cupy, way, _client(stack, served, way), to_device, to_host, rounds)
    return made


def _client(stack: ExitStack, served: Served, way: str) -> Client:
    if way == "mapped":
        return stack.enter_context(Client(served.address))
    stack.enter_context(mock.patch.object(Home, "same_files", lambda *_: False))
    return stack.enter_context(Client(served.remote))


def _of(cupy: Any, way: str, client: Client, to_device: Figure, to_host: Figure, rounds: int) -> list[Row]:
    held = Held(client, BLOCK_BYTES, COUNT, PARTS)
    array = cupy.zeros(BLOCK_BYTES * COUNT, cupy.uint8)
    cupy.cuda.runtime.deviceSynchronize()

    def row(name: str, ours: Figure, limit: Figure) -> Row:
        return measure(
            f"{name}, {COUNT} x {BLOCK_BYTES >> 20} MiB of {PARTS} parts, {way}",
            unit="GiB/s",
            ours=ours,
            limit=limit,
            limit_is="cudaMemcpyAsync of pinned memory",
            target=no_target(),
            rounds=rounds,
        )

    with client.register([array]):
        return [
            row("get into device memory", held.rate(lambda: held.get(array)), to_device),
            row("put from device memory", held.rate(lambda: held.put(array)), to_host),
        ]
