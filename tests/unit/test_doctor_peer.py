"""How `kvstore doctor --peer` tells what it saw, and what it takes as an address."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from kvstore.cli import main
from kvstore.doctor_peer import Look, told, where
from transfer.offers import Home

HERE = Home(b"b" * 16, 1, 2, 3, 10, 20, 1000)


def test_the_path_is_told_with_the_reason_for_each_faster_one() -> None:
    reasons = {"process": "another process", "host": "other host", "rdma": "no rdma here: no RDMA device"}
    found = Look(
        "10.0.0.2:7401", "user 5, on another host", "tcp", "tcp://10.0.0.2:9", reasons, 1.25, 64 << 10, 0.5, ""
    )
    assert found.well
    assert told(found) == [
        "peer     10.0.0.2:7401: user 5, on another host",
        "path     tcp, by tcp://10.0.0.2:9",
        "  not    process: another process",
        "  not    host: other host",
        "  not    rdma: no rdma here: no RDMA device",
        "connect  1.2 ms",
        "moved    64 KiB in 0.5 ms, and they are right",
    ]


def test_no_path_and_a_path_that_moves_nothing_are_faults() -> None:
    none = Look("unix:/x", fault="no path to the peer: tcp: refused")
    assert not none.well
    assert told(none) == ["peer     unix:/x", "path     none", "fault    no path to the peer: tcp: refused"]
    idle = Look("unix:/x", path="host", address="unix:/y", fault="connected; nothing came")
    assert not idle.well and told(idle)[-1] == "fault    connected; nothing came"
    assert not any(line.startswith("moved") for line in told(idle))


def test_where_a_peer_runs() -> None:
    assert where(replace(HERE, pid=7), HERE) == "pid 7 of user 1000, on this host"
    assert where(replace(HERE, mount_namespace=9), HERE) == "user 1000, in another container of this host"
    assert where(replace(HERE, boot=b"c" * 16), HERE) == "user 1000, on another host"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--peer", "nowhere"], "--peer nowhere: must be unix:PATH or HOST:PORT"),
        (["--peer", "none"], "--peer none: must be"),
        (["--peer", "unix:"], "--peer unix:: must be"),
        (["--peer", "h:70000"], "--peer h:70000: must be"),
        (["--token-file", "/t"], "give --peer"),
        (["--peer", "h:1", "--token-file", "/not/there"], "--token-file /not/there"),
        (["--peer", "unix:/x", "--set", "transfer.lanes=0"], "transfer.lanes = '0': must be"),
    ],
)
def test_a_wrong_command_line_is_refused(arguments: list[str], said: str) -> None:
    done = CliRunner().invoke(main, ["doctor", *arguments])
    assert done.exit_code == 2 and said in done.stderr and not done.stdout


def test_nobody_there_is_no_path(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["doctor", "--peer", f"unix:{tmp_path / 'nobody'}"])
    assert done.exit_code == 1
    assert "path     none" in done.stdout and "the node does not tell its offer" in done.stdout
