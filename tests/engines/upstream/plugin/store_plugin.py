"""Loaded into upstream's pytest (-p): their helpers make our connector, and what cannot apply is left out by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import store_tested
from store_cases import LOAD_ONLY, SKIPPED, THEIRS, selected, why
from store_tested import StoreUnderTest, play, settle

_LAST: list[Any] = []  # the schedulers of the running test
_USED: list[bool] = []  # once for each time that the running test was given our connector
_RUNNING: list[str] = [""]  # the running test
_REPORT: dict[str, dict[str, Any]] = {}

# Upstream's name of a connector: by it their tests choose one. In its place comes ours.
REPLACED = {
    "NixlConnector": "",
    "MockKVConnector": "",
    "SimpleCPUOffloadConnector": "",
    "ExampleConnector": "tests/v1/core/",  # elsewhere it is the one that cannot do something
}


def pytest_configure(config: pytest.Config) -> None:
    from tests.v1.kv_connector.unit import utils
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.v1.core.sched import scheduler as scheduling

    for name, where in REPLACED.items():
        theirs = KVConnectorFactory._registry[name]
        KVConnectorFactory._registry[name] = lambda theirs=theirs, where=where: (
            _ours() if _RUNNING[-1].startswith(where) and not why(_RUNNING[-1], THEIRS) else theirs()
        )
    utils.ExampleConnector = _counted
    _wrap_scheduler(scheduling.Scheduler)
    empty_check = utils.assert_scheduler_empty

    def checked(scheduler: Any) -> None:
        from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT

        settle(scheduler, EMPTY_MODEL_RUNNER_OUTPUT)
        empty_check(scheduler)

    utils.assert_scheduler_empty = checked
    utils.create_mock_connector = lambda: _Handle(_LAST[-1])


def _ours() -> type:
    _USED.append(True)
    return StoreUnderTest


def _counted(*given: Any) -> Any:
    return _ours()(*given)


def _wrap_scheduler(kind: type) -> None:
    """Before a scheduler hears what a step gave, our worker does its part of the step."""
    make, update = kind.__init__, kind.update_from_output

    def made(self: Any, *given: Any, **named: Any) -> None:
        make(self, *given, **named)
        _LAST.append(self)

    def updated(self: Any, scheduler_output: Any, output: Any) -> Any:
        return update(self, scheduler_output, play(self.connector, output))

    def assigned(self: Any, name: str, value: Any) -> None:
        object.__setattr__(self, name, value.real if isinstance(value, _Handle) else value)

    kind.__init__, kind.update_from_output, kind.__setattr__ = made, updated, assigned


class _Handle:
    """What a test takes for its mock, until it gives it to its scheduler: that keeps our connector instead."""

    def __init__(self, scheduler: Any) -> None:
        self.real = scheduler.connector


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left = [item for item in items if not selected(item.nodeid)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if selected(item.nodeid)]
    for item in items:
        reason = why(item.nodeid, SKIPPED)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Any:
    store_tested.saving = not why(item.nodeid, LOAD_ONLY)
    _USED.clear()
    _RUNNING[:] = [item.nodeid]
    try:
        return (yield)
    finally:
        for scheduler in _LAST:
            connector = scheduler.connector
            if isinstance(connector, StoreUnderTest):
                connector.shutdown()
        _LAST.clear()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        said = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            said = report.longrepr[2].removeprefix("Skipped: ")
        elif report.failed:
            said = str(getattr(getattr(report.longrepr, "reprcrash", None), "message", report.longrepr))[:400]
        _REPORT[report.nodeid] = {"outcome": report.outcome, "said": said, "ours": bool(_USED)}


def pytest_sessionfinish() -> None:
    Path(os.environ["KVSTORE_UPSTREAM_REPORT"]).write_text(json.dumps(_REPORT, indent=1))
