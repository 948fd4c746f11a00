"""Addresses that cannot be had: one line that names the setting, the address and the reason, and an exit code."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kvstore import Client
from kvstore.errors import Unavailable
from tests.integration.nodes import START_MAX_S, NodeProcess, layout

TAKEN, NOT_OURS = "Address already in use", "Cannot assign requested address"


FLAGS = {"address": "node", "grpc": "grpc", "metrics": "metrics"}  # and the section that each is of


def said(folder: Path, door: str, address: str) -> list[str]:
    """What a node that does not start says, but for the warning that it would be insecure."""
    command = [sys.executable, "-m", "kvstore", "node", "--data-dir", str(folder / "data"), "--memory", "8MiB"]
    command += ["--socket", str(folder / "s"), "--insecure"]
    for name, setting in FLAGS.items():
        command += [f"--{name}", address if setting == door else "none"]
    command += ["--set", "file.enabled=false", "--set", "object.url=none", "--set", "memory.keep=false"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_MAX_S, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert not (folder / "s").exists() and not (folder / "s.grpc").exists()
    return [line for line in done.stderr.splitlines() if "INSECURE: " not in line]


@pytest.mark.parametrize("door", FLAGS.values())
def test_a_port_that_somebody_has(tmp_path: Path, door: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        (line,) = said(tmp_path, door, address)
        assert line.startswith(f"kvstore node: {door}.address = {address!r}: ") and TAKEN in line


@pytest.mark.parametrize("door", FLAGS.values())
@pytest.mark.parametrize(
    ("address", "reason"),
    [("192.0.2.1:7401", NOT_OURS), ("no-such-host.invalid:7401", "ame"), ("256.256.256.256:1", "ame")],
)
def test_an_address_that_is_not_this_machine_s(tmp_path: Path, door: str, address: str, reason: str) -> None:
    (line,) = said(tmp_path, door, address)
    assert line.startswith(f"kvstore node: {door}.address = {address!r}: ") and reason in line


@pytest.mark.parametrize("address", ["[::1:5", "::1]:5", "nowhere", "127.0.0.1:70000", ":", "[]:5"])
def test_what_is_no_address(tmp_path: Path, address: str) -> None:
    (line,) = said(tmp_path, "grpc", address)
    assert line.startswith(f"kvstore node: --grpc: grpc.address = {address!r}: must be HOST:PORT, or none")


def test_a_client_at_another_door_of_the_node_is_told_so(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, grpc="127.0.0.1:0") as node:
        for door in (each for each in node.facts["addresses"] if ".grpc" in each or each.startswith("127.0.0.1:")):
            with Client(door) as client, pytest.raises(Unavailable, match="gRPC and metrics have other addresses"):
                client.namespace(layout())
