"""The replay of a published trace against published figures, where the trace is at hand (TRACES, or --traces
FOLDER).

Not among what CI must run: the trace is other people's and megabytes long. That the replay is exact is held without it,
in tests/unit/bench/test_replay_exact.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.replay import CONVERSATION, Trace, belady, infinite, load, replay

CAPACITIES = (1_000, 3_000, 10_000, 30_000, 100_000)
# Percent of references that hit, partial last blocks counted, by another simulator of the same rules.
PUBLISHED = {"optimum": (19.07, 29.45, 36.64, 36.64, 36.64), "leaf_lru": (4.45, 6.53, 21.16, 32.57, 36.37)}


@pytest.fixture
def conversation(request: pytest.FixtureRequest) -> Trace:
    folder = request.config.getoption("--traces")
    if folder is None:
        pytest.skip(f"no traces: TRACES or --traces names a folder with {CONVERSATION}")
    path = Path(folder) / CONVERSATION
    if not path.exists():
        pytest.skip(f"no trace: {path} is not there")
    return load(path)


def test_the_published_trace_gives_the_published_figures(conversation: Trace) -> None:
    assert (len(conversation.requests), conversation.references, conversation.unique) == (12_031, 288_500, 182_790)
    assert 100 * infinite(conversation) == pytest.approx(36.64, abs=0.005)
    for i, capacity in enumerate(CAPACITIES):
        assert 100 * belady(conversation, capacity) == pytest.approx(PUBLISHED["optimum"][i], abs=0.5)
        assert 100 * replay(conversation, "leaf_lru", capacity) == pytest.approx(PUBLISHED["leaf_lru"][i], abs=0.5)
