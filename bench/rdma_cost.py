"""What a request over RDMA costs us in CPU time: the whole way from a batch to its answer, over a provider that has no
kernel and no device and completes at once (native/tests/stub_verbs.cpp). The devices' own part, and a real provider's,
is not in it.

The engine's thread and Python's part (plan, job, submission, events) are both counted, as CPU time of this process.
"""

from __future__ import annotations

import ctypes
import os
import select
import statistics
import subprocess
import time
from pathlib import Path

import numpy as np

from bench.harness import Row, at_most, no_target, row_of
from transfer.batch import Batch
from transfer.native import RdmaEngine, RdmaJob, keep_forever, rdma_missing
from transfer.plan import plan
from transfer.rdma.config import RdmaConfig

__all__ = ["Unavailable", "rows"]

STUB = Path(__file__).parent.parent / "native/tests/stub_verbs.cpp"
BUILD = STUB.parents[2] / "build" / "bench"
KIB, MIB = 1 << 10, 1 << 20
BATCHES_OUT = 4  # in motion together
PEER = 1
FINISHED = 1  # RdmaEngine.events


class Unavailable(Exception):
    """This machine has no libibverbs, or no headers of it; the message says what."""


def stub() -> ctypes.CDLL:
    if why := rdma_missing():
        raise Unavailable(why)
    BUILD.mkdir(parents=True, exist_ok=True)
    library = BUILD / "libstub_verbs.so"
    command = [os.environ.get("CXX", "c++"), "-O3", "-std=c++20", "-shared", "-fPIC", str(STUB)]
    done = subprocess.run([*command, "-o", str(library)], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise Unavailable(f"{done.stderr.strip().splitlines()[0]} (apt-get install libibverbs-dev)")
    found = ctypes.CDLL(str(library))
    for function in (found.stub_new, found.stub_queue, found.stub_pair):
        function.restype = ctypes.c_void_p
    return found


class Rig:
    """The engine with the transport's settings and lanes; batches of `requests` extents of one size."""

    def __init__(self, library: ctypes.CDLL, length: int, requests: int) -> None:
        config = RdmaConfig()
        made = ctypes.c_void_p(library.stub_new(config.qps))
        self.engine = RdmaEngine(config.window, config.tries_max, config.linger_s, config.spin_s)
        keep_forever(self.engine)  # its end would move queue pairs that libibverbs has not made
        self.engine.add_device(library.stub_queue(made))
        for lane in range(config.qps):
            self.engine.add_lane(lane + 1, PEER, library.stub_pair(made, lane), 0, 0)
        table = np.zeros((requests, 5), dtype=np.int64)
        # Every other place, so that no two extents are one request.
        table[:, 1] = table[:, 3] = np.arange(requests) * 2 * length
        table[:, 4] = length
        self.table, self.span, self.slice_bytes = table, 2 * length * requests, config.slice_bytes
        self.token = 0
        self.ready = select.poll()
        self.ready.register(self.engine.fd, select.POLLIN)

    def submit(self) -> None:
        cut = plan(Batch(self.table), slice_bytes=self.slice_bytes)
        windows = np.zeros(len(cut.rows), dtype=np.int64)
        self.token += 1
        # The places are nowhere: nobody touches them.
        job = RdmaJob(
            self.token,
            False,
            [(1 << 40, self.span, True)],
            [[1]],
            [1],  # near the one device
            [(1, 1 << 41, [1])],
            windows,
            cut.rows,
            cut.slices,
            cut.parts,
        )
        self.engine.submit(job, PEER)

    def run(self, batches: int) -> None:
        submitted = finished = 0
        while finished < batches:
            while submitted < batches and submitted - finished < BATCHES_OUT:
                self.submit()
                submitted += 1
            self.ready.poll()
            finished += sum(kind == FINISHED for kind, _, _ in self.engine.events())

    def us(self, batches: int) -> tuple[float, float]:
        """CPU time of a request: of all, and of the engine's thread."""
        requests = batches * len(self.table)
        before, total, mine = self.engine.stats()[0], time.process_time(), time.thread_time()
        self.run(batches)
        total, mine = time.process_time() - total, time.thread_time() - mine
        if self.engine.stats()[0] - before != requests:
            raise RuntimeError("a batch was not the requests that it was meant to be")
        return total * 1e6 / requests, (total - mine) * 1e6 / requests


def rows(quick: bool) -> list[Row]:
    """Raises Unavailable."""
    library = stub()
    made = []
    for name, length, requests, target in (
        ("2 MiB slices, batches of 1,000", 2 * MIB, 1_000, at_most(0.5, "us")),
        ("64 KiB extents, batches of 1,000", 64 * KIB, 1_000, at_most(0.5, "us")),
        ("2 MiB slices, batches of 32", 2 * MIB, 32, no_target()),
    ):
        rig = Rig(library, length, requests)
        rounds, batches = (3, 20) if quick else (11, 200_000 // requests)
        load = os.getloadavg()[0]
        taken = [rig.us(batches) for _ in range(rounds + 1)][1:]
        both, engine = ([one[i] for one in taken] for i in range(2))
        made.append(
            row_of(
                f"our CPU for an RDMA request, {name}",
                unit="us",
                ours=statistics.median(both),
                limit=None,
                limit_is="",
                target=target,
                taken=both,
                steady=both,
                load=load,
                peers={"of that the engine's thread": statistics.median(engine)},
            )
        )
    return made
