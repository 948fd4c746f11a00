"""The machines themselves: cables do what they are told, nothing of the host is touched, and nothing is left over."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.cluster_rig.links import Machine, Network, ip, needs_network

pytestmark = needs_network

DYING = """
import os, signal, subprocess
from tests.cluster_rig.links import Network
network = Network("a")
asleep = subprocess.Popen(network["a"].command(["sleep", "600"]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(network["a"].space, asleep.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def three() -> Iterator[Network]:
    with Network("a", "b", "c") as network:
        yield network


def listening(machine: Machine) -> socket.socket:
    return machine.do(lambda: socket.create_server((machine.address, 5000)))


def reached(machine: Machine, other: Machine, within_s: float = 0.3) -> bool:
    def connect() -> bool:
        try:
            socket.create_connection((other.address, 5000), within_s).close()
        except TimeoutError:  # and nothing else: its packets vanish
            return False
        return True

    return machine.do(connect)


def test_cuts_are_of_two_machines_and_of_one_way(three: Network) -> None:
    a, b, c = (three[name] for name in "abc")
    with listening(b):
        assert reached(a, b, 5.0) and reached(c, b, 5.0)
        for cut in (lambda: b.cut_from(a), lambda: a.cut_from(b), lambda: three.split("a", "bc"), b.unplug):
            cut()
            assert not reached(a, b) and (cut == b.unplug or reached(c, b, 5.0))
            three.mend()
            assert reached(a, b, 5.0) and reached(c, b, 5.0)


def test_what_is_lost_is_a_share(three: Network) -> None:
    sender, receiver = three["a"], three["b"]
    with receiver.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as into:
        into.bind((receiver.address, 5000))
        into.settimeout(0.2)
        receiver.lossy(0.5)
        with sender.do(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as out:
            arrived = 0
            for _ in range(200):
                out.sendto(b"x", (receiver.address, 5000))
            try:
                while into.recv(1):
                    arrived += 1
            except TimeoutError:
                pass
    assert 50 < arrived < 150


def test_what_a_killed_run_has_left_goes_with_the_next_and_the_host_has_no_new_interface() -> None:
    before = ip("-o", "link")
    done = subprocess.run([sys.executable, "-c", DYING], capture_output=True, text=True, timeout=60, check=False)
    space, pid = done.stdout.split()
    assert space in ip("netns", "list") and int(pid) in map(int, ip("netns", "pids", space).split())
    with Network("b") as network:
        assert space not in ip("netns", "list") and ip("-o", "link") == before
        mine = network["b"].space
    assert mine not in ip("netns", "list") and ip("-o", "link") == before
