"""The dashboard holds only what Grafana's own types know: what they do not, Grafana drops without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow
MISSING = "no grafana-foundation-sdk (make test-dashboards installs it)"


def through_grafana(document: dict[str, Any]) -> dict[str, Any]:
    """Read and written again by Grafana's published types, those of panels and queries too."""
    dashboard = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=MISSING)
    pytest.importorskip("grafana_foundation_sdk.cog.plugins", reason=MISSING).register_default_plugins()
    read = dashboard.Dashboard.from_json(document)
    written: dict[str, Any] = json.loads(json.dumps(read.to_json(), default=lambda one: one.to_json()))
    return written


def lost(ours: Any, theirs: Any, at: str = "") -> Iterator[str]:
    """Where what came back is not what was given; what they add is theirs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from lost(value, theirs.get(key), f"{at}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (mine, yours) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(mine, yours, f"{at}[{index}]")
    elif ours != theirs:
        yield at


def dashboard_here() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((ROOT / "deploy/grafana/kvstore.json").read_text())
    return document


def test_grafana_knows_every_field_of_the_dashboard() -> None:
    document = dashboard_here()
    assert list(lost(document, through_grafana(document))) == []
    assert {panel["type"] for panel in document["panels"]} <= {"row", "stat", "timeseries", "table"}


def test_a_slip_of_the_pen_is_found() -> None:
    document = dashboard_here()
    index, panel = next((i, one) for i, one in enumerate(document["panels"]) if one.get("targets"))
    panel["fieldConfig"]["defaults"]["unitt"] = "bytes"
    panel["targets"][0]["exprr"] = "up"
    found = set(lost(document, through_grafana(document)))
    assert found == {f".panels[{index}].fieldConfig.defaults.unitt", f".panels[{index}].targets[0].exprr"}
