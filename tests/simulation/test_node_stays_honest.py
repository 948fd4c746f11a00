"""Does one node stay honest under faults? `--seeds 10000` for all of them; the default is a sample.

A failing seed and the commit are the bug report: the message ends with how to replay it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvstore.testing.simulation import run_seed

BATCHES = 4  # so that workers share them


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_seeds_hold(batch: int, request: pytest.FixtureRequest) -> None:
    seeds = request.config.getoption("--seeds")
    results = [run_seed(seed) for seed in range(batch, seeds, BATCHES)]
    for what in ("got", "put", "restarts", "quarantined", "evicted", "leased", "pulled", "unread"):
        assert sum(getattr(result, what) for result in results) > len(results) // 10, f"{what}: hardly ever happens"


TRACES = """
import hashlib
from kvstore.testing.simulation import Cast, Simulation
digest = hashlib.sha256()
for seed in range(40):
    simulation = Simulation(seed, Cast())
    simulation.run()
    digest.update("\\n".join(simulation.world.trace()).encode() + bytes(simulation.remains.memory.data))
print(digest.hexdigest())
"""


def test_a_seed_is_one_trace_in_every_process() -> None:
    """Else a failing seed is worth nothing."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", TRACES],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1", "77")
    }
    assert len(digests) == 1
