"""`python -m bench.rdma_inside PAIRS CUTS OUT`: what bench/rdma.py measures, in a machine with two rails.

Writes a JSON object of lists to OUT. The owner is a process of its own, over the far devices.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.rdma.rails import Rail
from transfer.base import Batch, Presented, Region, Rights
from transfer.errors import TransferError
from transfer.rdma import RdmaConfig, RdmaTransport
from transfer.rdma.endpoint import RdmaEndpoint
from transfer.testing.parties import OwnerProcess

MIB = 1 << 20
EXTENTS, LENGTH = 32, 2 * MIB
BYTES = EXTENTS * LENGTH
DEADLINE_S = 120.0
FIRST_PORT = 18_600
LISTENS_S = 30.0
# Where rails are lost: soft-RoCE breaks queue pairs by itself where four of them have much out.
CUT = RdmaConfig(window=8, slice_bytes=256 << 10)
TURNS = 8  # a batch of so many times all of it is what a rail is lost in
UNDER_WAY_S = 0.2
PERFTEST_S = 120.0


class Reader:
    """A connection of ours, a batch of all that the owner shows, and one of it many times over."""

    def __init__(self, transport: RdmaTransport, endpoint: RdmaEndpoint, region: Region, shown: Presented) -> None:
        self.transport, self.endpoint = transport, endpoint
        table = np.empty((EXTENTS, 5), dtype=np.int64)
        table[:, 0], table[:, 2], table[:, 4] = region.id, shown.handle, LENGTH
        table[:, 1] = np.arange(EXTENTS) * LENGTH
        table[:, 3] = np.random.default_rng(1).permutation(EXTENTS) * LENGTH
        self.batch, self.long = Batch(table), Batch(np.tile(table, (TURNS, 1)))

    async def seconds(self) -> float:
        start = time.perf_counter()
        await self.endpoint.read(self.batch, deadline_s=DEADLINE_S)
        return time.perf_counter() - start


@asynccontextmanager
async def reader(*rails: Rail, settings: RdmaConfig | None = None) -> AsyncIterator[Reader]:
    owner = await OwnerProcess.start(f"rdma:{','.join(rail.far for rail in rails)}")
    config = replace(settings or RdmaConfig(), devices=tuple(rail.near for rail in rails), listens=False)
    transport = RdmaTransport(config)
    try:
        await owner.memory("bench", BYTES, 1)
        descriptor = await owner.grant("bench", [(0, BYTES)], rights=Rights.READ, lifetime_s=3600.0)
        endpoint = await transport.connect(owner.address, deadline_s=DEADLINE_S)
        (shown,) = await endpoint.present([descriptor], deadline_s=DEADLINE_S)
        region = await transport.register(np.zeros(BYTES, dtype=np.uint8))
        yield Reader(transport, endpoint, region, shown)
    finally:
        await transport.close()
        await owner.close()


def perftest(rail: Rail, qps: int, port: int) -> float:
    """MiB/s of ib_read_bw: as many bytes in as many requests over as many queue pairs, all of them out at once."""
    each = EXTENTS // qps
    words = f"-F -s {LENGTH} -n {each} -t {each} -q {qps} -p {port}".split()
    index = {device: str(rail.gid(device)[0]) for device in (rail.near, rail.far)}
    far = ["ib_read_bw", "-d", rail.far, "-x", index[rail.far], *words]
    near = ["ib_read_bw", "-d", rail.near, "-x", index[rail.near], *words, "127.0.0.1"]
    with subprocess.Popen(far, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        end = time.monotonic() + LISTENS_S
        while f":{port:04X} 00000000:0000 0A" not in listeners():
            assert time.monotonic() < end and server.poll() is None, "ib_read_bw does not listen"
            time.sleep(0.02)
        told = subprocess.run(near, capture_output=True, text=True, check=True, timeout=PERFTEST_S).stdout
    lines = [line.split() for line in told.splitlines()]
    (figures,) = [line for line in lines if len(line) >= 4 and line[0] == str(LENGTH)]
    return float(figures[3])


def listeners() -> str:
    """Of both families, with the remote address as the shorter one has it."""
    text = "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6"))
    return text.replace("0" * 32, "0" * 8)


async def pairs(count: int) -> dict[str, list[float]]:
    """By turns, each first every other time; the first pair does not count."""
    rail, qps = Rail(0), RdmaConfig().qps
    ours: list[float] = []
    theirs: list[float] = []
    async with reader(rail) as mine:
        for turn in range(count + 1):
            if turn % 2:
                ours.append(BYTES / MIB / await mine.seconds())
            theirs.append(await asyncio.to_thread(perftest, rail, qps, FIRST_PORT + turn))
            if not turn % 2:
                ours.append(BYTES / MIB / await mine.seconds())
    return {"ours": ours[1:], "ib_read_bw": theirs[1:]}


async def moved(count: int) -> dict[str, list[float]]:
    """Seconds from the loss of one rail of two, in the middle of a batch, until all requests that were out there have
    been asked for again on the other: `link`, the far end's carrier is lost; `silent`, packets are, from when that was
    arranged, and both links stay up.
    """
    taken: dict[str, list[float]] = {"link": [], "silent": []}
    rail = Rail(0)
    for kind, seconds in taken.items():
        for _ in range(count):
            async with reader(rail, Rail(1), settings=CUT) as mine:
                lanes = mine.endpoint.lanes
                assert lanes is not None
                async with asyncio.timeout(DEADLINE_S):
                    while lanes.up < 2 * CUT.qps:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                await mine.seconds()
                pending = mine.endpoint.read(mine.long, deadline_s=DEADLINE_S)
                await asyncio.sleep(UNDER_WAY_S)
                before, lost = mine.transport.engine.stats()[2], time.perf_counter()
                with rail.down(rail.far) if kind == "link" else rail.deaf(rail.far):
                    if kind == "silent":
                        lost = time.perf_counter()
                    # A queue pair is down when all that was out on it is back, and asked for again. No pause: what
                    # follows, closing it, may hold the interpreter.
                    while lanes.up > CUT.qps:
                        if pending.done:
                            raise RuntimeError("the batch ended without the rail that was lost")
                        await asyncio.sleep(0)
                    seconds.append(time.perf_counter() - lost)
                    if mine.transport.engine.stats()[2] == before:
                        raise RuntimeError("nothing was out on the rail that was lost")
                    pending.cancel()
                    with contextlib.suppress(TransferError):
                        await pending
    return taken


def main() -> None:
    count, cuts, out = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    out.write_text(json.dumps(asyncio.run(pairs(count)) | asyncio.run(moved(cuts))))


if __name__ == "__main__":
    main()
