"""Tests in real engines: `make test-engines`, in the venvs that `make setup-engines` makes.

A venv that is missing is a skip that says so; where `CI` is set, tests/must_run.txt makes it a failure. A run ends with
how long each engine took to start.
"""

from __future__ import annotations

import pytest

from tests.engines import run, serve

TEST_MAX_S = 600


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/engines/" in item.nodeid:
            item.add_marker(pytest.mark.engines)
            item.add_marker(pytest.mark.timeout(TEST_MAX_S))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    starts = [*run.STARTS, *serve.STARTS]
    if starts:
        told = ", ".join(f"{log.parent.name}/{log.name} {took:.0f} s" for log, took in starts)
        terminalreporter.write_line(
            f"{len(starts)} engines started, in {sum(s for _, s in starts):.0f} s in all: {told}"
        )
