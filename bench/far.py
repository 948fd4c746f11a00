"""A client of another machine: what `Client("host:port")` gets and puts over TCP on loopback, beside plain sockets.

The limit is tcp.py's: a server and a reader in C++ with as many streams, which move the same extents and check nothing.
Ours asks for a lease, reads, verifies and releases; or grants, has the node read and hash, and revokes. The client
believes that it is on another machine, so that no memory and no Unix socket is shared.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from bench.door_blocks import GIB, KIB, MIB, Held
from bench.harness import Figure, Row, at_most, measure, median_of, no_target, ratio_at_least, timed
from bench.serving import node
from bench.tcp import Bare, Draw
from kvstore import Client
from kvstore.config import TransferConfig
from transfer.offers import Home

__all__ = ["rows"]

LANES = TransferConfig().lanes
CALLS = 50  # a figure of a call is the median of so many
LARGE, SMALL = (2 * MIB, 32), (64 * KIB, 256)


def rows(quick: bool) -> list[Row]:
    rounds = 3 if quick else 15
    target = np.zeros(256 * MIB, dtype=np.uint8)
    with (
        tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder,
        node(Path(folder), 2 * GIB, "file.enabled=false", address="127.0.0.1:0") as served,
        mock.patch.object(Home, "same_files", lambda *_: False),
        Client(served.remote) as client,
    ):
        bare = Bare(LANES, target)
        try:
            large, small = (Held(client, size, count) for size, count in (LARGE, SMALL))
            made = [*_batches(large, bare, rounds), *_batches(small, bare, rounds), _single(small, rounds)]
        finally:
            bare.close()
    return made


def _batches(held: Held, bare: Bare, rounds: int) -> list[Row]:
    size, count, draw = held.block_bytes, held.batch, Draw()

    def limit() -> float:
        offsets = draw(size, count)
        return size * count / GIB / timed(lambda: bare.read(offsets, size))

    def row(verb: str, ours: Figure) -> Row:
        return measure(
            f"{verb} {count} x {size // KIB} KiB from host:port, verified",
            unit="GiB/s",
            ours=ours,
            limit=limit,
            limit_is=f"plain sockets, {LANES} streams",
            target=ratio_at_least(0.7) if size == MIB * 2 else no_target(),
            rounds=rounds,
        )

    return [row("get", held.rate(held.get)), row("put", held.rate(held.put))]


def _single(held: Held, rounds: int) -> Row:
    into = held.target[: held.block_bytes]

    def get() -> None:
        chain = held.chains[int(held.random.integers(len(held.chains)))][:1]
        if held.space.get(chain, into).blocks != 1:
            raise RuntimeError("a block that was held did not come")

    return measure(
        "get 64 KiB from host:port, verified, p50",
        unit="us",
        ours=lambda: median_of(get, CALLS, scale=1e6),
        limit=lambda: median_of(lambda: held.space.lookup(held.chains[0][:1]), CALLS, scale=1e6),
        limit_is="a lookup over the same connection",
        target=at_most(1_000, "us"),
        rounds=rounds,
    )
