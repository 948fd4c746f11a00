"""`make fuzz`: builds every target of native/fuzz with libFuzzer and sanitizers, and runs each for a while."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "fuzz"
CORPUS = ROOT / "native" / "fuzz" / "corpus"


def build() -> int:
    clang = shutil.which("clang++-14") or shutil.which("clang++")
    if clang is None:
        print("fuzz: SKIPPED: no clang++ on this machine (Debian: clang-14 libclang-rt-14-dev)")
        return 77
    ninja = Path(sys.executable).with_name("ninja")
    steps = [
        [
            sys.executable,
            "-m",
            "cmake",
            "-S",
            "native",
            "-B",
            str(BUILD),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DCMAKE_CXX_COMPILER={clang}",
            "-DKVSTORE_PYTHON=OFF",
            "-DKVSTORE_FUZZ=ON",
            "-DKVSTORE_SANITIZE=address,undefined",
            f"-DKVSTORE_XXHASH_DIR={ROOT / 'build' / 'xxhash'}",
        ],
        [sys.executable, "-m", "cmake", "--build", str(BUILD), "-j2"],
    ]
    for step in steps:
        done = subprocess.run(step, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stdout[-8000:], done.stderr[-4000:], sep="\n")
            return done.returncode
    return 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60, help="per target")
    seconds = parser.parse_args().seconds
    if code := build():
        return 0 if code == 77 else code
    targets = sorted(path for path in BUILD.glob("fuzz_*") if path.is_file() and path.suffix == "")
    failed = 0
    for target in targets:
        corpus = CORPUS / target.name.removeprefix("fuzz_")
        corpus.mkdir(parents=True, exist_ok=True)
        # New finds go to the build tree; what is worth keeping is committed by hand with -merge=1.
        fresh = BUILD / f"corpus-{target.name}"
        fresh.mkdir(exist_ok=True)
        print(f"== {target.name} for {seconds} s", flush=True)
        run = [
            str(target),
            str(fresh),
            str(corpus),
            f"-max_total_time={seconds}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            "-verbosity=0",
        ]
        code = subprocess.run(run, cwd=BUILD, check=False).returncode
        failed = failed or code
    print(f"fuzz: {len(targets)} targets, {'FAILED' if failed else 'no finding'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
