"""A node whose disk hangs: it answers what it can, and a stop ends, says why, and loses nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from tests.integration.nodes import SIZE, STOP_MAX_S, NodeProcess, blocks_of, layout, tokens
from tests.integration.patience import come_down

FILE, CHAINS, BLOCKS = 2, 6, 16
SETS = ("file.enabled=true", "file.bytes=32MiB", "file.slab_bytes=2MiB", "file.admission=always", "file.engine=threads")
SHORTER = (
    "from kvstore import cli; import kvstore.node.node as node; cli.STOP_MAX_S, node.CLOSE_MAX_S = 3.0, 0.5; cli.main()"
)


class Hanging(NodeProcess):
    """Its disk hangs from `hang()` on. Its deadlines are shorter, so that a test need not wait for them."""

    def __init__(self, home: Path) -> None:
        super().__init__(home, *SETS, memory="3MiB")
        self.flag = home / "hangs"
        self.library = home / "hang.so"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler")
        source = Path(__file__).with_name("hang.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(self.library), str(source), "-ldl"], check=True)

    def spawn(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SHORTER, *self.command()[3:]]
        env = {**os.environ, "LD_PRELOAD": str(self.library), "HANG_WHILE": str(self.flag)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def came(client: Client, seed: int, wait_s: float) -> int:
    ns = client.namespace(layout())
    chain = ns.chain(tokens(BLOCKS, seed))
    into = np.zeros((BLOCKS, SIZE), np.uint8)
    got = ns.get(chain, into, wait_s=wait_s)
    np.testing.assert_array_equal(into[: got.blocks], blocks_of(chain[: got.blocks]))
    return got.blocks


def test_a_stop_ends_although_the_disk_does_not_answer(tmp_path: Path) -> None:
    with Hanging(tmp_path) as node:
        with Client(node.address) as client:
            ns = client.namespace(layout())
            # More than memory has, so that what was first is in files alone.
            come_down(node, ns, [ns.chain(tokens(BLOCKS, seed)) for seed in range(2 * CHAINS)], 3 << 20)
            assert ns.lookup(ns.chain(tokens(BLOCKS, 0))).tiers.tolist() == [FILE] * BLOCKS
            node.flag.touch()
            assert came(client, 2 * CHAINS - 1, 0.2) > 0, "what needs no disk is answered"
            assert min(came(client, seed, 0.5) for seed in range(CHAINS)) < BLOCKS, "the disk did not answer"
        assert node.process is not None
        node.process.send_signal(signal.SIGTERM)
        code = node.process.wait(STOP_MAX_S)
        assert code == 1
        assert node.process.stderr is not None and node.process.stdout is not None
        said = node.process.stderr.read()
        assert "the device does not answer" in said and "Timeout" in said
        node.process.stderr.close()
        node.process.stdout.close()
        node.flag.unlink()
        node.start()
        with Client(node.address) as client:
            assert sum(came(client, seed, 5.0) for seed in range(2 * CHAINS)) > BLOCKS
