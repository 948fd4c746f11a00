"""One block through the socket, of each size, against a copy of it: what a call costs beside its bytes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

from bench.door_blocks import KIB, MIB, Draw, Held
from bench.harness import Figure, Row, measure, ratio_at_most, timed
from kvstore import Client

__all__ = ["singles"]

CALLS = 50  # a figure is the median of so many


def _median(draw: Draw) -> Figure:
    return lambda: statistics.median(timed(draw(), scale=1e6) for _ in range(CALLS))


def singles(client: Client, rounds: int) -> Iterator[Row]:
    for block_bytes, name in ((2 * MIB, "2 MiB"), (64 * KIB, "64 KiB"), (4 * KIB, "4 KiB")):
        one = Held(client, block_bytes, 1)
        yield measure(
            f"get 1 x {name}, p50",
            unit="us",
            ours=_median(one.get),
            limit=_median(partial(one.copy, "memcpy")),
            limit_is="memcpy of it, us",
            target=ratio_at_most(1.3, 30, "us"),
            rounds=rounds,
        )
        one.space.clear()
