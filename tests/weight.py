"""`make wheel`'s second half: installs the wheel without extras into a fresh venv, weighs it, and imports it there."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

WEIGHT_MAX_MB = 150


def main() -> int:
    wheel = max(Path(sys.argv[1]).glob("kvstore-*.whl"), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory() as scratch:
        venv.create(scratch, with_pip=True)
        python = Path(scratch, "bin", "python")
        site = next(Path(scratch, "lib").glob("python3*/site-packages"))
        before = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        subprocess.run(
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-compile", wheel], check=True
        )
        after = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
        # Away from the source tree, so that the wheel's own modules are what is imported.
        check = (
            "import kvstore, transfer, kvstore.native, sys; assert 'torch' not in sys.modules; print(kvstore.__file__)"
        )
        subprocess.run([python, "-c", check], check=True, cwd=scratch)
        subprocess.run([Path(scratch, "bin", "kvstore"), "--help"], check=True, cwd=scratch, stdout=subprocess.DEVNULL)
    weight = (after - before) / 1e6
    packed = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {packed:.1f} MB, with its dependencies {weight:.0f} MB (limit {WEIGHT_MAX_MB})")
    return 0 if weight <= WEIGHT_MAX_MB else 1


if __name__ == "__main__":
    sys.exit(main())
