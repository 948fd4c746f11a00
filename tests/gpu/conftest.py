"""Tests that move device memory: `python -m pytest tests/gpu`. Without a CUDA GPU and cupy they are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.conftest import WAYS, address
from transfer.devices.cupy_bridge import unavailable

__all__ = ["address"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    why = unavailable() if ours else ""
    for item in ours:
        item.add_marker(pytest.mark.gpu)
        if why:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """As in tests/integration: a test that asks for `address` is run by each."""
    return str(request.param)
