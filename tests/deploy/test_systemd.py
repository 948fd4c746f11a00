"""The unit: systemd takes it, its command is ours, and the node notifies as the unit says."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from kvstore import readiness
from kvstore.cli import EXIT_NOT_JOINED, EXIT_SETTINGS, STOP_MAX_S
from tests.deploy.shipped import DEPLOY, parsed
from tests.integration.nodes import START_MAX_S, NodeProcess

UNIT = DEPLOY / "systemd/kvstore.service"
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze (apt-get install systemd)"
)
EXPOSURE_MAX = 25  # in tenths, as systemd-analyze counts; a unit that says nothing has 96


def unit() -> configparser.SectionProxy:
    parser = configparser.RawConfigParser(strict=True)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser["Service"]


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """With a program that exists: the store lies elsewhere here."""
    found = tmp_path / UNIT.name
    text = UNIT.read_text()
    assert "/opt/kvstore/bin/kvstore" in text
    found.write_text(text.replace("/opt/kvstore/bin/kvstore", "/bin/true"))
    return found


@needs_systemd
def test_systemd_takes_it(installed: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", installed], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@needs_systemd
def test_it_is_hardened(installed: Path) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={EXPOSURE_MAX}", installed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_command_is_one_of_ours() -> None:
    assert parsed(unit()["ExecStart"].split())["path"] == Path("/etc/kvstore/kvstore.toml")


def test_it_waits_longer_than_a_node_takes_to_stop() -> None:
    assert int(unit()["TimeoutStopSec"]) > STOP_MAX_S


def test_it_is_started_again_where_that_may_help() -> None:
    assert unit()["Restart"] == "on-failure"
    assert unit()["RestartPreventExitStatus"].split() == [str(EXIT_SETTINGS)] != [str(EXIT_NOT_JOINED)]


def test_it_hides_no_process_and_no_user_from_the_node() -> None:
    """Engines whose process or user it cannot see get no mapped memory."""
    assert not {"ProtectProc", "ProcSubset", "PrivateUsers", "PrivateIPC"} & unit().keys()


@pytest.mark.skipif(shutil.which("systemd-sysusers") is None, reason="no systemd-sysusers (apt-get install systemd)")
@pytest.mark.skipif(os.geteuid() != 0, reason="systemd-sysusers must be root, in a folder of its own too")
def test_the_user_is_a_system_user(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = ["systemd-sysusers", f"--root={tmp_path}", DEPLOY / "systemd/kvstore.sysusers.conf"]
    subprocess.run(command, check=True, capture_output=True)
    name, _, uid, *_ = (tmp_path / "etc/passwd").read_text().split(":")
    assert name == unit()["User"] and int(uid) < 1000


def test_a_node_says_when_it_is_ready_and_when_it_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unit()["Type"] == "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(START_MAX_S)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with NodeProcess(tmp_path / "home", memory="4MiB") as node:
            assert listening.recv(100) == b"READY=1"
            assert Path(node.facts["socket"]).is_socket()
            assert node.process is not None
            node.process.send_signal(signal.SIGTERM)
            assert listening.recv(100) == b"STOPPING=1"
            assert node.process.wait(20) == 0


def test_abstract_sockets_and_nobody_who_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"kvstore-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(10)
        readiness.notify(readiness.READY)
        assert listening.recv(100) == b"READY=1"
    readiness.notify(readiness.READY)  # a node runs also when nobody hears it
    monkeypatch.delenv("NOTIFY_SOCKET")
    readiness.notify(readiness.READY)
