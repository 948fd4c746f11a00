"""A real Prometheus scrapes two real nodes: every panel has data, and the rates are what was counted by hand."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.nodes import BLOCK_TOKENS, SIZE, blocks_of, eventually, tokens
from tests.integration.test_cluster import Cluster, running
from tests.integration.test_locating import At, found_within

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = shutil.which("prometheus")
BLOCKS, HELD = 12, 8
GETS = 3

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROMETHEUS is None, reason="no prometheus (apt-get install prometheus)"),
]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


def netloc(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc


class Prometheus:
    def __init__(self, home: Path, *targets: str) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        text = (ROOT / "deploy/prometheus/prometheus.yml").read_text()
        assert "127.0.0.1:9464" in text
        text = text.replace('"127.0.0.1:9464"', ", ".join(f'"{one}"' for one in targets)).replace(
            "scrape_interval: 10s", "scrape_interval: 1s"
        )
        (home / "prometheus.yml").write_text(text.replace("global:", "global:\n  evaluation_interval: 1s"))
        shutil.copy(ROOT / "deploy/prometheus/rules.yml", home)
        assert PROMETHEUS is not None
        command = [PROMETHEUS, f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data"]
        self.log = (home / "log").open("w+")
        self.process = subprocess.Popen([*command, f"--web.listen-address={self.address}"], stderr=self.log)

    def api(self, path: str, **query: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, expression: str) -> list[float]:
        return [float(sample["value"][1]) for sample in self.api("query", query=expression)["result"]]

    def scraped(self) -> int:
        """How many scrapes have succeeded."""
        try:
            counted = self.values("sum(count_over_time(kvstore_node_info[1h]))")
        except OSError:  # it is starting
            return 0
        return int(sum(counted))

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Scrapes two nodes before, during and after gets of which two thirds of the tokens are there: at one node, where
    they were put, and as many at the other, which has none of them.
    """
    into = np.empty((BLOCKS, SIZE), np.uint8)
    with running(Cluster(tmp_path_factory.mktemp("nodes"), 2, "", "cluster.settle_ms=200")) as nodes:
        addresses = [at for node in nodes.nodes for at in node.facts["addresses"] if at.endswith("/metrics")]
        with (
            At(nodes, 0, "m") as here,
            At(nodes, 1, "m") as there,
            closing(Prometheus(tmp_path_factory.mktemp("prometheus"), *map(netloc, addresses))) as started,
        ):
            chain = here.chain(tokens(BLOCKS))
            assert here.put(chain[:HELD], blocks_of(chain[:HELD])).stored == HELD
            found_within(there, chain, HELD)
            for ns in (here, there):  # a counter's first value is no increase: it is there before
                assert ns.get(chain, into).blocks == HELD
            eventually(lambda: started.scraped() >= 4, 60)
            for _ in range(GETS):
                for ns in (here, there):
                    assert ns.get(chain, into).blocks == HELD
            before = started.scraped()
            eventually(lambda: started.scraped() >= before + 4, 60)
            yield started


def test_the_nodes_are_up_and_the_rules_are_loaded(prometheus: Prometheus) -> None:
    assert prometheus.values('up{job="kvstore"}') == [1.0, 1.0]
    rules = [rule for group in prometheus.api("rules")["groups"] for rule in group["rules"]]
    assert len(rules) >= 10
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    assert not [rule for rule in rules if rule.get("state") == "firing"]


def test_the_hit_rate_is_what_was_counted_by_hand(prometheus: Prometheus) -> None:
    text = (ROOT / "docs/metrics.md").read_text()
    hits, far = re.findall("```promql\n(.*?)```", text, re.DOTALL)
    assert prometheus.values(hits) == [pytest.approx(HELD / BLOCKS)]
    assert prometheus.values("sum(kvstore_far_blocks_total) / sum(kvstore_get_blocks_hit_total)") == [1 / 2]
    # A rate makes up what lies before the first and behind the last scrape, at each node something else.
    assert prometheus.values(far) == [pytest.approx(1 / 2, rel=0.3)]
    assert prometheus.values("kvstore:cluster_hit_rate:tokens5m") == [pytest.approx(HELD / BLOCKS)]
    assert prometheus.values("kvstore:far_share:blocks5m") == [pytest.approx(1 / 2, rel=0.3)]
    (asked,) = prometheus.values("sum(kvstore_get_tokens_asked_total)")
    assert asked == 2 * (1 + GETS) * BLOCKS * BLOCK_TOKENS


def test_every_panel_of_the_dashboard_has_data(prometheus: Prometheus) -> None:
    panels = json.loads((ROOT / "deploy/grafana/kvstore.json").read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    empty = []
    for expression in expressions:
        asked = expression.replace("$__rate_interval", "1m").replace("$__range", "1h").replace("$instance", ".*")
        empty += [expression] if not prometheus.values(asked) else []
    # Nobody was turned away, so there is no series that says at which door.
    assert [one for one in empty if "kvstore_calls_denied_total" not in one] == []
