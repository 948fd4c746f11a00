"""Does a cluster's directory stay right under faults? One half of the seeds; `test_cluster_odd.py` plays the other.
`--seeds 10000` is what CI plays, the default is a sample.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.cluster_seeds import BATCHES, play


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(0, BATCHES, 2))
def test_seeds_hold(batch: int, request: pytest.FixtureRequest) -> None:
    play(batch, request)


TRACES = """
import hashlib
from kvstore.testing.cluster_simulation import ClusterCast, ClusterSimulation
digest = hashlib.sha256()
for seed in range(4):
    simulation = ClusterSimulation(seed, ClusterCast())
    digest.update(str(simulation.run()).encode() + "\\n".join(simulation.world.trace()).encode())
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
        for hash_seed in ("0", "77")
    }
    assert len(digests) == 1
