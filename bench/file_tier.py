"""The file medium beside fio with the same settings: block, depth 8, direct, io_uring, random places in written files.

Throughput as a ratio; and the CPU seconds a GiB of everything in the process that moves bytes, Python included, without
checksums. fio's own CPU time stands beside it: on a virtual disk most of it is the kernel's, and nobody can have less.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import random
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.harness import Figure, Row, at_most, measure, ratio_at_least, timed
from kvstore.clock import SystemClock
from kvstore.tiers.base import Extent
from kvstore.tiers.data_dir import DataDir, Geometry
from kvstore.tiers.medium import FileMedium, MotionConfig

__all__ = ["rows"]

GIB = 1 << 30
TIER_BYTES = 4 * GIB
MEMORY_BYTES = 256 << 20
DEPTH = 8
BATCH_BYTES = 64 << 20


@dataclass
class Bench:
    directory: Path
    geometry: Geometry
    loop: asyncio.AbstractEventLoop
    medium: FileMedium
    memory: memoryview
    seconds: float

    def __post_init__(self) -> None:
        self.random = random.Random(7)
        self.fio_cpu: dict[tuple[bool, int], float] = {}
        self.our_cpu: dict[tuple[bool, int], float] = {}

    def fill(self) -> None:
        """Extents that were never written read as zeros without touching the disk."""
        step = 16 << 20
        for file in range(self.geometry.files):
            start, length = file * self.geometry.file_bytes, self.geometry.bytes_of_file(file)
            for at in range(0, length, step):
                some = min(step, length - at)
                self.loop.run_until_complete(self.medium.write([Extent(start + at, some)], [self.memory[:some]]))

    def ours(self, write: bool, block: int) -> Figure:
        blocks = BATCH_BYTES // block

        async def move() -> int:
            moved = 0
            clock = asyncio.get_running_loop().time
            end = clock() + self.seconds
            pending: set[asyncio.Task[None]] = set()
            while clock() < end:
                while len(pending) < 2:
                    pending.add(asyncio.ensure_future(self._batch(write, block, blocks)))
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                moved += len(done) * blocks * block
            await asyncio.wait(pending)
            return moved + len(pending) * blocks * block

        def once() -> float:
            moved = 0

            def work() -> None:
                nonlocal moved
                moved = self.loop.run_until_complete(move())

            before = resource.getrusage(resource.RUSAGE_SELF)
            took = timed(work)
            after = resource.getrusage(resource.RUSAGE_SELF)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            self.our_cpu[write, block] = cpu / (moved / GIB)
            return moved / GIB / took

        return once

    async def _batch(self, write: bool, block: int, blocks: int) -> None:
        geometry = self.geometry
        extents: list[Extent] = []
        for _ in range(blocks):
            file = self.random.randrange(geometry.files - 1)  # the last one may be shorter
            at = self.random.randrange(0, geometry.file_bytes - block, 4096)
            extents.append(Extent(file * geometry.file_bytes + at, block))
        slots = self.random.sample(range(MEMORY_BYTES // block), blocks)
        buffers = [self.memory[slot * block : (slot + 1) * block] for slot in slots]
        verb = self.medium.write if write else self.medium.read
        errors = [error for error in await verb(extents, buffers) if error is not None]
        if errors:
            raise errors[0]

    def fio(self, write: bool, block: int) -> Figure:
        paths = sorted(self.directory.glob("slots-*"))[: self.geometry.files - 1]
        files = ":".join(str(path) for path in paths)

        def once() -> float:
            command = ["fio", "--name=limit", f"--filename={files}", f"--rw=rand{'write' if write else 'read'}"]
            command += [f"--bs={block}", f"--iodepth={DEPTH}", "--direct=1", "--ioengine=io_uring", "--time_based"]
            command += [
                f"--runtime={int(self.seconds * 1000)}ms",
                "--output-format=json",
                "--norandommap",
                "--file_service_type=random",
            ]
            done = subprocess.run(command, capture_output=True, check=True, text=True)
            job = json.loads(done.stdout)["jobs"][0]
            rate = float(job["write" if write else "read"]["bw_bytes"]) / GIB
            self.fio_cpu[write, block] = (job["usr_cpu"] + job["sys_cpu"]) / 100 / rate
            return rate

        return once


def cpu_after(figure: Figure, kept: dict[tuple[bool, int], float], which: tuple[bool, int]) -> Figure:
    def once() -> float:
        figure()
        return kept[which]

    return once


@contextmanager
def opened(seconds: float, under: Path | None) -> Iterator[Bench]:
    directory = Path(tempfile.mkdtemp(prefix="kvstore-bench-", dir=under))
    loop = asyncio.new_event_loop()
    data_dir = DataDir(directory)
    memory = memoryview(mmap.mmap(-1, MEMORY_BYTES))
    memory[:] = random.Random(1).randbytes(1 << 20) * (MEMORY_BYTES >> 20)
    geometry = Geometry.of(TIER_BYTES)
    medium = FileMedium(data_dir, geometry, MotionConfig(depth=DEPTH), SystemClock(), [memory])
    try:
        data_dir.acquire()
        loop.run_until_complete(medium.open())
        bench = Bench(directory, geometry, loop, medium, memory, seconds)
        bench.fill()
        yield bench
        loop.run_until_complete(medium.close())
    finally:
        loop.close()
        data_dir.release()
        shutil.rmtree(directory)


def rows(quick: bool) -> list[Row]:
    if shutil.which("fio") is None:
        raise SystemExit("fio is not installed: apt-get install fio")
    out: list[Row] = []
    rounds = 1 if quick else 9
    with opened(0.3 if quick else 1.0, Path.cwd()) as bench:
        limit_is = f"fio, io_uring, direct, depth {DEPTH}; ours by {bench.medium.name}"
        cases: list[tuple[str, bool, int]] = [
            (f"file medium, {verb} of {label}", write, block)
            for label, block in (("2 MiB", 2 << 20), ("64 KiB", 64 << 10))
            for verb, write in (("read", False), ("write", True))
        ]
        for name, write, block in cases:
            ours, limit = bench.ours(write, block), bench.fio(write, block)
            out.append(
                measure(
                    name,
                    unit="GiB/s",
                    ours=ours,
                    limit=limit,
                    limit_is=limit_is,
                    target=ratio_at_least(0.9),
                    rounds=rounds,
                )
            )
            key = (write, block)
            out.append(
                measure(
                    f"{name}, CPU",
                    unit="s/GiB",
                    ours=cpu_after(ours, bench.our_cpu, key),
                    limit=cpu_after(limit, bench.fio_cpu, key),
                    limit_is="fio's own",
                    target=at_most(0.05, "s/GiB"),
                    rounds=rounds,
                )
            )
    return out
