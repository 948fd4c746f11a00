"""Which way imports go (contracts in .importlinter), and that the light parts stay light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_import_contracts() -> None:
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=110)
    assert done.returncode == 0, done.stdout


def test_the_client_loads_no_framework_and_no_server() -> None:
    """What an engine pays for importing us: no torch, no gRPC until it asks for a TCP address, nothing of a node."""
    code = (
        "import sys, kvstore; kvstore.Client; "
        "bad = {'torch', 'grpc', 'lmdb', 'obstore', 'prometheus_client', 'kvstore.node'} & set(sys.modules); "
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
