"""`HYPOTHESIS_PROFILE=night pytest tests/model` looks longer. Only a hang may end it: shrinking takes minutes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
SHRINK_S = 600
NIGHT_S = 3_600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    limit = SHRINK_S if settings().max_examples < 1_000 else NIGHT_S
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(limit))
