"""fio as the limit of a disk: its command, what it says, and the memory of its buffers.

fio moves the same few buffers all the time, ours moves blocks from everywhere in a tier. How fast a disk is may hang on
that memory: on a virtual one, two thirds of its speed can be a matter of how far the pages of a buffer lie together. So
fio can be given buffers in a file that ours maps, too: then both move the very same pages.
"""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["GIB", "Buffers", "Told", "buffers", "run"]

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Told:
    """GiB/s; CPU seconds a second that it ran, of the program and of the kernel."""

    rate: float
    user: float
    system: float


@dataclass(frozen=True, slots=True)
class Buffers:
    """Memory for fio's buffers of one block size, as many as its depth."""

    path: Path
    memory: memoryview


@contextmanager
def buffers(block: int, depth: int) -> Iterator[Buffers]:
    """fio cuts the file to the length that it needs, so each block size has its own."""
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir="/dev/shm") as folder:
        path = Path(folder) / "buffers"
        with path.open("w+b") as file:
            os.posix_fallocate(file.fileno(), 0, block * depth)
            memory = memoryview(mmap.mmap(file.fileno(), block * depth))
        memory[:] = os.urandom(1 << 16) * (block * depth >> 16)
        yield Buffers(path, memory)


def run(
    paths: Sequence[Path],
    kind: str,
    *,
    block: int,
    depth: int,
    seconds: float,
    fixed: bool,
    memory: Buffers | None = None,
) -> Told:
    """kind: read, write, randread or randwrite."""
    command = ["fio", "--name=limit", f"--filename={':'.join(map(str, paths))}", f"--rw={kind}"]
    command += [f"--bs={block}", f"--iodepth={depth}", "--direct=1", "--ioengine=io_uring", "--registerfiles"]
    command += ["--fixedbufs"] if fixed else []
    command += ["--time_based", f"--runtime={int(seconds * 1000)}ms", "--output-format=json"]
    command += ["--norandommap", "--file_service_type=random"] if kind.startswith("rand") else []
    link: Path | None = None
    if memory is not None:
        link = memory.path.with_name("fio")  # which fio removes at its end
        link.hardlink_to(memory.path)
        command.append(f"--mem=mmapshared:{link}")
    try:
        done = subprocess.run(command, capture_output=True, check=True, text=True)
    finally:
        if link is not None:
            link.unlink(missing_ok=True)
    job = json.loads(done.stdout)["jobs"][0]
    rate = float(job[kind.removeprefix("rand")]["bw_bytes"]) / GIB
    return Told(rate, job["usr_cpu"] / 100, job["sys_cpu"] / 100)  # both are shares of the time that it ran
