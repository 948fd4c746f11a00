"""What a lookup and an announcement cost as a cluster grows: real node processes of one machine, one client.

A chain of 1,024 blocks of 4 KiB is put at one node and looked up at another, over its Unix socket: its homes are asked,
at most one message each. Told: from the moment that the put is answered until a lookup at the other node finds all of
it; announcements leave every 20 ms. The limit is a lookup of the same chain at the node that holds it.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.door_blocks import KIB, MIB, layout
from bench.harness import Row, Target, at_most, measure, median_of, no_target, timed
from bench.serving import cluster
from kvstore import Client, Namespace

__all__ = ["rows"]

SIZES = (1, 2, 5, 10)  # nodes
CHAIN, BLOCK = 1_024, 4 * KIB
MEMORY = 64 * MIB
CALLS, TOLD = 50, 5  # of which a figure is the median
FOUND_S = 10.0


def rows(quick: bool) -> list[Row]:
    made: list[Row] = []
    for count in SIZES[:2] if quick else SIZES:
        with _ends(count) as (here, there):
            made += _of(count, here, there, 3 if quick else 11)
    return made


@contextmanager
def _ends(count: int) -> Iterator[tuple[Namespace, Namespace]]:
    """Of the first node and of the last one."""
    with (
        tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder,
        cluster(Path(folder), count, MEMORY, "file.enabled=false") as nodes,
        Client(nodes[0].address) as here,
        Client(nodes[-1].address) as there,
    ):
        yield here.namespace(layout(BLOCK)), there.namespace(layout(BLOCK))


def _of(count: int, here: Namespace, there: Namespace, rounds: int) -> list[Row]:
    fresh = itertools.count(1)
    source = np.zeros(CHAIN * BLOCK, np.uint8)

    def put() -> np.ndarray:
        first = next(fresh) * CHAIN
        chain = here.chain(np.arange(first, first + CHAIN))
        if here.put(chain, source).stored != CHAIN:
            raise RuntimeError("the node did not take a put")
        return chain

    def found(chain: np.ndarray) -> None:
        until = time.monotonic() + FOUND_S
        while there.lookup(chain).blocks != CHAIN:
            if time.monotonic() > until:
                raise RuntimeError("what was put is not found at another node")

    def told() -> float:
        taken = []
        for _ in range(TOLD):
            chain = put()
            taken.append(timed(lambda chain=chain: found(chain), scale=1e3))  # type: ignore[misc]
        return statistics.median(taken)

    chain = put()
    found(chain)
    nodes = f"{count} node" + ("s" if count > 1 else "")
    target: Target = at_most(2, "ms") if count == 5 else no_target()
    looked = measure(
        f"lookup of 1,024 keys that another node holds, {nodes}, p50"
        if count > 1
        else f"lookup of 1,024 keys, {nodes}, p50",
        unit="ms",
        ours=lambda: median_of(lambda: there.lookup(chain), CALLS, scale=1e3),
        limit=lambda: median_of(lambda: here.lookup(chain), CALLS, scale=1e3),
        limit_is="at the node that holds them",
        target=target,
        rounds=rounds,
    )
    if count == 1:
        return [looked]
    return [
        looked,
        measure(
            f"1,024 blocks told, until a lookup at another node finds them, {nodes}",
            unit="ms",
            ours=told,
            limit=None,
            limit_is="",
            target=no_target(),
            rounds=rounds,
        ),
    ]
