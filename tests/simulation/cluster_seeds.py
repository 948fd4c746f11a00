"""Seeds of the simulated cluster, in batches: workers share files, and each of two files plays half of them."""

from __future__ import annotations

import pytest

from kvstore.testing.cluster_simulation import run_seed

BATCHES = 8
SHARE = 16  # of the seeds of one node's simulation: one here takes as long as many there
ENOUGH = 50  # seeds in which everything must have happened

HAPPENS = ("calm", "got", "missed", "restarts", "moved", "hedged", "lost", "forgotten", "agreed")


def play(batch: int, request: pytest.FixtureRequest) -> None:
    seeds = max(BATCHES, request.config.getoption("--seeds") // SHARE)
    results = [run_seed(seed) for seed in range(batch, seeds, BATCHES)]
    if len(results) < ENOUGH:
        return
    for what in HAPPENS:
        assert sum(getattr(result, what) for result in results) > len(results) // 20, f"{what}: hardly ever happens"
