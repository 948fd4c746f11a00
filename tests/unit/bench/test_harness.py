"""The harness: medians taken in turns, verdicts that own up to a busy machine, results that can be read back."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from bench import __main__ as runner
from bench import harness
from bench.harness import Row, at_least, at_most, judge, measure, no_target, ratio_at_least, ratio_at_most


def told(*figures: float) -> Callable[[], float]:
    turns = itertools.cycle(figures)
    return lambda: next(turns)


@pytest.fixture(autouse=True)
def quiet_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.1, 0.1, 0.1))


def row(**changes: object) -> Row:
    fields: dict[str, object] = {"ours": told(8.0), "limit": told(10.0), "target": ratio_at_least(0.8)}
    fields |= {"unit": "GiB/s", "limit_is": "memcpy", "rounds": 5} | changes
    return measure("copy", **fields)  # type: ignore[arg-type]


def test_what_a_machine_lacks_is_said_and_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def lacking(name: str, quick: bool, peers: object) -> list[Row]:
        raise harness.Skipped("no GPU")

    monkeypatch.setattr(runner, "rows", lacking)
    monkeypatch.setattr(harness, "write", lambda name, made: (tmp_path / name).touch())
    told = CliRunner().invoke(runner.main, ["gpu"])
    assert (told.exit_code, told.stderr) == (0, "gpu: skipped: no GPU\n")
    assert not list(tmp_path.iterdir())


def test_medians_and_ratio() -> None:
    made = row(ours=told(100.0, 7.0, 8.0, 9.0), limit=told(10.0), rounds=3)
    assert (made.ours, made.limit, made.ratio, made.met) == (8.0, 10.0, 0.8, True)
    assert made.spread == pytest.approx(1 / 8)


def test_everybody_takes_turns() -> None:
    order: list[str] = []

    def figure(name: str) -> Callable[[], float]:
        return lambda: order.append(name) or 1.0  # type: ignore[func-returns-value]

    row(ours=figure("ours"), limit=figure("limit"), peers={"p": figure("p"), "q": "not installed"}, rounds=2)
    assert order == ["p", "ours", "limit", "limit", "ours", "p", "p", "ours", "limit"]


@pytest.mark.parametrize(
    ("target", "ours", "limit", "met"),
    [
        (ratio_at_least(0.9), 9.0, 10.0, True),
        (ratio_at_least(0.9), 8.9, 10.0, False),
        (ratio_at_most(1.3, 30.0, "us"), 160.0, 100.0, True),
        (ratio_at_most(1.3, 30.0, "us"), 161.0, 100.0, False),
        (at_least(5e6, "keys/s"), 5e6, None, True),
        (at_least(5e6, "keys/s"), 4.9e6, 1.0, False),
        (at_most(4.0, "ms"), 4.0, 1.0, True),
        (at_most(4.0, "ms"), 4.1, 1.0, False),
        (no_target(), 1.0, 1.0, None),
    ],
)
def test_targets(target: harness.Target, ours: float, limit: float | None, met: bool | None) -> None:
    assert judge(target, ours, limit, busy=False) is met


def test_a_busy_machine_cannot_tell() -> None:
    assert judge(ratio_at_least(0.9), 9.5, 10.0, busy=True) is None
    assert judge(at_most(4.0, "ms"), 5.0, None, busy=True) is None
    assert judge(at_most(4.0, "ms"), 3.0, None, busy=True) is True


def test_an_unsteady_limit_is_a_busy_machine() -> None:
    assert row(limit=told(5.0, 10.0, 15.0)).met is None
    assert row(limit=told(9.9, 10.0, 10.1)).met is True


def test_load_is_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.1, 0.1))
    made = row()
    assert made.met is None and made.load == 1000.0


def test_peers_that_are_not_installed_say_so() -> None:
    absent = harness.peer("no_such_package_here", told(1.0))
    made = row(peers={"absent": absent, "numpy": harness.peer("numpy", told(3.0))})
    assert made.peers == {"absent": "not installed", "numpy": 3.0}


def test_results_are_written_with_their_machine(tmp_path: Path) -> None:
    path = harness.write("copy", [row(), row(limit=None, target=at_least(1.0, "GiB/s"))], tmp_path)
    content = json.loads(path.read_text())
    assert path.name == "copy.json" and content["benchmark"] == "copy"
    assert set(content["machine"]) >= {"cpu", "cores", "memory_gib", "kernel", "gpu"}
    first, second = content["rows"]
    assert set(first) == {
        "name", "ours", "unit", "limit", "limit_is", "ratio", "peers", "target", "met", "spread", "load",
    }  # fmt: skip
    assert first["ratio"] == 0.8 and second["ratio"] is None and second["met"] is True


def test_tables_show_verdicts() -> None:
    out = io.StringIO()
    rows = [row(), row(target=ratio_at_least(0.9)), row(limit=told(5.0, 10.0, 15.0))]
    harness.show("copy", rows, Console(file=out, width=200))
    text = out.getvalue()
    assert all(word in text for word in ("yes", "no", "busy", "0.80", ">= 0.8 of the limit"))


def test_the_runner_finds_benchmarks() -> None:
    assert {"copy", "keys"} <= set(runner.names())
    assert not {"harness", "machine", "__main__"} & set(runner.names())
