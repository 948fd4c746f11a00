"""Real nodes run with the samples, the shipped script's certificates and the shipped access file; only addresses, paths
and sizes are this machine's.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from kvstore import Client
from kvstore.client.tls import Tls
from tests.certificates import Pair
from tests.deploy.shipped import DEPLOY, certificates
from tests.etcd_server import EtcdServer, needs_etcd
from tests.integration.nodes import NodeProcess, blocks_of, eventually, layout, tokens
from tests.integration.patience import in_time
from tests.integration.test_cluster import seen
from tests.integration.test_locating import found_within
from tests.ports import free_ports

BLOCKS = 6
PORTS = ("7400", "7401", "7402", "9464")
pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl (apt-get install openssl)")


class Sample(NodeProcess):
    """A node on this machine with a sample of settings, in which addresses and paths were replaced."""

    def __init__(self, home: Path, text: str, name: str) -> None:
        super().__init__(home)
        home.mkdir(exist_ok=True)
        (home / "kvstore.toml").write_text(text)
        self._flags = [
            "--config",
            str(home / "kvstore.toml"),
            "--data-dir",
            str(home / "data"),
            "--name",
            name,
            "--json",
        ]
        self._flags += ["--socket", str(self.socket), "--memory", "4MiB", "--set", "file.enabled=false"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = certificates(tmp_path_factory.mktemp("made") / "kvstore", "127.0.0.1")
    shutil.copy(DEPLOY / "config/access.toml", folder)
    (folder / "access.toml").chmod(0o600)
    for end in ("crt", "key"):
        shutil.copy(folder / f"node.{end}", folder / f"etcd-client.{end}")
    shutil.copy(folder / "ca.crt", folder / "etcd-ca.crt")
    return folder


def here(sample: str, made: Path, ports: Sequence[int]) -> str:
    """The sample, for one node of this machine."""
    text = (DEPLOY / "config" / sample).read_text()
    assert "/etc/kvstore/" in text
    text = text.replace("/etc/kvstore/", f"{made}/")
    for port, own in zip(PORTS, ports, strict=True):
        text = re.sub(rf'"(10\.0\.0\.1|0\.0\.0\.0):{port}"(?! *,)', f'"127.0.0.1:{own}"', text)
    return text


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, made: Path) -> Iterator[list[Sample]]:
    """Of static.toml."""
    ports = [free_ports(len(PORTS)) for _ in range(2)]
    listed = json.dumps([f"127.0.0.1:{one[0]}" for one in ports])
    nodes = []
    for i, own in enumerate(ports):
        text = re.sub(r"(?m)^members = .*$", f"members = {listed}", here("static.toml", made, own))
        assert "10.0.0" not in text
        nodes.append(Sample(tmp_path_factory.mktemp(f"n{i}"), text, f"static-{own[0]}"))
    try:
        for node in nodes:
            node.process = node.spawn()
        for node in nodes:
            node.finish_start()
        for node in nodes:
            eventually(lambda node=node: [row["state"] for row in seen(node).values()] == ["alive"])
        yield nodes
    finally:
        for node in nodes:
            node.close()


def tls(made: Path, name: str) -> Tls:
    return Tls(made / "ca.crt", made / f"{name}.crt", made / f"{name}.key")


def said(node: Sample, section: str) -> str:
    """The address that its settings give a door."""
    address: str = tomllib.loads((node.home / "kvstore.toml").read_text())[section]["address"]
    return address


def test_an_engine_puts_at_one_and_gets_at_the_other(two: list[Sample], made: Path) -> None:
    with (
        Client(two[0].facts["address"], tls=tls(made, "engine")) as one,
        Client(two[1].facts["address"], tls=tls(made, "engine")) as other,
    ):
        here_, there = one.namespace(layout("sample")), other.namespace(layout("sample"))
        chain = here_.chain(tokens(BLOCKS, 1))
        assert here_.put(chain, blocks_of(chain)).stored == BLOCKS
        found_within(there, chain, BLOCKS)
        into = np.zeros_like(blocks_of(chain))
        in_time(lambda: there.get(chain, into), lambda told: told.blocks == BLOCKS)
        assert np.array_equal(into, blocks_of(chain))


def test_every_node_in_turn_starts_again_and_nothing_is_lost(two: list[Sample], made: Path) -> None:
    """docs/deploy.md, upgrades."""
    with Client(two[0].address) as client:
        ns = client.namespace(layout("upgrade"))
        chain = ns.chain(tokens(BLOCKS, 2))
        assert ns.put(chain, blocks_of(chain)).stored == BLOCKS
    for node, other in (two, two[::-1]):
        assert node.stop() == 0
        node.start()
        eventually(lambda node=node: [row["state"] for row in seen(node).values()] == ["alive"])
        eventually(lambda other=other: [row["state"] for row in seen(other).values()] == ["alive"])
    with Client(two[0].address) as client:
        ns = client.namespace(layout("upgrade"))
        into = np.zeros_like(blocks_of(chain))
        assert ns.get(chain, into).blocks == BLOCKS
        assert np.array_equal(into, blocks_of(chain))


def metrics(node: Sample, made: Path, name: str | None) -> int:
    """The status that a scraper with this certificate gets."""
    context = ssl.create_default_context(cafile=str(made / "ca.crt"))
    if name is not None:
        context.load_cert_chain(made / f"{name}.crt", made / f"{name}.key")
    try:
        with urllib.request.urlopen(f"https://{said(node, 'metrics')}/metrics", timeout=10, context=context) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_prometheus_reads_metrics_and_nobody_else_does(two: list[Sample], made: Path) -> None:
    assert metrics(two[0], made, "prometheus") == 200
    assert metrics(two[0], made, "engine") == 403
    with pytest.raises(OSError, match=r"CERTIFICATE_REQUIRED|handshake|reset|EOF"):
        metrics(two[0], made, None)


@pytest.mark.parametrize(("name", "code"), [("operator", 0), ("engine", 4)])
def test_operators_steer_it_from_afar(two: list[Sample], made: Path, name: str, code: int) -> None:
    command = [
        sys.executable,
        "-m",
        "kvstore.admin",
        "--address",
        said(two[0], "grpc"),
        "--tls-authority",
        str(made / "ca.crt"),
    ]
    command += ["--tls-certificate", str(made / f"{name}.crt"), "--tls-key", str(made / f"{name}.key"), "nodes"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == code, done.stdout + done.stderr


@needs_etcd
def test_the_sample_with_etcd_joins_one_with_tls(tmp_path: Path, made: Path) -> None:
    with EtcdServer(tmp_path, tls=Pair(made / "node.crt", made / "node.key"), client_ca=made / "ca.crt") as etcd:
        text = here("etcd.toml", made, free_ports(len(PORTS)))
        text = re.sub(r"etcds://[^/]+/", f"etcds://{etcd.endpoint}/", text)
        text = re.sub(r'(?m)^address = "10\.0\.0\.1:7400".*\n', "", text)
        assert "10.0.0" not in text
        with Sample(tmp_path / "node", text, f"etcd-{etcd.port}") as node:
            command = [sys.executable, "-m", "kvstore.admin", "--address", f"unix:{node.socket}", "nodes"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
            assert "discovery: etcd" in done.stdout and "not to be reached" not in done.stdout
