"""Packs to and from an S3 server, against the same bytes sent and fetched by the bare client library.

The server is Ceph's gateway where it is installed (tests/s3), else moto. Ours hashes what it sends beforehand, asks
whether a pack is there before sending it, and on the way back copies blocks into slots and verifies them; the bare
library leaves them where they landed. Names are fresh in every round, and what was written is deleted outside of the
time taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import mmap
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import obstore

from bench.harness import Figure, Row, measure, ratio_at_least, timed
from kvstore import native
from kvstore.tiers.base import Run, Shape
from kvstore.tiers.object import ObjectTier
from kvstore.tiers.object_tier import PackTier
from kvstore.tiers.pack_index import PackIndex
from kvstore.tiers.packs import head_bytes_of, pack_blocks
from tests.s3.ceph import ACCESS_KEY, BUCKET, SECRET_KEY, ceph, missing
from tests.s3_server import moto_server

__all__ = ["rows"]

MIB = 1 << 20
DIGEST = b"b" * 32
PARTS = 32


@dataclass(frozen=True, slots=True)
class OneShape:
    block_bytes: int

    def shape(self, ns: int, shard: int) -> Shape:
        del ns, shard
        return Shape(DIGEST, (self.block_bytes // PARTS,) * PARTS)


@dataclass(slots=True)
class Bench:
    """`packs` full packs of blocks of `block_bytes`, all at once."""

    url: str
    options: dict[str, str]
    block_bytes: int
    packs: int
    loop: asyncio.AbstractEventLoop
    numbers: Iterator[int] = field(default_factory=itertools.count)
    tier: PackTier = field(init=False)
    core: native.NodeCore = field(init=False)
    blocks: list[memoryview] = field(init=False)
    head: bytes = field(init=False)
    into: list[memoryview] = field(init=False)
    meta: mmap.mmap = field(init=False)

    def __post_init__(self) -> None:
        table = native.TableConfig(64 * MIB, 8 * MIB)
        self.meta = mmap.mmap(-1, native.NodeCore.meta_bytes(table))
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.meta))
        self.core = native.NodeCore(table, None, meta=address, meta_bytes=len(self.meta), incarnation=1)
        self.core.set_object_tier(1 << 20)
        store = ObjectTier.open(self.url, timeout_s=60, retries=0, concurrency=16, options=self.options)
        self.tier = PackTier(store, PackIndex(self.core, 1 << 20), OneShape(self.block_bytes))
        count = pack_blocks(self.block_bytes)
        # The same objects to the byte: where a server cuts them into stripes, a range begins and ends alike.
        self.head = bytes(head_bytes_of(count, PARTS, (b"",) * count))
        data = np.random.default_rng(1).integers(256, size=(count, self.block_bytes), dtype=np.uint8)
        self.blocks = [memoryview(block) for block in data]  # type: ignore[arg-type]
        landing = np.ones((self.packs * count, self.block_bytes), np.uint8)
        self.into = [memoryview(block) for block in landing]  # type: ignore[arg-type]

    def run(self) -> Run:
        count = len(self.blocks)
        parts = [self.block_bytes // PARTS] * PARTS
        sums = np.stack([native.part_checksums(block, parts) for block in self.blocks])
        keys = np.random.default_rng(next(self.numbers) + 10).integers(256, size=(count, 32), dtype=np.uint8)
        return Run(0, 0, keys, None, sums, (b"",) * count)

    def names(self) -> list[str]:
        return [f"bare/{next(self.numbers)}" for _ in range(self.packs)]

    def rate(self, work: Callable[[], Awaitable[object]]) -> float:
        size = self.packs * len(self.blocks) * self.block_bytes
        return size / MIB / timed(lambda: self.loop.run_until_complete(_awaited(work)))

    async def put_packs(self, runs: list[Run]) -> None:
        async def one(run: Run) -> None:
            reservation = self.tier.reserve(run)
            await reservation.write(self.blocks)
            assert reservation.seal() == len(self.blocks)

        await asyncio.gather(*(one(run) for run in runs))

    async def get_packs(self, runs: list[Run]) -> None:
        async def one(at: int, run: Run) -> None:
            hold = self.tier.hold(0, 0, run.keys)
            assert hold is not None
            count = len(self.blocks)
            assert await hold.read(self.into[at * count : (at + 1) * count]) == count

        await asyncio.gather(*(one(at, run) for at, run in enumerate(runs)))

    async def put_bare(self, names: list[str]) -> None:
        store = self.tier.store._store
        await asyncio.gather(
            *(
                obstore.put_async(store, name, [self.head, *self.blocks], mode="create", use_multipart=False)
                for name in names
            )
        )

    async def get_bare(self, names: list[str]) -> None:
        size = len(self.blocks) * self.block_bytes
        store = self.tier.store._store
        start = len(self.head)
        await asyncio.gather(*(obstore.get_range_async(store, name, start=start, length=size) for name in names))

    async def forget(self, names: list[str]) -> None:
        await obstore.delete_async(self.tier.store._store, names)

    async def forget_packs(self) -> None:
        await self.tier.store.delete([pack.name for pack in await self.tier.store.listing(DIGEST) or []])

    def put_figures(self) -> tuple[Figure, Figure]:
        """Ours, bare."""

        def ours_put() -> float:
            runs = [self.run() for _ in range(self.packs)]
            rate = self.rate(lambda: self.put_packs(runs))
            self.loop.run_until_complete(self.forget_packs())
            return rate

        def bare_put() -> float:
            names = self.names()
            rate = self.rate(lambda: self.put_bare(names))
            self.loop.run_until_complete(self.forget(names))
            return rate

        return ours_put, bare_put

    def get_figures(self) -> tuple[Figure, Figure]:
        runs, names = [self.run() for _ in range(self.packs)], self.names()
        self.loop.run_until_complete(self.put_packs(runs))
        self.loop.run_until_complete(self.put_bare(names))
        return lambda: self.rate(lambda: self.get_packs(runs)), lambda: self.rate(lambda: self.get_bare(names))


async def _awaited(work: Callable[[], Awaitable[object]]) -> None:
    await work()


@contextlib.contextmanager
def server() -> Iterator[tuple[str, dict[str, str]]]:
    """What it is called, and how to reach it."""
    common = {"region": "us-east-1", "virtual_hosted_style_request": "false"}
    if not missing():
        with tempfile.TemporaryDirectory() as home, ceph(Path(home) / "ceph") as gateway:
            keys = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
            yield "Ceph", {"endpoint": f"http://127.0.0.1:{gateway.port}", **keys, **common}
    else:
        with moto_server() as port:
            keys = {"access_key_id": "test", "secret_access_key": "test"}
            yield "moto", {"endpoint": f"http://127.0.0.1:{port}", **keys, **common}


def rows(quick: bool) -> list[Row]:
    made = []
    rounds = 3 if quick else 15
    with server() as (name, options), contextlib.closing(asyncio.new_event_loop()) as loop:
        for block_bytes, packs, label in ((2 * MIB, 2, "2 MiB"), (64 << 10, 8, "64 KiB")):
            bench = Bench(f"s3://{BUCKET}/bench-{block_bytes}", options, block_bytes, packs, loop)
            count = pack_blocks(block_bytes)
            what = f"{packs} packs of {count} x {label}, {name}"
            for verb, figures in (("write", bench.put_figures), ("read", bench.get_figures)):
                ours, bare = figures()
                made.append(
                    measure(
                        f"object tier, {verb} {what}",
                        unit="MiB/s",
                        ours=ours,
                        limit=bare,
                        limit_is="bare obstore, same server",
                        target=ratio_at_least(0.9),
                        rounds=rounds,
                    )
                )
    return made
