"""The file medium beside fio with the same settings: block, depth 8, direct, io_uring, random places in written files,
registered files, and registered memory where the node has it.

Throughput as a ratio; and the CPU seconds a GiB of everything in the process that moves bytes, Python included, without
checksums, and how much of it the kernel has no part in. fio's own CPU time stands beside it: on a virtual disk most of
it is the kernel's, and nobody can have less. What is to be moved is drawn off the clock, as fio's is nearly free.
Then the same through the tier (file_blocks.py): blocks with their headers, verified where they are read.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import mmap
import random
import resource
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.file_blocks import Blocks
from bench.harness import Figure, Row, at_most, measure, no_target, ratio_at_least, row_of, timed
from kvstore.clock import SystemClock
from kvstore.tiers.base import Extent
from kvstore.tiers.data_dir import DataDir, Geometry
from kvstore.tiers.medium import FileMedium, MotionConfig
from kvstore.tiers.page_pool import PagePool

__all__ = ["rows"]

GIB = 1 << 30
TIER_BYTES = 4 * GIB
MEMORY_BYTES = 256 << 20
DEPTH = 8
BATCH_BYTES = 64 << 20
POOL_PAGES = 4096
DRAWN = 16  # batches, moved again and again


@dataclass(slots=True)
class Cost:
    """CPU seconds a GiB, a round each: all of it, and what was spent outside of the kernel."""

    whole: list[float] = field(default_factory=list)
    user: list[float] = field(default_factory=list)

    def add(self, user_s: float, system_s: float, gib: float) -> None:
        self.whole.append((user_s + system_s) / gib)
        self.user.append(user_s / gib)


Batch = tuple[list[Extent], list[memoryview]]


@dataclass
class Bench:
    directory: Path
    geometry: Geometry
    loop: asyncio.AbstractEventLoop
    medium: FileMedium
    memory: memoryview
    pages: PagePool
    seconds: float

    def __post_init__(self) -> None:
        self.random = random.Random(7)

    def fill(self) -> None:
        """Extents that were never written read as zeros without touching the disk."""
        step = 16 << 20
        for file in range(self.geometry.files):
            start, length = file * self.geometry.file_bytes, self.geometry.bytes_of_file(file)
            for at in range(0, length, step):
                some = min(step, length - at)
                self.loop.run_until_complete(self.medium.write([Extent(start + at, some)], [self.memory[:some]]))

    def ours(self, write: bool, block: int, cost: Cost) -> Figure:
        verb = self.medium.write if write else self.medium.read

        async def one(batch: Batch) -> None:
            if errors := [error for error in await verb(*batch) if error is not None]:
                raise errors[0]

        async def move(batches: Iterator[Batch]) -> int:
            count, clock = 0, asyncio.get_running_loop().time
            end = clock() + self.seconds
            pending: set[asyncio.Task[None]] = set()
            while clock() < end:
                while len(pending) < 2:
                    pending.add(asyncio.ensure_future(one(next(batches))))
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                count += len(done)
            await asyncio.gather(*pending)
            return (count + len(pending)) * BATCH_BYTES

        def once() -> float:
            batches = itertools.cycle([self._draw(block) for _ in range(DRAWN)])
            moved = 0

            def work() -> None:
                nonlocal moved
                moved = self.loop.run_until_complete(move(batches))

            before = resource.getrusage(resource.RUSAGE_SELF)
            took = timed(work)
            after = resource.getrusage(resource.RUSAGE_SELF)
            cost.add(after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime, moved / GIB)
            return moved / GIB / took

        return once

    def _draw(self, block: int) -> Batch:
        blocks, geometry = BATCH_BYTES // block, self.geometry
        extents: list[Extent] = []
        for _ in range(blocks):
            file = self.random.randrange(geometry.files - 1)  # the last one may be shorter
            at = self.random.randrange(0, geometry.file_bytes - block, 4096)
            extents.append(Extent(file * geometry.file_bytes + at, block))
        slots = self.random.sample(range(MEMORY_BYTES // block), blocks)
        return extents, [self.memory[slot * block : (slot + 1) * block] for slot in slots]

    def fio(self, write: bool, block: int, cost: Cost) -> Figure:
        paths = sorted(self.directory.glob("slots-*"))[: self.geometry.files - 1]
        verb = "write" if write else "read"
        command = ["fio", "--name=limit", f"--filename={':'.join(map(str, paths))}", f"--rw=rand{verb}"]
        command += [f"--bs={block}", f"--iodepth={DEPTH}", "--direct=1", "--ioengine=io_uring", "--registerfiles"]
        command += ["--fixedbufs"] if self.medium.features["registered_memory"] else []
        command += ["--time_based", f"--runtime={int(self.seconds * 1000)}ms", "--output-format=json"]
        command += ["--norandommap", "--file_service_type=random"]

        def once() -> float:
            done = subprocess.run(command, capture_output=True, check=True, text=True)
            job = json.loads(done.stdout)["jobs"][0]
            rate = float(job[verb]["bw_bytes"]) / GIB
            cost.add(job["usr_cpu"] / 100, job["sys_cpu"] / 100, rate)  # both are shares of the time that it ran
            return rate

        return once


@contextmanager
def opened(seconds: float, under: Path | None) -> Iterator[Bench]:
    directory = Path(tempfile.mkdtemp(prefix="kvstore-bench-", dir=under))
    loop = asyncio.new_event_loop()
    data_dir = DataDir(directory)
    memory = memoryview(mmap.mmap(-1, MEMORY_BYTES))
    memory[:] = random.Random(1).randbytes(1 << 20) * (MEMORY_BYTES >> 20)
    geometry = Geometry.of(TIER_BYTES)
    pages = PagePool(POOL_PAGES)
    motion = MotionConfig(depth=DEPTH)
    medium = FileMedium(data_dir, geometry, motion, SystemClock(), [memory, pages.memory])
    try:
        data_dir.acquire()
        loop.run_until_complete(medium.open())
        bench = Bench(directory, geometry, loop, medium, memory, pages, seconds)
        bench.fill()
        yield bench
        loop.run_until_complete(medium.close())
    finally:
        loop.close()
        data_dir.release()
        shutil.rmtree(directory)


def _case(bench: Bench, name: str, write: bool, block: int, rounds: int) -> list[Row]:
    """The same rounds give all three."""
    ours, fio = Cost(), Cost()
    speed = measure(
        name,
        unit="GiB/s",
        ours=bench.ours(write, block, ours),
        limit=bench.fio(write, block, fio),
        limit_is=f"fio, io_uring, direct, depth {DEPTH}; ours by {bench.medium.name}",
        target=ratio_at_least(0.9),
        rounds=rounds,
    )
    out = [speed]
    for what, target, mine, theirs in (
        ("CPU", at_most(0.05, "s/GiB"), ours.whole[1:], fio.whole[1:]),
        ("CPU outside of the kernel", no_target(), ours.user[1:], fio.user[1:]),
    ):
        out.append(
            row_of(
                f"{name}, {what}",
                unit="s/GiB",
                ours=statistics.median(mine),
                limit=statistics.median(theirs),
                limit_is="fio's own",
                target=target,
                taken=mine,
                steady=theirs,
                load=speed.load,
            )
        )
    return out


def _tier(bench: Bench, label: str, block: int, rounds: int) -> Iterator[Row]:
    blocks = Blocks(bench.loop, bench.medium, bench.geometry, bench.pages, bench.memory, block, bench.seconds)
    try:
        for write, verb, figure in (
            (False, "blocks of {} read and verified", blocks.reads),
            (True, "blocks of {} written", blocks.writes),
        ):
            yield measure(
                f"file tier, {verb.format(label)}",
                unit="GiB/s",
                ours=figure(),
                limit=bench.fio(write, block, Cost()),
                limit_is=f"fio, io_uring, direct, depth {DEPTH}",
                target=ratio_at_least(0.9),
                rounds=rounds,
            )
    finally:
        blocks.close()


def rows(quick: bool) -> list[Row]:
    if shutil.which("fio") is None:
        raise SystemExit("fio is not installed: apt-get install fio")
    rounds = 1 if quick else 9
    made: list[Row] = []
    with opened(0.3 if quick else 1.0, Path.cwd()) as bench:
        for label, block in (("2 MiB", 2 << 20), ("64 KiB", 64 << 10)):
            for verb, write in (("read", False), ("write", True)):
                made += _case(bench, f"file medium, {verb} of {label}", write, block, rounds)
            made += _tier(bench, label, block, rounds)
    return made
