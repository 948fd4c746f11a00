"""Does a cluster's directory stay right under faults? `--seeds 10000` for all of them; the default is a sample.

And would the simulation notice? Each twin is wrong in one thing, and must be caught.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kvstore.testing import cluster_twins as twins
from kvstore.testing.cluster_simulation import ClusterCast, run_seed
from kvstore.testing.models.cluster import Believing
from kvstore.testing.world import Broken

BATCHES = 4  # so that workers share them
SHARE = 40  # of the seeds of one node's simulation: one here takes as long as many there, and one worker plays them all
SEEDS_MAX = 150

CAUGHT = {
    "sequence ignored": (ClusterCast(twins.IgnoresSequence), "an older batch was taken"),
    "incarnation ignored": (ClusterCast(twins.IgnoresIncarnation), "an older incarnation was believed"),
    "no digest exchange": (ClusterCast(twins.NoDigests), ("at the end", "directory and nodes disagree")),
    "homes moved at once": (ClusterCast(twins.HomesAtOnce), "not found"),
    "withdrawals lost": (
        ClusterCast(twins.ForgetsWithdrawals),
        ("named what it has not", "at the end", "directory and nodes disagree"),
    ),
    "a sequence given twice": (ClusterCast(twins.TriesAnew), ("at the end", "directory and nodes disagree")),
    "one home only": (ClusterCast(twins.NoSecondHome), ("not found", "at the end", "directory and nodes disagree")),
    "a new home answers at once": (ClusterCast(twins.AnswersAtOnce), "not found"),
    "the dead are named": (ClusterCast(twins.NamesTheDead), "named what it has not"),
    "a lookup waits for all": (ClusterCast(twins.WaitsForAll), "hang"),
    "a claim is believed": (ClusterCast(client=Believing), "a claim was believed"),
    "namespaces are mixed up": (ClusterCast(node=twins.ServesByKey), "wrong bytes"),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(BATCHES))
def test_seeds_hold(batch: int, request: pytest.FixtureRequest) -> None:
    seeds = request.config.getoption("--seeds") // SHARE
    results = [run_seed(seed) for seed in range(batch, seeds, BATCHES)]
    for what in ("calm", "got", "missed", "restarts", "moved", "hedged", "lost", "forgotten", "agreed"):
        assert sum(getattr(result, what) for result in results) > len(results) // 20, f"{what}: hardly ever happens"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", sorted(CAUGHT))
def test_a_faulty_twin_is_caught(name: str) -> None:
    cast, how = CAUGHT[name]
    for seed in range(SEEDS_MAX):
        try:
            run_seed(seed, cast)
        except Broken as broken:
            what = str(broken).splitlines()[0]
            assert what.startswith(how), f"seed {seed}: {what}"
            return
    pytest.fail(f"not caught in {SEEDS_MAX} seeds")


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
