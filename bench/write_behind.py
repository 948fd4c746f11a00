"""Puts at four times the disk's speed for a minute, with files below: none may be refused, and none may wait.

The disk's speed is what fio writes in the same run, with the block, the depth and the flags that the node's files have:
64 KiB and one request at a time, because a disk that is asked for more may be nearer to memory than a quarter of it. A
client puts batches of new blocks at four times that pace, late ones at once, into memory that is full all the time; the
disk takes its part of them and the rest is dropped and counted. The limit is the same client at the same pace with a
node without files, half of it before and half after: memory as full, nothing written.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.harness import Row, at_most, no_target, ratio_at_least, ratio_at_most, row_of
from bench.serving import node
from kvstore import Client, KVLayout

__all__ = ["rows"]

MIB, GIB = 1 << 20, 1 << 30
BLOCK = 64 << 10
BATCH = 256
MEMORY = 256 * MIB
FILES = 4 * GIB
SETS = (f"file.bytes={FILES}", "file.admission=always", "file.depth=1")
TIMES = 4.0
AHEAD = 1.01  # of that: a pace of exactly four comes out a little below
SLICE_S = 5.0  # p99 of each says how steady the whole is
LAYOUT = KVLayout.uniform(
    engine="bench", model="m", revision="1", dtype="bfloat16", block_tokens=16, layers=4, kv_heads=2, head_dim=128
)


def _disk(folder: Path, seconds: float) -> float:
    """Bytes a second that fio writes, as the node's files are written."""
    command = ["fio", "--name=disk", f"--filename={folder / 'disk'}", f"--size={FILES // 4}", "--rw=write"]
    command += [f"--bs={BLOCK}", "--iodepth=1", "--direct=1", "--ioengine=io_uring", "--fixedbufs", "--registerfiles"]
    command += ["--time_based", f"--runtime={int(seconds * 1000)}ms", "--output-format=json"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return float(json.loads(done.stdout)["jobs"][0]["write"]["bw_bytes"])


@dataclass(frozen=True, slots=True)
class Run:
    """`taken`: when each call began, in seconds from the start, and how many milliseconds it took."""

    taken: list[tuple[float, float]]
    seconds: float
    blocks: int
    refused: int

    def p99_ms(self) -> float:
        return statistics.quantiles([ms for _, ms in self.taken], n=100)[98]

    def slices(self) -> list[float]:
        """The p99 of each SLICE_S."""
        parts: dict[int, list[float]] = {}
        for at, ms in self.taken:
            parts.setdefault(int(at / SLICE_S), []).append(ms)
        return [statistics.quantiles(part, n=100)[98] for part in parts.values() if len(part) > 1]

    def joined(self, other: Run) -> Run:
        later = [(at + self.seconds, ms) for at, ms in other.taken]
        blocks, refused = self.blocks + other.blocks, self.refused + other.refused
        return Run(self.taken + later, self.seconds + other.seconds, blocks, refused)


class Puts:
    """Batches of blocks that nobody has put before."""

    def __init__(self, client: Client) -> None:
        self._ns = client.namespace(LAYOUT)
        assert self._ns.shard_bytes[0] == BLOCK
        self._source = np.random.default_rng(1).integers(256, size=(BATCH, BLOCK), dtype=np.uint8)
        self._next = 0

    def run(self, seconds: float, bytes_per_s: float) -> Run:
        """Each call has its time on a grid; one that could not begin then begins as soon as it can."""
        taken: list[tuple[float, float]] = []
        refused, every = 0, BATCH * BLOCK / bytes_per_s
        start = due = time.perf_counter()
        while (now := time.perf_counter()) < start + seconds:
            self._next += 1
            chain = self._ns.chain(np.full(BATCH * LAYOUT.block_tokens, self._next, np.uint32))
            if now < due:
                time.sleep(due - now)
            due += every
            began = time.perf_counter()
            stored = self._ns.put(chain, self._source).stored
            taken.append((began - start, (time.perf_counter() - began) * 1e3))
            refused += BATCH - stored
        return Run(taken, time.perf_counter() - start, len(taken) * BATCH, refused)


def rows(quick: bool) -> list[Row]:
    if shutil.which("fio") is None:
        raise SystemExit("fio is not installed: apt-get install fio")
    seconds, warm_s, disk_s = (2.0, 0.5, 0.5) if quick else (60.0, 5.0, 2.0)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir=Path.cwd()) as name:
        folder = Path(name)
        loaded_at, alone_at = folder / "loaded", folder / "alone"
        for one in (loaded_at, alone_at):
            one.mkdir()
        with (
            node(loaded_at, MEMORY, *SETS) as loaded,
            node(alone_at, MEMORY, "file.enabled=false") as alone,
            Client(loaded.address) as with_files,
            Client(alone.address) as without,
        ):
            _disk(folder, disk_s)  # lays out the file
            disks = [_disk(folder, disk_s) for _ in range(3)]
            pace = TIMES * AHEAD * statistics.median(disks)
            busy, free = Puts(with_files), Puts(without)
            busy.run(warm_s, pace)  # until memory is full
            free.run(warm_s, pace)
            before = free.run(seconds / 2, pace)
            written = -loaded.written_bytes()
            ours = busy.run(seconds, pace)
            written += loaded.written_bytes()
            unloaded = before.joined(free.run(seconds / 2, pace))
            disks += [_disk(folder, disk_s) for _ in range(3)]
    return _rows(ours, unloaded, written, [disk / GIB for disk in disks], load)


def _rows(ours: Run, unloaded: Run, written: int, disks: list[float], load: float) -> list[Row]:
    """disks: GiB a second, before and after. written: bytes that reached the disk during `ours`."""
    disk_is = "fio, write of 64 KiB, io_uring, direct, depth 1"
    disk = statistics.median(disks)
    return [
        row_of(
            "put of 256 x 64 KiB at four times the disk's speed, p99",
            unit="ms",
            ours=ours.p99_ms(),
            limit=unloaded.p99_ms(),
            limit_is="the same pace without files",
            target=ratio_at_most(2.0),
            taken=ours.slices(),
            steady=unloaded.slices(),
            load=load,
        ),
        row_of(
            "blocks of those refused",
            unit="blocks",
            ours=float(ours.refused),
            limit=None,
            limit_is="",
            target=at_most(0, "blocks"),
            taken=[],
            steady=[],
            load=load,
        ),
        row_of(
            "speed of those puts",
            unit="GiB/s",
            ours=ours.blocks * BLOCK / GIB / ours.seconds,
            limit=disk,
            limit_is=disk_is,
            target=ratio_at_least(TIMES),
            taken=[],
            steady=disks,
            load=load,
        ),
        row_of(
            "written behind meanwhile",
            unit="GiB/s",
            ours=written / GIB / ours.seconds,
            limit=disk,
            limit_is=disk_is,
            target=no_target(),
            taken=[],
            steady=disks,
            load=load,
        ),
    ]
