"""`make test`: native tests, then pytest over two workers; every skip is listed with its reason at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.native_build import ROOT, build

BUILD = ROOT / "build" / "tests"


def native() -> int:
    """Builds and runs the native tests; quiet unless something fails."""
    if code := build(BUILD, ["-DKVSTORE_NATIVE_TESTS=ON"]):
        return code
    ctest = Path(sys.executable).with_name("ctest")
    return subprocess.run([str(ctest), "--output-on-failure", "-j2"], cwd=BUILD, check=False).returncode


def main() -> int:
    print("== native tests", flush=True)
    failed = native()
    print("== python tests", flush=True)
    env = {**os.environ, "PYTHONHASHSEED": "0"}
    pytest = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-q", *sys.argv[1:]]
    return subprocess.run(pytest, cwd=ROOT, env=env, check=False).returncode or failed


if __name__ == "__main__":
    sys.exit(main())
