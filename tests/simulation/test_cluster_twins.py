"""Would the simulation of a cluster notice? Each twin is wrong in one thing, and must be caught."""

from __future__ import annotations

import pytest

from kvstore.testing import cluster_twins as twins
from kvstore.testing.cluster_simulation import ClusterCast, run_seed
from kvstore.testing.models.cluster import Believing
from kvstore.testing.world import Broken

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
