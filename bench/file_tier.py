"""The file medium beside fio with the same settings: block, depth 8, direct, io_uring, random places in written files,
registered files, and registered memory where the node has it.

Throughput as a ratio; and the CPU seconds a GiB of everything in the process that moves bytes, Python included, without
checksums, and how much of it the kernel has no part in. fio's own CPU time stands beside it: on a virtual disk most of
it is the kernel's, and nobody can have less for as many operations. What is to be moved is drawn off the clock, as
fio's is nearly free. The same once more over the memory of fio's own buffers (fio.py says why).

Chains: blocks that lie behind one another with their headers, as write-behind leaves them, beside fio reading or
writing blocks of that size one behind the other; and beside fio with operations of 1 MiB, which is what ours become.
Then through the tier (file_blocks.py): blocks with their headers, verified where they are read.
"""

from __future__ import annotations

import asyncio
import itertools
import mmap
import random
import resource
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench import fio
from bench.file_blocks import Blocks
from bench.harness import Figure, Row, at_most, measure, no_target, ratio_at_least, row_of, timed
from kvstore.clock import SystemClock
from kvstore.tiers.base import Extent, Pieces
from kvstore.tiers.data_dir import HEADER_BYTES, DataDir, Geometry
from kvstore.tiers.medium import FileMedium, MotionConfig
from kvstore.tiers.page_pool import PAGE_BYTES, PagePool

__all__ = ["rows"]

GIB = 1 << 30
TIER_BYTES = 4 * GIB
MEMORY_BYTES = 256 << 20
DEPTH = 8
BATCH_BYTES = 64 << 20
POOL_PAGES = 4096
DRAWN = 16  # batches, moved again and again
CHAIN = 256  # blocks
BLOCKS = (("2 MiB", 2 << 20), ("64 KiB", 64 << 10))


@dataclass(slots=True)
class Cost:
    """CPU seconds a GiB, a round each: all of it, and what was spent outside of the kernel."""

    whole: list[float] = field(default_factory=list)
    user: list[float] = field(default_factory=list)

    def add(self, user_s: float, system_s: float, gib: float) -> None:
        self.whole.append((user_s + system_s) / gib)
        self.user.append(user_s / gib)


Batch = tuple[list[Extent], list[Pieces]]
Draw = Callable[[int], Batch]


@dataclass
class Bench:
    directory: Path
    geometry: Geometry
    loop: asyncio.AbstractEventLoop
    medium: FileMedium
    memory: memoryview
    pages: PagePool
    seconds: float
    fio_buffers: Mapping[int, fio.Buffers]  # by block size

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

    def ours(self, write: bool, block: int, cost: Cost, draw: Draw | None = None) -> Figure:
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
            batches = itertools.cycle([(draw or self.anywhere)(block) for _ in range(DRAWN)])
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

    def anywhere(self, block: int) -> Batch:
        blocks = BATCH_BYTES // block
        slots = self.random.sample(range(MEMORY_BYTES // block), blocks)
        return self._extents(block, blocks), [self.memory[slot * block : (slot + 1) * block] for slot in slots]

    def in_fios_memory(self, block: int) -> Batch:
        blocks, memory = BATCH_BYTES // block, self.fio_buffers[block].memory
        turns = itertools.islice(itertools.cycle(range(DEPTH)), blocks)
        return self._extents(block, blocks), [memory[turn * block : (turn + 1) * block] for turn in turns]

    def _extents(self, block: int, count: int) -> list[Extent]:
        geometry = self.geometry
        extents: list[Extent] = []
        for _ in range(count):
            file = self.random.randrange(geometry.files - 1)  # the last one may be shorter
            at = self.random.randrange(0, geometry.file_bytes - block, 4096)
            extents.append(Extent(file * geometry.file_bytes + at, block))
        return extents

    def chains(self, block: int) -> Batch:
        """Cells in a row, each a header and a payload; their memory is anywhere."""
        blocks, cell = BATCH_BYTES // block, HEADER_BYTES + block
        geometry, chain = self.geometry, CHAIN * cell
        per = geometry.file_bytes // chain  # of a file
        places = range((geometry.files - 1) * per)  # none over another, as cells never are
        extents = [
            Extent(at // per * geometry.file_bytes + at % per * chain + i * cell, cell)
            for at in self.random.sample(places, blocks // CHAIN)
            for i in range(CHAIN)
        ]
        slots = self.random.sample(range(MEMORY_BYTES // block), blocks)
        headers = self.random.sample(range(POOL_PAGES), blocks)
        pool, memory = self.pages.memory, self.memory
        pieces: list[Pieces] = [
            (pool[page * PAGE_BYTES : (page + 1) * PAGE_BYTES], memory[slot * block : (slot + 1) * block])
            for page, slot in zip(headers, slots, strict=True)
        ]
        return extents, pieces

    def fio(self, kind: str, block: int, cost: Cost | None = None, memory: fio.Buffers | None = None) -> Figure:
        paths = sorted(self.directory.glob("slots-*"))[: self.geometry.files - 1]
        fixed = bool(self.medium.features["registered_memory"])

        def once() -> float:
            told = fio.run(paths, kind, block=block, depth=DEPTH, seconds=self.seconds, fixed=fixed, memory=memory)
            if cost is not None:
                cost.add(told.user, told.system, told.rate)
            return told.rate

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
    with ExitStack() as held:
        fio_buffers = {block: held.enter_context(fio.buffers(block, DEPTH)) for _, block in BLOCKS}
        regions = [memory, pages.memory, *(each.memory for each in fio_buffers.values())]
        medium = FileMedium(data_dir, geometry, MotionConfig(depth=DEPTH), SystemClock(), regions)
        try:
            data_dir.acquire()
            loop.run_until_complete(medium.open())
            bench = Bench(directory, geometry, loop, medium, memory, pages, seconds, fio_buffers)
            bench.fill()
            yield bench
            loop.run_until_complete(medium.close())
        finally:
            loop.close()
            data_dir.release()
            shutil.rmtree(directory)


LIMIT_IS = f"fio, io_uring, direct, depth {DEPTH}"


def _case(bench: Bench, name: str, write: bool, block: int, rounds: int, chains: bool) -> list[Row]:
    """The same rounds give all three."""
    ours, fios = Cost(), Cost()
    verb = "write" if write else "read"
    kind = verb if chains else f"rand{verb}"
    speed = measure(
        name,
        unit="GiB/s",
        ours=bench.ours(write, block, ours, bench.chains if chains else bench.anywhere),
        limit=bench.fio(kind, block, fios),
        limit_is=f"{LIMIT_IS}; ours by {bench.medium.name}",
        target=ratio_at_least(0.9),
        peers={"fio, 1 MiB": bench.fio(f"rand{verb}", 1 << 20)} if chains else {},
        rounds=rounds,
    )
    out = [speed]
    for what, target, mine, theirs in (
        ("CPU", at_most(0.05, "s/GiB"), ours.whole[1:], fios.whole[1:]),
        ("CPU outside of the kernel", no_target(), ours.user[1:], fios.user[1:]),
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


def _same_memory(bench: Bench, name: str, write: bool, block: int, rounds: int) -> Row:
    verb = "randwrite" if write else "randread"
    return measure(
        f"{name}, over the memory of fio's buffers",
        unit="GiB/s",
        ours=bench.ours(write, block, Cost(), bench.in_fios_memory),
        limit=bench.fio(verb, block, memory=bench.fio_buffers[block]),
        limit_is=LIMIT_IS,
        target=ratio_at_least(0.9),
        rounds=rounds,
    )


def _tier(bench: Bench, label: str, block: int, rounds: int) -> Iterator[Row]:
    blocks = Blocks(bench.loop, bench.medium, bench.geometry, bench.pages, bench.memory, block, bench.seconds)
    try:
        for kind, what, figure in (
            ("randread", "blocks of {} read and verified", blocks.reads),
            ("read", "chains of {} read and verified", blocks.reads_of_chains),
            ("randwrite", "chains of {} written", blocks.writes),  # last: fio writes over what is to be read
        ):
            yield measure(
                f"file tier, {what.format(label)}",
                unit="GiB/s",
                ours=figure(),
                limit=bench.fio(kind, block),
                limit_is=LIMIT_IS,
                target=ratio_at_least(0.9),
                rounds=rounds,
            )
    finally:
        blocks.close()


def rows(quick: bool) -> list[Row]:
    if shutil.which("fio") is None:
        raise SystemExit("fio is not installed: apt-get install fio")
    rounds, fewer = (1, 1) if quick else (5, 3)
    made: list[Row] = []
    with opened(0.3 if quick else 1.0, Path.cwd()) as bench:
        for label, block in BLOCKS:
            for verb, write in (("read", False), ("write", True)):
                name = f"file medium, {verb} of {label}"
                made += _case(bench, name, write, block, rounds, chains=False)
                made.append(_same_memory(bench, name, write, block, fewer))
                if BATCH_BYTES // block >= CHAIN:
                    made += _case(bench, f"{name} in chains", write, block, rounds, chains=True)
            made += _tier(bench, label, block, rounds)
    return made
