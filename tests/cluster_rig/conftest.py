"""Figures that a test of the rig has seen: they are told at the end of the run, beside what they were held against."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Seen = Callable[[str, float], None]


@pytest.fixture
def seen_ms(record_property: Callable[[str, object], None]) -> Seen:
    """what, seconds."""
    return lambda what, seconds: record_property("seen", f"{what}: {seconds * 1e3:.0f} ms")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "seen":
                terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {value}")
