"""The local transport between two processes: reads of a peer's segment into our memory, beside the best memcpy.

The owner is a process of its own and takes no part. Blocks are drawn anew each time from 256 MiB that no cache holds.
The limit copies as many drawn blocks out of the same mapping: the better of the C library's memcpy and a non-temporal
copy. A figure of single blocks is the median of sixteen of them: how fast one goes depends on where its pages lie. The
mapping is touched first: a page that a process sees for the first time costs either side a fault.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.copy import buffer
from bench.harness import Figure, Row, Target, measure, no_target, ratio_at_least, timed
from bench.peers import work as asked
from bench.peers.process import NO_PEERS, Peers
from kvstore import native
from transfer.base import Batch, Region, Rights
from transfer.local import LocalConfig, LocalEndpoint, LocalTransport
from transfer.testing.parties import Bytes, OwnerProcess

__all__ = ["rows"]

GIB = 1 << 30
MIB = 1 << 20
BUFFER_BYTES = 256 * MIB
DEADLINE_S = 60.0


@dataclass(frozen=True, slots=True)
class Work:
    """One batch of `blocks` blocks from the peer's segment to the same place in ours."""

    loop: asyncio.AbstractEventLoop
    endpoint: LocalEndpoint
    region: Region
    handle: int
    source: Bytes  # a view of the peer's segment
    target: Bytes
    block_bytes: int
    blocks: int
    random: np.random.Generator

    def drawn(self) -> list[int]:
        drawn = self.random.permutation(BUFFER_BYTES // self.block_bytes)[: self.blocks]
        return [int(block) for block in drawn]

    def batch(self, drawn: Sequence[int]) -> Batch:
        table = np.empty((len(drawn), 5), dtype=np.int64)
        table[:, 0], table[:, 2], table[:, 4] = self.region.id, self.handle, self.block_bytes
        table[:, 1] = table[:, 3] = np.array(drawn) * self.block_bytes
        return Batch(table)

    def rates(self, once: Callable[[], float]) -> Figure:
        """once: how many seconds a batch took."""
        size = self.block_bytes * self.blocks / GIB
        turns = asked.SINGLES if self.blocks == 1 else 1
        return lambda: size / statistics.median(once() for _ in range(turns))

    def memcpy(self, kind: str) -> Figure:
        def once() -> float:
            drawn = self.drawn()
            copy = lambda: native.copy_blocks(kind, self.target, self.source, self.block_bytes, drawn)  # noqa: E731
            return timed(copy)

        return self.rates(once)

    def best(self) -> Figure:
        libc, stream = self.memcpy("memcpy"), self.memcpy("stream")
        return lambda: max(libc(), stream())

    def now(self, digests: bool) -> Figure:
        def once() -> float:
            batch = self.batch(self.drawn())
            parts = [self.block_bytes] * self.blocks if digests else None
            return timed(lambda: self.endpoint.copy_now(batch, deadline_s=DEADLINE_S, parts=parts))

        return self.rates(once)

    def awaited(self, digests: bool) -> Figure:
        async def read(batch: Batch, parts: Sequence[int] | None) -> float:
            start = time.perf_counter()
            await self.endpoint.read(batch, deadline_s=DEADLINE_S, parts=parts)
            return time.perf_counter() - start

        def once() -> float:
            batch = self.batch(self.drawn())
            parts = [self.block_bytes] * self.blocks if digests else None
            return self.loop.run_until_complete(read(batch, parts))

        return self.rates(once)


async def connected(owner: OwnerProcess, transport: LocalTransport) -> tuple[LocalEndpoint, int]:
    await owner.memory("bench", BUFFER_BYTES, 1)
    descriptor = await owner.grant("bench", [(0, BUFFER_BYTES)], rights=Rights.READ, lifetime_s=3600.0)
    endpoint = await transport.connect(owner.address, deadline_s=DEADLINE_S)
    (presented,) = await endpoint.present([descriptor], deadline_s=DEADLINE_S)
    return endpoint, presented.handle


async def transport_of(loop: asyncio.AbstractEventLoop) -> tuple[OwnerProcess, LocalTransport]:
    assert asyncio.get_running_loop() is loop
    return await OwnerProcess.start("local"), LocalTransport(LocalConfig())


def rows(quick: bool, peers: Peers = NO_PEERS) -> list[Row]:
    loop = asyncio.new_event_loop()
    owner, transport = loop.run_until_complete(transport_of(loop))
    try:
        endpoint, handle = loop.run_until_complete(connected(owner, transport))
        target = buffer(0)
        region = loop.run_until_complete(transport.register(target))
        with endpoint.view(handle, 0, BUFFER_BYTES) as view:
            int(view.array[::4096].sum())
            made = _rows(quick, peers, loop, endpoint, region, handle, view.array, target)
        loop.run_until_complete(transport.close())
    finally:
        loop.run_until_complete(owner.close())
        loop.close()
    return made


def _rows(
    quick: bool,
    peers: Peers,
    loop: asyncio.AbstractEventLoop,
    endpoint: LocalEndpoint,
    region: Region,
    handle: int,
    source: Bytes,
    target: Bytes,
) -> list[Row]:
    random = np.random.default_rng(2)
    cases: list[tuple[str, int, int, bool, bool, Target]] = [
        ("2 MiB x 1, with digests, calling thread", 2 * MIB, 1, True, False, ratio_at_least(0.95)),
        ("2 MiB x 32, with digests, awaited", 2 * MIB, 32, True, True, ratio_at_least(0.95)),
        ("2 MiB x 32, awaited", 2 * MIB, 32, False, True, ratio_at_least(0.95)),
        ("2 MiB x 1, with digests, awaited", 2 * MIB, 1, True, True, no_target()),
        ("64 KiB x 256, with digests, awaited", 64 << 10, 256, True, True, no_target()),
        ("4 KiB x 1,000, with digests, awaited", 4 << 10, 1000, True, True, no_target()),
    ]
    others = {1: asked.LOCAL_2MIB_ONE, 32: asked.LOCAL_2MIB}
    made: list[Row] = []
    for name, block_bytes, blocks, digests, awaited, target_ratio in cases:
        note = ", without digests" if digests else ""
        work = Work(loop, endpoint, region, handle, source, target, block_bytes, blocks, random)
        made.append(
            measure(
                f"local read, {name}",
                unit="GiB/s",
                ours=work.awaited(digests) if awaited else work.now(digests),
                limit=work.best(),
                limit_is="best memcpy",
                target=target_ratio,
                peers=peers.of(others[blocks], note) if block_bytes == 2 * MIB else None,
                rounds=3 if quick else 41,
            )
        )
    return made
