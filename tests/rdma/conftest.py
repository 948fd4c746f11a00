"""These tests need two rails of RDMA devices (rails.py): `make test-rdma` brings them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rdma.rails import SYSFS, Rail

HERE = Path(__file__).parent
RAILS = (Rail(0), Rail(1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    absent = [name for rail in RAILS for name in (rail.near, rail.far) if not (SYSFS / name).exists()]
    if not absent:
        return
    why = f"no {', '.join(absent)} under {SYSFS}: make test-rdma runs this in a machine that has them"
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture
def rail() -> Rail:
    return RAILS[0]


@pytest.fixture
def other_rail() -> Rail:
    return RAILS[1]
