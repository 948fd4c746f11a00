"""What a grant costs as RDMA devices know it: a memory region of exactly its ranges, as ours, or type 2 windows over
memory that is registered once; and what either lets a peer touch that was not granted, or is not any more.

In a machine with soft-RoCE (tests/rdma), by bare verbs (rdma_grants.cpp). The machine is emulated, so times mean little
but beside each other; what is refused is soft-RoCE's answer, and a device's may differ.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness import Row, Skipped, no_target, row_of
from tests.native_build import ROOT
from tests.rdma.vm.bootfiles import Missing, boot_files
from tests.rdma.vm.machine import MachineFailed, Settings, run

__all__ = ["rows"]

SOURCE = Path(__file__).with_suffix(".cpp")
OUT = ROOT / "build" / "rdma-bench"
LIMIT_S = 600.0
MACHINE = "in an emulated machine, soft-RoCE"
WINDOWS = "type 2 windows"


def rows(quick: bool) -> list[Row]:
    """Raises Skipped."""
    load = os.getloadavg()[0]
    figures = OUT / "grants.json"
    try:
        library = built()
        figures.unlink(missing_ok=True)
        rounds, cuts = (5, 10) if quick else (21, 200)
        command = [sys.executable, "-m", "bench.rdma_grants_inside", str(library), str(rounds), str(cuts), str(figures)]
        ended = run(command, boot_files(), Settings(run_max_s=LIMIT_S), out=OUT)
    except (Missing, MachineFailed) as error:
        raise Skipped(str(error)) from error
    if ended.status or not figures.exists():
        raise Skipped(f"bench.rdma_grants_inside ended with status {ended.status}")
    return rows_of(json.loads(figures.read_text()), load)


def built() -> Path:
    """Raises Skipped."""
    OUT.mkdir(parents=True, exist_ok=True)
    library = OUT / "librdma_grants.so"
    compiler = [os.environ.get("CXX", "c++"), "-O3", "-std=c++20", "-shared", "-fPIC", "-pthread"]
    command = [*compiler, str(SOURCE), "-o", str(library), "-libverbs"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise Skipped(f"{done.stderr.strip().splitlines()[0]} (apt-get install libibverbs-dev)")
    return library


def rows_of(taken: Mapping[str, Any], load: float) -> list[Row]:
    def row(name: str, unit: str, ours: float, others: float, each: Sequence[float]) -> Row:
        return row_of(
            f"{name}, {MACHINE}",
            unit=unit,
            ours=ours,
            limit=None,
            limit_is="",
            target=no_target(),
            taken=each,
            steady=each,
            load=load,
            peers={WINDOWS: others},
        )

    made = []
    for name, us in taken["costs"].items():
        regions, windows = (statistics.median(us[way]) for way in ("regions", "windows"))
        made.append(row(f"grant and revoke {name}, exact regions", "us", regions, windows, us["regions"]))
    for name in ("outside", "another connection's", "taken back"):
        regions, windows = (float(taken["refused"][way][name]) for way in ("regions", "windows"))
        made.append(row(f"a read of what is {name} is refused (1: yes)", "", regions, windows, []))
    late = {way: [float(reads > 0) for reads in cuts] for way, cuts in taken["late"].items()}
    if any(reads < 0 for cuts in taken["late"].values() for reads in cuts):
        raise Skipped("a grant could not be made or taken back")
    regions, windows = (sum(late[way]) for way in ("regions", "windows"))
    count = len(late["regions"])
    made.append(row(f"revoked under reads, {count} times: bytes still read afterwards", "times", regions, windows, []))
    return made
