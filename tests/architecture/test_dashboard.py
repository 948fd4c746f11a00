"""The dashboard and the metrics page speak of exactly the metrics that a node tells."""

from __future__ import annotations

import ctypes
import json
import mmap
import re
from pathlib import Path
from typing import Any

from kvstore import native
from kvstore.node.far import FarCounts
from kvstore.node.kv_publisher import KvEventCounts
from kvstore.observe import metrics
from transfer import paths

ROOT = Path(__file__).resolve().parents[2]
NAME = re.compile(r"\bkvstore_[a-z_]+")


def counts() -> dict[str, Any]:
    """What a real core counts that has one namespace and one family."""
    table = native.TableConfig(64 << 20, 8 << 20)
    size = native.NodeCore.meta_bytes(table)
    meta = mmap.mmap(-1, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(meta))
    core = native.NodeCore(table, None, meta=address, meta_bytes=size, incarnation=1)
    ns = core.open_namespace(b"d" * 32, 0, 16, [[4096]])
    core.fetched(ns, native.Hint(family=7), 4, [0, 2, 1, 0], 0, 0, 8192, 1_000)
    counted: dict[str, Any] = core.counters()
    assert counted["families"] and counted["namespaces"]
    return counted


def told() -> dict[str, set[str]]:
    """Every metric's sample names, with their labels."""
    source = metrics.Source(
        counters=counts,
        tiers=lambda: [metrics.TierSample(1, 1, {"payload_bytes_sealed": 0})],
        denials=lambda: {("grpc", False): 1},
        namespace=lambda ns: metrics.NamespaceLabels("abc", "default", "m"),
        family=lambda family: f"{family:016x}",
        transfers=lambda: {path: paths.PathCounts() for path in paths.Path},
        cluster=lambda: metrics.ClusterSample(
            {"alive": 1}, 0, 0, 0, discovery_away=False, stood_still=False, far=FarCounts()
        ),
        kv_events=KvEventCounts,
        info={"node": "n", "version": "0"},
        families_told_max=10,
    )
    samples: dict[str, set[str]] = {}
    for family in metrics.NodeCollector(source).collect():
        for sample in family.samples:
            samples.setdefault(sample.name, set()).update(sample.labels)
    return samples


def test_the_dashboard_names_only_what_is_told() -> None:
    dashboard = json.loads((ROOT / "deploy/grafana/kvstore.json").read_text())
    known = told()
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) > 20
    for expression in expressions:
        names = set(NAME.findall(expression))
        assert names, expression
        assert names <= set(known), f"{names - set(known)} in {expression}"
        for grouping in re.findall(r"by \(([^)]*)\)", expression):
            labels = {label.strip() for label in grouping.split(",")}
            assert labels <= set().union(*(known[name] for name in names)), f"{labels} in {expression}"


def test_the_page_lists_every_metric_and_no_other() -> None:
    page = (ROOT / "docs/metrics.md").read_text()
    listed = set(re.findall(r"^\| `(kvstore_[a-z_]+)`", page, re.MULTILINE))
    names = {re.sub(r"_(bucket|count|sum|created)$", "", name) for name in told()}
    assert listed == names
