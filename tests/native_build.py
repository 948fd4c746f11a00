"""The two CMake steps of a build tree outside Python's: the native tests', and the fuzz targets'."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ROOT", "build"]

ROOT = Path(__file__).resolve().parent.parent
SHOWN_CHARACTERS = 8_000


def build(tree: Path, options: Sequence[str]) -> int:
    """Configures and builds native/ in `tree`, without the Python modules. Quiet unless a step fails; then it prints
    the end of what that one said, and returns its exit code.
    """
    cmake = [sys.executable, "-m", "cmake"]
    ninja = Path(sys.executable).with_name("ninja")
    configure = [*cmake, "-S", "native", "-B", str(tree), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    always = ["-DKVSTORE_PYTHON=OFF", f"-DKVSTORE_XXHASH_DIR={ROOT / 'build' / 'xxhash'}"]
    for step in ([*configure, *always, *options], [*cmake, "--build", str(tree), "-j2"]):
        done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-SHOWN_CHARACTERS:], done.stderr[-SHOWN_CHARACTERS:], sep="\n")
            return done.returncode
    return 0
