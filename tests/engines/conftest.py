"""Tests in real engines: `make test-engines`, in the venvs that `make setup-engines` makes.

A venv that is missing is a skip that says so; where `CI` is set, tests/must_run.txt makes it a failure. A run ends with
how long each engine took to start.

--part FILE runs those tests alone that a line of FILE names, as ci.txt does.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.engines import run, serve

TEST_MAX_S = 600
FOLDER = "tests/engines/"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", type=Path, help="a file: which tests of real engines to run, as regular expressions")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    mine = [item for item in items if FOLDER in item.nodeid]
    for item in mine:
        item.add_marker(pytest.mark.engines)
        item.add_marker(pytest.mark.timeout(TEST_MAX_S))
    part: Path | None = config.getoption("--part")
    if part is None:
        return
    lines = [line for line in part.read_text().splitlines() if line and not line.startswith("#")]
    named = {line: {item for item in mine if re.fullmatch(line, item.nodeid.partition(FOLDER)[2])} for line in lines}
    if nothing := [line for line, found in named.items() if not found]:
        raise pytest.UsageError(f"{part}: names no test: {', '.join(nothing)}")
    chosen: set[pytest.Item] = set().union(*named.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    starts = [*run.STARTS, *serve.STARTS]
    if starts:
        told = ", ".join(f"{log.parent.name}/{log.name} {took:.0f} s" for log, took in starts)
        terminalreporter.write_line(
            f"{len(starts)} engines started, in {sum(s for _, s in starts):.0f} s in all: {told}"
        )
