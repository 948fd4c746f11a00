"""The other half of the seeds of `test_cluster.py`, for another worker."""

from __future__ import annotations

import pytest

from tests.simulation.cluster_seeds import play_half


@pytest.mark.timeout(900)
def test_odd_seeds_hold(request: pytest.FixtureRequest) -> None:
    play_half(1, request)
