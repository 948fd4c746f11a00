"""Puts that never pause, with files below: what a put takes while write-behind cannot keep up, and none may be refused.

A client puts batches of new 2 MiB blocks as fast as it can, a minute in all, into memory that is full all the time; the
disk, asked for one request at a time, takes a part of them and the rest is dropped and counted. The limit is the same
without files: memory as full, nothing written.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench.harness import Row, measure, ratio_at_most
from kvstore import Client, KVLayout

__all__ = ["rows"]

MIB = 1 << 20
BLOCK = 2 * MIB
BATCH = 8
MEMORY = 256 * MIB
LAYOUT = KVLayout.uniform(
    engine="bench", model="m", revision="1", dtype="bfloat16", block_tokens=16, layers=32, kv_heads=8, head_dim=128
)


@contextmanager
def _node(files: bool) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-", dir=Path.cwd()) as folder:
        flags = ["--data-dir", f"{folder}/data", "--socket", f"{folder}/s", "--memory", str(MEMORY)]
        flags += ["--grpc", "none", "--metrics", "none", "--json"]
        sets = ["memory.keep=false", f"file.enabled={str(files).lower()}", "file.bytes=4GiB", "file.admission=always"]
        flags += [part for one in [*sets, "file.depth=1"] for part in ("--set", one)]
        command = [sys.executable, "-m", "kvstore", "node", *flags]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            json.loads(process.stdout.readline())
            try:
                yield f"unix:{folder}/s"
            finally:
                process.terminate()


class Puts:
    """Batches of blocks that nobody has put before."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)
        self._ns = self._client.namespace(LAYOUT)
        self._source = np.random.default_rng(1).integers(256, size=(BATCH, BLOCK), dtype=np.uint8)
        self._next = 0
        self.refused = 0
        self.blocks = 0

    def close(self) -> None:
        self._client.close()

    def p99_ms(self, seconds: float) -> float:
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            self._next += 1
            tokens = np.full(BATCH * LAYOUT.block_tokens, self._next, np.uint32)
            chain = self._ns.chain(tokens)
            start = time.perf_counter()
            done = self._ns.put(chain, self._source)
            taken.append((time.perf_counter() - start) * 1e3)
            self.refused += BATCH - done.stored
            self.blocks += done.stored
        return statistics.quantiles(taken, n=100)[98]


def rows(quick: bool) -> list[Row]:
    seconds = 0.5 if quick else 12.0
    with _node(files=True) as loaded, _node(files=False) as alone:
        with_files, without = Puts(loaded), Puts(alone)
        for each in (with_files, without):
            each.p99_ms(0.5)  # until memory is full
        row = measure(
            "put of 8 x 2 MiB, p99, files cannot keep up",
            unit="ms",
            ours=lambda: with_files.p99_ms(seconds),
            limit=lambda: without.p99_ms(seconds),
            limit_is="the same without files",
            target=ratio_at_most(2.0),
            rounds=1 if quick else 5,
        )
        for each in (with_files, without):
            each.close()
        if with_files.refused:
            raise SystemExit(f"{with_files.refused} of {with_files.blocks} blocks were refused")
        return [row]
