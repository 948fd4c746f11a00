"""Batches of blocks through the socket, got and put, against the best copy of the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bench.door_blocks import KIB, MIB, Held
from bench.harness import Row, measure, ratio_at_least
from bench.peers import work
from bench.peers.process import Peers
from kvstore import Client, Extents

__all__ = ["batches"]


def _scatter(held: Held, pieces: int) -> Extents:
    """Each block to `pieces` places, as an engine's layers lie: piece after piece of all blocks."""
    length = held.block_bytes // pieces
    layers = np.split(held.target[: held.batch * held.block_bytes], pieces)
    return Extents.strided(layers, np.arange(held.batch) * length, length)


@contextmanager
def _spinning() -> Iterator[None]:
    """A second Python thread that never waits."""
    stop = threading.Event()

    def spin() -> None:
        n = 0
        while not stop.is_set():
            n += 1

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def batches(client: Client, rounds: int, peers: Peers) -> Iterator[Row]:
    limit_is = "best memcpy, one thread, GiB/s"
    large = Held(client, 2 * MIB, 32, parts=32)
    yield measure(
        "get 32 x 2 MiB",
        unit="GiB/s",
        ours=large.rate(large.get),
        limit=large.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.85),
        peers=peers.of(work.GET_2MIB),
        rounds=rounds,
    )
    into = _scatter(large, 32)
    yield measure(
        "get 32 x 2 MiB, scattered to 32 places each",
        unit="GiB/s",
        ours=large.rate(lambda: large.get(into)),
        limit=large.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.8),
        rounds=rounds,
    )
    with _spinning():
        yield measure(
            "get 32 x 2 MiB, a second Python thread spinning",
            unit="GiB/s",
            ours=large.rate(large.get),
            limit=large.best_copy(),
            limit_is=limit_is,
            target=ratio_at_least(0.75),
            rounds=rounds,
        )
    yield measure(
        "put 32 x 2 MiB",
        unit="GiB/s",
        ours=large.rate(large.put),
        limit=large.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.85),
        peers=peers.of(work.PUT_2MIB),
        rounds=rounds,
    )
    large.space.clear()
    small = Held(client, 64 * KIB, 256)
    yield measure(
        "get 256 x 64 KiB",
        unit="GiB/s",
        ours=small.rate(small.get),
        limit=small.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.7),
        peers=peers.of(work.GET_64KIB),
        rounds=rounds,
    )
    yield measure(
        "put 256 x 64 KiB",
        unit="GiB/s",
        ours=small.rate(small.put),
        limit=small.best_copy(),
        limit_is=limit_is,
        target=ratio_at_least(0.7),
        peers=peers.of(work.PUT_64KIB),
        rounds=rounds,
    )
    small.space.clear()
