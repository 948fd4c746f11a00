"""By which ways a client's bytes take: a test that asks for `way` is run by each of them.

mapped: the node's memory itself. host: shared memory, granted. lanes: a Unix socket, for users who may not map. tcp.
"""

from __future__ import annotations

import pytest

from kvstore.transfers import device_settings
from tests.integration.device_rig import QUIESCE_S
from tests.integration.nodes import NodeProcess
from transfer.testing.device import SimulatedDevice, simulated_devices

WAYS = ("mapped", "host", "lanes", "tcp")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "way" in metafunc.fixturenames:
        ways = WAYS[:1] if metafunc.definition.get_closest_marker("only_mapped") else WAYS
        metafunc.parametrize("way", ways)


@pytest.fixture
def address(node: NodeProcess, way: str, monkeypatch: pytest.MonkeyPatch) -> str:
    if way == "lanes":  # as if the node were another user's: a Unix socket, and no memory
        monkeypatch.setattr("kvstore.client.ways._trusted_uids", set)
    if way == "tcp":  # as if it were another machine's
        monkeypatch.setattr("transfer.offers.Home.same_files", lambda *_: False)
    return node.address if way == "mapped" else str(node.facts["address"])


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> SimulatedDevice:
    """That every client of the test has. What it does not let go of is given up soon."""
    made = SimulatedDevice()
    monkeypatch.setattr("kvstore.transfers.QUIESCE_MAX_S", QUIESCE_S)
    monkeypatch.setattr("kvstore.transfers.devices_of", lambda config: simulated_devices(made, device_settings(config)))
    return made
