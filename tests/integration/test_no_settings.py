"""`kvstore node` as it is typed first: without a file, a flag or a variable, on a machine that has little.

In namespaces of its own, so that its default places and ports are nobody else's: /var/lib and shared memory of 64 MiB
each, and a loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from tests.integration.nodes import START_MAX_S, STOP_MAX_S, blocks_of, layout, read_line, tokens

ROOT = Path(__file__).resolve().parents[2]
DISK = 64 << 20
MOUNTS = "mount -t tmpfs -o size=64m tmpfs /dev/shm; mount -t tmpfs -o size=64m tmpfs /var/lib"
# Loopback of a new network namespace is down: SIOCSIFFLAGS with IFF_UP.
LOOPBACK = "import fcntl,socket,struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 1))"
IN_NAMESPACES = ["unshare", "--map-root-user", "--mount", "--net", "sh", "-ec"]
ENVIRON = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("KVSTORE_", "XDG_"))},
    "PYTHONPATH": str(ROOT),
}


def entered(command: str) -> list[str]:
    """A command in fresh namespaces; where there are none, it is skipped and says what the machine lacks."""
    return [*IN_NAMESPACES, f'{MOUNTS}; "{sys.executable}" -c "{LOOPBACK}"; {command}']


@pytest.fixture
def node() -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1): nothing can be mounted for one process alone")
    tried = subprocess.run(entered("true"), capture_output=True, text=True, env=ENVIRON, check=False)
    if tried.returncode:
        pytest.skip(f"namespaces of one's own are refused here: {tried.stderr.strip()}")
    command = entered(f'exec "{sys.executable}" -m kvstore node')
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRON, cwd=ROOT
    ) as process:
        try:
            told = [read_line(process, START_MAX_S)]
            while not told[-1].startswith("  try "):
                told.append(read_line(process, START_MAX_S))
            yield process, told
        finally:
            process.kill()


def test_it_serves_by_its_defaults(node: tuple[subprocess.Popen[str], list[str]]) -> None:
    process, told = node
    heads = [line[:26].split() for line in told]
    assert [words[0] for words in heads[1:5]] == ["memory", "file", "object", "data"]
    addresses = {line[11:25].strip(): line[27:].strip() for line in told[5:-1]}
    socket = "/var/lib/kvstore/kvstore.sock"
    assert addresses["clients here"] == f"unix:{socket}"
    assert addresses["store-admin"] == f"unix:{socket}.grpc"
    assert addresses["clients by TCP"] == "127.0.0.1:7400"
    assert addresses["gRPC"] == "127.0.0.1:7401"
    assert addresses["metrics"] == "http://127.0.0.1:9464/metrics"
    assert f'kvstore.Client("unix:{socket}")' in told[-1]
    seen = f"unix:/proc/{process.pid}/root{socket}"
    with Client(seen, deadline_s=30) as client:
        ns = client.namespace(layout())
        chain = ns.chain(tokens(8))
        source = blocks_of(chain)
        assert ns.put(chain, source).stored == 8
        into = np.empty_like(source)
        assert ns.get(chain, into).blocks == 8
        assert np.array_equal(into, source)
    command = [sys.executable, "-m", "kvstore.admin", "--json", "--address", seen, "tiers"]
    asked = subprocess.run(command, capture_output=True, text=True, env=ENVIRON, timeout=60, check=True)
    memory, files, objects = json.loads(asked.stdout)["sum"]
    assert memory["blocks"] == 8
    # Half of what is free, less what indexes and other files take; whole slabs.
    assert DISK * 0.4 < memory["capacity_bytes"] < memory["asked_bytes"] <= DISK // 2
    assert DISK * 0.4 < files["capacity_bytes"] <= files["asked_bytes"] <= DISK // 2
    assert objects["media"] == ["file:///var/lib/kvstore/objects"]
    assert 0 < objects["capacity_bytes"] < DISK // 4
    process.send_signal(signal.SIGINT)  # Ctrl-C
    assert process.wait(STOP_MAX_S) == 0
    assert process.stderr is not None and "Traceback" not in process.stderr.read()
