"""The other half of the seeds of `test_cluster.py`, for another worker."""

from __future__ import annotations

import pytest

from tests.simulation.cluster_seeds import BATCHES, play


@pytest.mark.timeout(900)
@pytest.mark.parametrize("batch", range(1, BATCHES, 2))
def test_odd_seeds_hold(batch: int, request: pytest.FixtureRequest) -> None:
    play(batch, request)
