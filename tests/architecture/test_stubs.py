"""The committed stubs are what the built modules say of themselves: types are checked against them, so one that lags
behind lets a wrong call through, or refuses a right one.
"""

from __future__ import annotations

import difflib
import subprocess
import sys
from pathlib import Path

import pytest

from transfer.native import rdma_missing

ROOT = Path(__file__).resolve().parents[2]
SHOWN_LINES = 40


@pytest.mark.parametrize("package", ["kvstore", "transfer"])
def test_the_stub_is_the_modules_own(package: str, tmp_path: Path) -> None:
    if package == "transfer" and rdma_missing().startswith("built without"):
        pytest.skip(rdma_missing())
    made = tmp_path / "_native.pyi"
    # As `make stubs` does.
    step = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", f"{package}._native", "-o", str(made)]
    done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    committed = ROOT / package / "_native.pyi"
    old, new = committed.read_text().splitlines(), made.read_text().splitlines()
    changed = list(difflib.unified_diff(old, new, str(committed.relative_to(ROOT)), "the built module", lineterm=""))
    assert not changed, "run `make stubs`:\n" + "\n".join(changed[:SHOWN_LINES])
