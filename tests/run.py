"""`make test`: native tests, then pytest over two workers; every skip is listed with its reason at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "tests"


def native() -> int:
    """Configures, builds and runs the native tests; quiet unless something fails."""
    python = sys.executable
    ninja = Path(python).with_name("ninja")
    steps = [
        [
            python,
            "-m",
            "cmake",
            "-S",
            "native",
            "-B",
            str(BUILD),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            "-DKVSTORE_PYTHON=OFF",
            "-DKVSTORE_NATIVE_TESTS=ON",
            f"-DKVSTORE_XXHASH_DIR={ROOT / 'build' / 'xxhash'}",
        ],
        [python, "-m", "cmake", "--build", str(BUILD), "-j2"],
    ]
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-8000:], done.stderr[-4000:], sep="\n")
            return done.returncode
    ctest = Path(python).with_name("ctest")
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
