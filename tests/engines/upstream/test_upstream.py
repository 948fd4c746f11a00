"""vLLM's own tests of connectors hold for ours."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.engines.upstream.run import failed, run, table
from tests.engines.venvs import RECIPES, ready

WITH_OURS = 60  # tests that make a connector and were given ours; fewer: upstream's names have changed


@pytest.mark.skipif(not ready(RECIPES["vllm"]), reason="no vLLM here: make setup-engines")
def test_upstreams_suites_hold_for_our_connector() -> None:
    results = run()
    assert not failed(results), table(results)
    counted = Counter(result.ours for result in results if result.outcome == "passed")
    assert counted[True] >= WITH_OURS, "tests that were given our connector have gone missing:\n" + table(results)
