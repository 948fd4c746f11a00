"""A machine whose kernel refuses io_uring, as containers' does: the file tier goes by threads, and the node says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from tests.integration.nodes import SIZE, NodeProcess, blocks_of, layout, tokens
from tests.integration.patience import come_down

FILES = ("file.enabled=true", "file.bytes=32MiB", "file.slab_bytes=1MiB", "file.admission=always")

# The system call is refused for the process and its children, as seccomp profiles of container runtimes do it.
REFUSED = """
import ctypes, runpy, struct, sys
IO_URING_SETUP, ERRNO_EPERM, ALLOW = 425, 0x00050001, 0x7FFF0000
code = struct.pack("<HBBI", 0x20, 0, 0, 0) + struct.pack("<HBBI", 0x15, 0, 1, IO_URING_SETUP)
code += struct.pack("<HBBI", 0x06, 0, 0, ERRNO_EPERM) + struct.pack("<HBBI", 0x06, 0, 0, ALLOW)
kept = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(code) // 8, ctypes.addressof(kept)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()
sys.argv = ["kvstore", *sys.argv[1:]]
runpy.run_module("kvstore", run_name="__main__")
"""


class Refused(NodeProcess):
    def spawn(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", REFUSED, "node", *self._flags]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def medium(node: NodeProcess) -> str:
    import grpc

    from kvstore.wire import admin, services

    with grpc.insecure_channel(f"unix:{node.socket}.grpc") as channel:
        tiers = services.AdminStub(channel).Tiers(admin.TiersRequest(), timeout=10).tiers
    return next(str(tier.medium) for tier in tiers if tier.tier == 2)


def test_blocks_go_to_files_and_come_back_by_threads(tmp_path: Path) -> None:
    with Refused(tmp_path, *FILES, memory="8MiB") as node:
        assert medium(node) == "threads"
        with Client(node.address, deadline_s=20) as client:
            ns = client.namespace(layout())
            # Twice what memory has, and half of what files have: nothing is evicted.
            chains = [ns.chain(tokens(16, seed)) for seed in range(16)]
            come_down(node, ns, chains, 8 << 20)
            below = [chain for chain in chains if 2 in ns.lookup(chain).tiers]
            assert below
            for chain in below:
                there, into = ns.lookup(chain).blocks, np.zeros((16, SIZE), np.uint8)
                got = ns.get(chain, into, wait_s=5)
                assert got.blocks == there and np.array_equal(into[: got.blocks], blocks_of(chain[: got.blocks]))
        assert node.stop() == 0
        assert (
            "io_uring refused (io_uring_setup: Operation not permitted)" in node.said and "threads instead" in node.said
        )


def test_who_asks_for_io_uring_by_name_is_told_at_start(tmp_path: Path) -> None:
    process = Refused(tmp_path, *FILES, "file.engine=io_uring").spawn()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "file.engine = 'io_uring': this machine refuses it" in said
    assert "Operation not permitted; allowed here: threads" in said


@pytest.mark.parametrize("asked", ["auto", "io_uring"])
def test_where_it_is_allowed_it_is_used(tmp_path: Path, asked: str) -> None:
    from kvstore import native

    if reason := native.uring_refused():
        pytest.skip(f"io_uring is refused here: {reason}")
    with NodeProcess(tmp_path, *FILES, f"file.engine={asked}", memory="8MiB") as node:
        assert medium(node) == "io_uring"
