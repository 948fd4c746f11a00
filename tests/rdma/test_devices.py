"""What the machine has: devices, addresses, and a pyverbs that fits."""

from __future__ import annotations

from pathlib import Path

from kvstore import doctor
from kvstore.config import Config, NodeConfig
from tests.rdma.rails import Rail


def test_both_ends_of_two_rails_are_there() -> None:
    from pyverbs.device import Context, get_device_list

    rails = [Rail(0), Rail(1)]
    expected = {device for rail in rails for device in (rail.near, rail.far)}
    assert {device.name.decode() for device in get_device_list()} == expected
    for rail in rails:
        for device in (rail.near, rail.far):
            assert rail.active(device)
            index, gid = rail.gid(device)
            with Context(name=device) as context:
                assert str(context.query_gid(1, index).gid) == gid
                assert context.query_port(1).active_mtu == 5  # 4096 bytes


def test_the_doctor_finds_nothing_wrong(tmp_path: Path) -> None:
    found = {each.subject: each for each in doctor.examine(Config(node=NodeConfig(data_dir=tmp_path)))}
    for subject in ("RDMA", "pyverbs"):
        assert found[subject].state == "ok", found[subject]
    assert "rxe_a0 port 1 ACTIVE" in found["RDMA"].found
