"""The RDMA transport beside perftest, in a machine with soft-RoCE (tests/rdma), and what a request costs our CPU.

The machine is emulated: its speeds mean nothing by themselves, their ratio does. Reads of 2 MiB, as many queue pairs
and as many requests out for either, by turns; `ours / limit` is the median of the pairs' ratios times the limit's
median. Rails are cut in the middle of batches. The CPU's rows are of this host (bench/rdma_cost.py).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence

import click

from bench import rdma_cost
from bench.harness import Row, at_most, no_target, ratio_at_least, row_of
from tests.native_build import ROOT
from tests.rdma.vm.bootfiles import Missing, boot_files
from tests.rdma.vm.machine import MachineFailed, Settings, run
from transfer.rdma import RdmaConfig

__all__ = ["rows"]

OUT = ROOT / "build" / "rdma-bench"
LIMIT_S = 600.0
MACHINE = "in an emulated machine, soft-RoCE"


def rows(quick: bool) -> list[Row]:
    """Those whose parts are here; what is missing is said on the console."""
    made: list[Row] = []
    try:
        made += in_the_machine(3 if quick else 9, 1 if quick else 5)
    except (Missing, MachineFailed) as error:
        click.echo(f"rdma: skipped what needs the machine: {error}", err=True)
    try:
        made += rdma_cost.rows(quick)
    except rdma_cost.Unavailable as error:
        click.echo(f"rdma: skipped our CPU for a request: {error}", err=True)
    return made


def in_the_machine(pairs: int, cuts: int) -> list[Row]:
    """Raises Missing, MachineFailed."""
    load = os.getloadavg()[0]
    figures = OUT / "figures.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.rdma_inside", str(pairs), str(cuts), str(figures)]
    ended = run(command, boot_files(), Settings(run_max_s=LIMIT_S), out=OUT)
    if ended.status or not figures.exists():
        raise MachineFailed(f"{' '.join(command[1:3])} ended with status {ended.status}")
    return rows_of(json.loads(figures.read_text()), load)


def rows_of(taken: Mapping[str, Sequence[float]], load: float) -> list[Row]:
    qps = RdmaConfig().qps
    ratios = [ours / theirs for ours, theirs in zip(taken["ours"], taken["ib_read_bw"], strict=True)]
    limit = statistics.median(taken["ib_read_bw"])
    made = [
        row_of(
            f"rdma read, 2 MiB x 32 over {qps} queue pairs, {MACHINE}",
            unit="MiB/s",
            ours=statistics.median(ratios) * limit,
            limit=limit,
            limit_is=f"ib_read_bw -q {qps}",
            target=ratio_at_least(0.9),
            taken=ratios,
            steady=ratios,
            load=load,
        )
    ]
    for kind, what, target in (
        ("link", "the far end's link is down", at_most(0.5, "s")),
        ("silent", "packets are lost, both links stay up", no_target()),
    ):
        made.append(
            row_of(
                f"batch moved to the other rail, {what}, {MACHINE}",
                unit="s",
                ours=statistics.median(taken[kind]),
                limit=None,
                limit_is="",
                target=target,
                taken=taken[kind],
                steady=taken[kind],
                load=load,
            )
        )
    return made
