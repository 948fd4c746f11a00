"""The compose file: it is one, its settings and commands are ours, and what it mounts is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyOptions

from kvstore.allowed import MIB
from tests.deploy.shipped import DEPLOY, certificates, documents, looked_at, parsed, port_of

FILE = DEPLOY / "compose/compose.yaml"
NODES = ("node-1", "node-2", "node-3")
MADE = {"grafana-password", "access.toml"}  # by prepare.sh beside what certificates.sh makes


@cache
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return read


def plugin() -> bool:
    """Whether Docker's own reader is here. Debian's docker-compose 1 knows an older form."""
    docker = shutil.which("docker")
    command = [docker, "compose", "version"] if docker else ["false"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_it_is_a_compose_file() -> None:
    """By a strict reader of the specification: unknown keys are refused, and what is named must be defined."""
    PyOptions(apply_merge=True).from_yaml(FILE.read_text()).validate()


@pytest.mark.skipif(not plugin(), reason="no docker compose (Docker's package docker-compose-plugin)")
def test_compose_takes_it() -> None:
    command = ["docker", "compose", "-f", FILE, "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", NODES)
def test_a_node_would_start(name: str) -> None:
    """With the settings that it is given, and by a command that we have."""
    node = compose()["services"][name]
    assert parsed(["kvstore", *node["command"]])["path"] == Path("/etc/kvstore/node.toml")
    config = looked_at(DEPLOY / "compose/node.toml", node["environment"])
    assert config.cluster.address == f"{name}:{port_of(config.node.address)}"
    assert config.transfer.address.startswith(f"{name}:")
    assert config.node.name == name == node["hostname"]
    test = node["healthcheck"]["test"]
    assert test[0] == "CMD" and parsed(test[1:])["address"] == f"unix:{config.node.socket}"
    assert parsed(test[1:])["nodes"] == ("self",)
    # Memory and its entries, an eighth at most, fit the shared memory that the container has.
    assert node["shm_size"] == "2gb" and config.memory.bytes * 9 // 8 < 2048 * MIB
    mounted = {one.partition(":")[2] for one in node["volumes"]}
    assert {str(config.node.data_dir), config.object.url.removeprefix("file://")} <= mounted
    given = {f"/run/secrets/{one}" for one in node["secrets"]}
    security = config.security
    files = (security.certificate, security.private_key, security.client_ca, security.access_file)
    assert {str(one) for one in (*files, config.cluster.secret_file)} <= given


def test_etcd_is_where_the_nodes_look() -> None:
    members = looked_at(DEPLOY / "compose/node.toml").cluster.members
    (where,) = re.findall(r"etcd://([\w.-]+):2379/", members)
    assert where in compose()["services"]
    assert any("--listen-client-urls=http://0.0.0.0:2379" in word for word in compose()["services"][where]["command"])


def test_what_it_mounts_is_there(tmp_path: Path) -> None:
    for name, one in compose()["configs"].items():
        assert (FILE.parent / one["file"]).resolve().is_file(), name
    made = {path.name for path in certificates(tmp_path, *NODES).iterdir()} | MADE
    prepare = (FILE.parent / "prepare.sh").read_text()
    assert all(name in prepare for name in MADE) and " ".join(NODES) in prepare
    for name, one in compose()["secrets"].items():
        path = Path(one["file"])
        assert path.parent == Path("secrets") and path.name in made, name


def test_prometheus_scrapes_every_node(tmp_path: Path) -> None:
    (told,) = documents(DEPLOY / "compose/prometheus.yml")
    (job,) = told["scrape_configs"]
    port = port_of(looked_at(DEPLOY / "compose/node.toml").metrics.address)
    assert job["static_configs"] == [{"targets": [f"{name}:{port}" for name in NODES]}]
    given = {f"/run/secrets/{one}" for one in compose()["services"]["prometheus"]["secrets"]}
    assert set(job["tls_config"].values()) == given and job["scheme"] == "https"
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (apt-get install prometheus)")
    made = certificates(tmp_path / "made", *NODES)
    text = (DEPLOY / "compose/prometheus.yml").read_text()
    for secret, name in (
        ("authority", "ca.crt"),
        ("prometheus_certificate", "prometheus.crt"),
        ("prometheus_key", "prometheus.key"),
    ):
        text = text.replace(f"/run/secrets/{secret}", str(made / name))
    (tmp_path / "prometheus.yml").write_text(text)
    shutil.copy(DEPLOY / "prometheus/rules.yml", tmp_path)
    done = subprocess.run(
        [promtool, "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    (sources,) = documents(DEPLOY / "compose/grafana/datasource.yaml")
    (source,) = sources["datasources"]
    assert source["type"] == "prometheus" and source["url"] == "http://prometheus:9090" and source["isDefault"]
    (dashboards,) = documents(DEPLOY / "compose/grafana/dashboards.yaml")
    (provider,) = dashboards["providers"]
    targets = {one["source"]: Path(one["target"]) for one in compose()["services"]["grafana"]["configs"]}
    assert targets["grafana_kvstore"].parent == Path(provider["options"]["path"])
    json.loads((FILE.parent / compose()["configs"]["grafana_kvstore"]["file"]).read_text())
