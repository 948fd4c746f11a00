"""These tests need RDMA devices, and two rails of them: `make test-rdma` brings both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rdma.rails import SYSFS, Rail

HERE = Path(__file__).parent
WHY = f"no RDMA device under {SYSFS}: make test-rdma runs this in a machine that has some"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SYSFS.is_dir() and any(SYSFS.iterdir()):
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture
def rail() -> Rail:
    return Rail(0)


@pytest.fixture
def other_rail() -> Rail:
    return Rail(1)
