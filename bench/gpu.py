"""Device memory: staged through pinned buffers beside bare copies of pinned memory, hashed where it lies beside a copy
on the device, read from another process, and moved by a client (gpu_client.py). Needs a CUDA GPU and cupy
(`pip install kvstore[gpu]`), else is skipped.

The bare copy is cudaMemcpyAsync of the same pinned buffers in a row, on one stream, waited for at the end: what the bus
does with nothing else to do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.gpu_client import BLOCK_BYTES, COUNT, client_rows
from bench.harness import Figure, Row, Skipped, measure, no_target, ratio_at_least, timed
from transfer.base import Batch, Rights, Transport
from transfer.devices import DeviceMemory, Stager, StagingPool, device_memory
from transfer.devices.cupy_bridge import CupyStream, cupy_module, pin, unavailable
from transfer.devices.digests import leaf_digests
from transfer.devices.process import Devices
from transfer.devices.staged import StagedTransport
from transfer.devices.staging import Buffer, Bytes
from transfer.local import LocalTransport
from transfer.tcp import TcpTransport
from transfer.testing.parties import OwnerProcess

__all__ = ["rows"]

MIB, GIB = 1 << 20, 1 << 30
BUFFER_BYTES = 2 * MIB
BUFFERS = 16
BYTES = 512 * MIB
BLOCKS = 32
DEADLINE_S = 60.0


async def _nothing(_host: Bytes, _position: int) -> None:
    """The bytes are there, or nobody wants them: what is measured is the way to the device."""


@dataclass(frozen=True, slots=True)
class Staging:
    loop: asyncio.AbstractEventLoop
    stager: Stager
    pinned: list[Buffer]
    memory: DeviceMemory
    cupy: Any

    def rate(self, work: Callable[[], object]) -> Figure:
        return lambda: BYTES / GIB / timed(work)

    def ours(self, to_device: bool) -> Figure:
        verb = self.stager.land if to_device else self.stager.leave
        return self.rate(
            lambda: self.loop.run_until_complete(verb(self.memory, 0, BYTES, _nothing, deadline_s=DEADLINE_S))
        )

    def bare(self, to_device: bool, size: int = BYTES) -> Figure:
        stream = CupyStream(self.memory.device)

        def copies() -> None:
            for i in range(size // BUFFER_BYTES):
                host, address = self.pinned[i % BUFFERS].memory, self.memory.address + i * BUFFER_BYTES
                if to_device:
                    stream.to_device(address, host)
                else:
                    stream.to_host(host, address)
            stream.wait()

        return lambda: size / GIB / timed(copies)

    def hashed(self, part_bytes: int) -> Figure:
        parts = [(start, part_bytes) for start in range(0, BYTES, part_bytes)]
        return self.rate(lambda: leaf_digests(self.memory, parts))

    def copied(self, other: Any) -> Figure:
        def copy() -> None:
            self.cupy.cuda.runtime.memcpyAsync(other.data.ptr, self.memory.address, BYTES, 3, 0)
            self.cupy.cuda.runtime.deviceSynchronize()

        return self.rate(copy)


def rows(quick: bool) -> list[Row]:
    if why := unavailable():
        raise Skipped(why)
    cupy = cupy_module()
    loop = asyncio.new_event_loop()
    array, other = cupy.zeros(BYTES, cupy.uint8), cupy.zeros(BYTES, cupy.uint8)
    cupy.cuda.runtime.deviceSynchronize()
    pool = StagingPool(pin, staging_bytes_max=BUFFERS * BUFFER_BYTES, buffer_bytes=BUFFER_BYTES)
    pinned = [Buffer(pin(BUFFER_BYTES)) for _ in range(BUFFERS)]
    work = Staging(loop, Stager(pool, CupyStream, ahead_max=8), pinned, device_memory(array), cupy)
    rounds = 3 if quick else 21
    made = [
        measure(
            f"{name}, staged, {BYTES // MIB} MiB in buffers of 2 MiB",
            unit="GiB/s",
            ours=work.ours(to_device),
            limit=work.bare(to_device),
            limit_is="cudaMemcpyAsync of pinned memory",
            target=ratio_at_least(0.9),
            rounds=rounds,
        )
        for name, to_device in (("host to device", True), ("device to host", False))
    ]
    made += [
        measure(
            f"leaf digests on the device, parts of {part_bytes >> 10} KiB",
            unit="GiB/s",
            ours=work.hashed(part_bytes),
            limit=work.copied(other),
            limit_is="copy on the device",
            target=no_target(),
            rounds=rounds,
        )
        for part_bytes in (2 * MIB, 64 << 10)
    ]
    try:
        for kind in ("local", "tcp"):
            made += loop.run_until_complete(_reads(kind, work, rounds))
    finally:
        loop.close()
    whole = COUNT * BLOCK_BYTES
    return made + client_rows(cupy, work.bare(True, whole), work.bare(False, whole), rounds)


async def _reads(kind: str, work: Staging, rounds: int) -> list[Row]:
    """From another process into device memory, 2 MiB extents, with digests and without."""
    owner = await OwnerProcess.start(kind)
    reader = StagedTransport(LocalTransport() if kind == "local" else TcpTransport(), Devices())
    try:
        reading = await _connected(owner, reader, work.memory)
        return [
            await asyncio.to_thread(
                measure,
                f"{kind} read into device memory, 2 MiB x {BLOCKS}{', with digests' if digests else ''}",
                unit="GiB/s",
                ours=_awaited(asyncio.get_running_loop(), reading, digests),
                limit=work.bare(True),
                limit_is="cudaMemcpyAsync of pinned memory",
                target=no_target(),
                rounds=rounds,
            )
            for digests in (True, False)
        ]
    finally:
        await reader.close()
        await owner.close()


Reading = Callable[[bool], Coroutine[Any, Any, None]]


async def _connected(owner: OwnerProcess, reader: Transport, memory: DeviceMemory) -> Reading:
    size = BLOCKS * BUFFER_BYTES
    await owner.memory("bench", size, 1)
    descriptor = await owner.grant("bench", [(0, size)], rights=Rights.READ, lifetime_s=3600.0)
    endpoint = await reader.connect(owner.address, deadline_s=DEADLINE_S)
    (presented,) = await endpoint.present([descriptor], deadline_s=DEADLINE_S)
    region = await reader.register(memory)
    table = np.empty((BLOCKS, 5), dtype=np.int64)
    table[:, 0], table[:, 2], table[:, 4] = region.id, presented.handle, BUFFER_BYTES
    table[:, 1] = table[:, 3] = np.random.default_rng(1).permutation(BLOCKS) * BUFFER_BYTES
    batch = Batch(table)

    async def read(digests: bool) -> None:
        parts = [BUFFER_BYTES] * BLOCKS if digests else None
        await endpoint.read(batch, deadline_s=DEADLINE_S, parts=parts)

    return read


def _awaited(loop: asyncio.AbstractEventLoop, read: Reading, digests: bool) -> Figure:
    """Run from another thread than the loop's."""

    def once() -> float:
        seconds = timed(lambda: asyncio.run_coroutine_threadsafe(read(digests), loop).result(DEADLINE_S))
        return BLOCKS * BUFFER_BYTES / GIB / seconds

    return once
