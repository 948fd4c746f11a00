"""`make fuzz`: builds every target of native/fuzz with libFuzzer and sanitizers, and runs each for a while.

What a target says goes into a log of its own, build/fuzz/TARGET.log; here it gets one line. Since a CI log is read from
its end, the targets that failed are named last, each with the end of its log and the input that did it.
"""

from __future__ import annotations

import argparse
import base64
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.must_run import must_run
from tests.native_build import ROOT, build

BUILD = ROOT / "build" / "fuzz"
CORPUS = ROOT / "native" / "fuzz" / "corpus"
SHOWN_LINES = 40
REPRODUCER_BYTES_MAX = 16 << 10  # a larger one is named, not printed
OVERTIME_S = 120  # for reading the corpus and for the sanitizers' reports


@dataclass(frozen=True, slots=True)
class Run:
    """What came of one target."""

    name: str
    code: int
    log: Path

    def line(self) -> str:
        said = self.log.read_text(errors="replace")

        def last(statistic: str) -> str:
            found = re.findall(rf"^stat::{statistic}:\s+(\d+)", said, re.MULTILINE)
            return f"{int(found[-1]):,}" if found else "?"

        told = (
            f"{self.name}: {last('number_of_executed_units')} executions, {last('new_units_added')} new units, "
            f"peak rss {last('peak_rss_mb')} MB"
        )
        return told if self.code == 0 else f"{told}: FAILED with exit code {self.code}, see {self.log}"

    def findings(self) -> str:
        """The end of the log, and the inputs that libFuzzer wrote: reading them again is `TARGET FILE`."""
        said = self.log.read_text(errors="replace")
        shown = [f"== {self.name} FAILED; the end of {self.log}:", *said.splitlines()[-SHOWN_LINES:]]
        for name in dict.fromkeys(re.findall(r"Test unit written to (\S+)", said)):
            shown.append(f"reproducer: {name}")
            path = Path(name)
            if path.is_file() and path.stat().st_size <= REPRODUCER_BYTES_MAX:
                shown.append(f"base64: {base64.b64encode(path.read_bytes()).decode()}")
        return "\n".join(shown)


def run_target(target: Path, corpus: Path, work: Path, seconds: int) -> Run:
    """New finds go to the build tree; what is worth keeping is committed by hand with -merge=1."""
    fresh, found = work / f"corpus-{target.name}", work / f"found-{target.name}"
    for folder in (corpus, fresh, found):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-artifact_prefix={found}/",
        "-timeout=10",
        "-rss_limit_mb=2048",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    log = work / f"{target.name}.log"
    with log.open("wb") as out:
        command = [str(target), str(fresh), str(corpus), *options]
        try:
            code = subprocess.run(
                command, cwd=work, stdout=out, stderr=subprocess.STDOUT, timeout=seconds + OVERTIME_S, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            out.write(f"\nended from outside, {OVERTIME_S} s past its time\n".encode())
            code = 1
    return Run(target.name, code, log)


def report(runs: Sequence[Run]) -> int:
    """The last words. 0: no finding."""
    failed = [run for run in runs if run.code]
    for run in failed:
        print(run.findings())
    verdict = f"FAILED: {', '.join(run.name for run in failed)}" if failed else "no finding"
    print(f"fuzz: {len(runs)} targets, {verdict}")
    return 1 if failed or not runs else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60, help="per target")
    seconds: int = parser.parse_args().seconds
    clang = shutil.which("clang++-14") or shutil.which("clang++")
    if clang is None:
        must = "tests/fuzz.py" in must_run()
        why = "no clang++ on this machine (Debian: clang-14 libclang-rt-14-dev)"
        print(f"fuzz: FAILED: {why}, and tests/must_run.txt names it" if must else f"fuzz: SKIPPED: {why}")
        return int(must)
    options = [f"-DCMAKE_CXX_COMPILER={clang}", "-DKVSTORE_FUZZ=ON", "-DKVSTORE_SANITIZE=address,undefined"]
    if code := build(BUILD, options):
        return code
    runs: list[Run] = []
    # What is built for a target that is no more stays in the build tree.
    for source in sorted((ROOT / "native" / "fuzz").glob("fuzz_*.cpp")):
        runs.append(run_target(BUILD / source.stem, CORPUS / source.stem.removeprefix("fuzz_"), BUILD, seconds))
        print(f"== {runs[-1].line()}", flush=True)
    return report(runs)


if __name__ == "__main__":
    sys.exit(main())
