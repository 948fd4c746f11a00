"""What every test shares: hypothesis profiles, and the list of what may not be skipped.

A skip is for a machine that lacks something. Where `CI` is set, a skip of anything named in `tests/must_run.txt`
fails the run: a suite that silently stops running is worse than one that fails.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.must_run import must_run

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
settings.register_profile("commit", max_examples=40, stateful_step_count=40, **_COMMON)
settings.register_profile("night", max_examples=1500, stateful_step_count=120, **_COMMON)
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "commit")
settings.load_profile(PROFILE)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = settings()
    terminalreporter.write_line(
        f"hypothesis profile {PROFILE!r} (HYPOTHESIS_PROFILE): {found.max_examples} examples of "
        f"{found.stateful_step_count} steps, where a test does not say otherwise"
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seeds", type=int, default=500, help="simulation seeds to run")
    parser.addoption("--traces", default=os.environ.get("TRACES"), help="a folder of published traces (or TRACES)")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(session.config, "workerinput"):
        return
    prefixes = must_run()
    skipped = [r.nodeid for r in reporter.stats.get("skipped", []) if prefixes and r.nodeid.startswith(prefixes)]
    if skipped:
        reporter.write_line("")
        reporter.write_line(
            f"skipped although tests/must_run.txt names it: {', '.join(sorted(set(skipped)))}", red=True
        )
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
