"""`make test-rdma`: one machine, two rails, and in it the tests that need verbs; every skip is listed at the end.

What follows on the command line goes to pytest, and tests that are named there are run instead of TESTS.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from tests.must_run import must_run
from tests.native_build import ROOT
from tests.rdma.vm.bootfiles import Missing, boot_files
from tests.rdma.vm.machine import MachineFailed, Settings, run

OUT = ROOT / "build" / "rdma"
TESTS = (
    "tests/rdma",
    # That the machine runs this checkout's native code as the host does; all of that exam takes two minutes here.
    "tests/exam/test_transfer_tcp.py::TestTwoProcesses::test_reads_are_exact_at_odd_offsets_and_sizes",
    "tests/exam/test_transfer_tcp.py::TestTwoProcesses::test_peer_killed_in_the_middle",
)
# Each plugin that is loaded costs an emulated second: only those that pyproject.toml has settings for.
PYTEST = ("-m", "pytest", "-p", "pytest_asyncio.plugin", "-p", "pytest_timeout", "-p", "no:cacheprovider", "-q")
RUN_MAX_S = 1800.0
TEST_MAX_S = 300.0


def report(junit: Path, boot_s: float, took_s: float) -> int:
    """The last words: counts and every skip. 1 where nothing ran."""
    if not junit.exists():
        print("test-rdma: FAILED: pytest left no report")
        return 1
    cases = list(ElementTree.parse(junit).iter("testcase"))
    skips = [(case, skip) for case in cases for skip in case.iter("skipped")]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    for case, skip in skips:
        print(f"skipped: {case.get('classname')}::{case.get('name')}: {skip.get('message')}")
    for case in failed:
        print(f"failed: {case.get('classname')}::{case.get('name')}")
    passed = len(cases) - len(skips) - len(failed)
    print(
        f"test-rdma: {passed} passed, {len(failed)} failed, {len(skips)} skipped in {took_s:.0f} s; "
        f"the machine was up after {boot_s:.1f} s; {junit}"
    )
    return 0 if passed and not failed else 1


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    arguments = sys.argv[1:]
    named = [argument for argument in arguments if argument.startswith("tests/")]
    junit = OUT / "junit.xml"
    junit.unlink(missing_ok=True)
    pytest = [*PYTEST, "-o", f"timeout={TEST_MAX_S:.0f}", f"--junitxml={junit}", *arguments, *(() if named else TESTS)]
    command = ["env", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", sys.executable, *pytest]
    start = time.monotonic()
    try:
        boot = boot_files()
        print(f"test-rdma: in the machine: {shlex.join(command)}", flush=True)
        ended = run(command, boot, Settings(run_max_s=RUN_MAX_S), out=OUT)
    except Missing as error:
        must = "tests/rdma" in must_run()
        print(f"test-rdma: FAILED: {error}; tests/must_run.txt names it" if must else f"test-rdma: SKIPPED: {error}")
        return int(must)
    except MachineFailed as error:
        print(f"test-rdma: FAILED: {error}")
        return 1
    return report(junit, ended.boot_s, time.monotonic() - start) or ended.status


if __name__ == "__main__":
    sys.exit(main())
