"""Batches of blocks through the socket, got and put, against the best copy of the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

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


@dataclass(frozen=True, slots=True)
class Case:
    """One row: what is done with a batch, and how much of the best copy it should reach."""

    name: str
    do: Callable[[], object]
    at_least: float
    peers: str = ""  # the work that other stores are asked to do beside it
    beside: AbstractContextManager[object] = field(default_factory=nullcontext)


def _cases_large(held: Held) -> list[Case]:
    into = _scatter(held, 32)
    return [
        Case("get 32 x 2 MiB", held.get, 0.85, work.GET_2MIB),
        Case("get 32 x 2 MiB, scattered to 32 places each", lambda: held.get(into), 0.8),
        Case("get 32 x 2 MiB, a second Python thread spinning", held.get, 0.75, beside=_spinning()),
        Case("put 32 x 2 MiB", held.put, 0.85, work.PUT_2MIB),
    ]


def _cases_small(held: Held) -> list[Case]:
    return [
        Case("get 256 x 64 KiB", held.get, 0.7, work.GET_64KIB),
        Case("put 256 x 64 KiB", held.put, 0.7, work.PUT_64KIB),
    ]


def _measured(case: Case, held: Held, rounds: int, peers: Peers) -> Row:
    with case.beside:
        return measure(
            case.name,
            unit="GiB/s",
            ours=held.rate(case.do),
            limit=held.best_copy(),
            limit_is="best memcpy, one thread, GiB/s",
            target=ratio_at_least(case.at_least),
            peers=peers.of(case.peers) if case.peers else None,
            rounds=rounds,
        )


def batches(client: Client, rounds: int, peers: Peers) -> Iterator[Row]:
    large = Held(client, 2 * MIB, 32, parts=32)
    yield from (_measured(case, large, rounds, peers) for case in _cases_large(large))
    large.space.clear()
    small = Held(client, 64 * KIB, 256)
    yield from (_measured(case, small, rounds, peers) for case in _cases_small(small))
    small.space.clear()
