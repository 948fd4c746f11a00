"""`make fuzz` says at its end what failed, and with which input; a machine without clang is no excuse in CI."""

from __future__ import annotations

import base64
import shutil
import sys
from pathlib import Path

import pytest

from tests import fuzz

STATISTICS = "stat::number_of_executed_units: 123456\nstat::new_units_added:          7\nstat::peak_rss_mb:  310"
INPUT = b"\x00\xffbad frame"


def target(folder: Path, name: str, body: str) -> Path:
    """A program that is called as libFuzzer's are."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\nimport sys, pathlib\nargs = sys.argv[1:]\n{body}\n")
    path.chmod(0o755)
    return path


def run(folder: Path, name: str, body: str) -> fuzz.Run:
    return fuzz.run_target(target(folder, name, body), folder / "corpus", folder, 1)


GOOD = f"assert '-max_total_time=1' in args\nprint('''{STATISTICS}''')"
BAD = f"""
prefix = next(arg for arg in args if arg.startswith('-artifact_prefix=')).partition('=')[2]
for line in range(100): print('line', line)
pathlib.Path(prefix + 'crash-1').write_bytes({INPUT!r})
print('Test unit written to ' + prefix + 'crash-1', file=sys.stderr)
sys.exit(77)
"""


def test_a_good_target_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = run(tmp_path, "fuzz_good", GOOD)
    assert good.line() == "fuzz_good: 123,456 executions, 7 new units, peak rss 310 MB"
    assert fuzz.report([good]) == 0
    assert capsys.readouterr().out == "fuzz: 1 targets, no finding\n"


def test_a_failed_target_is_named_last_with_what_it_said_and_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = run(tmp_path, "fuzz_bad", BAD), run(tmp_path, "fuzz_good", GOOD)
    assert "? executions" in bad.line() and "FAILED with exit code 77" in bad.line()
    assert fuzz.report([bad, good]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "fuzz: 2 targets, FAILED: fuzz_bad"
    assert f"reproducer: {tmp_path}/found-fuzz_bad/crash-1" in said
    assert f"base64: {base64.b64encode(INPUT).decode()}" in said
    assert "line 99" in said and "line 50" not in said


def test_a_target_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "OVERTIME_S", -0.5)
    hung = run(tmp_path, "fuzz_hung", "import threading; threading.Event().wait()")
    assert hung.code == 1 and "ended from outside" in hung.findings()


def test_no_targets_is_a_failure() -> None:
    assert fuzz.report([]) == 1


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_missing_clang_fails_in_ci(
    ci: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["fuzz"])
    assert fuzz.main() == code
    assert ("FAILED" in capsys.readouterr().out) == bool(code)
