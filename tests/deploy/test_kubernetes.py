"""The manifests: Kubernetes' schemas take them, their commands and settings are ours, and what they name is there."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from kvstore.allowed import GIB
from kvstore.cli import STOP_MAX_S
from tests.certificates import Authority
from tests.deploy.shipped import DEPLOY, certificates, documents, looked_at, parsed, port_of

FOLDER = DEPLOY / "kubernetes"
VERSION = "1.31"  # the oldest that is looked at; and the newest that the schemas know
HOSTS = ("10.0.0.1", "kvstore.kvstore.svc", "kvstore-etcd.kvstore.svc")
SHAPES = (FOLDER / "kustomization.yaml",)


@cache
def objects() -> dict[tuple[str, str], dict[str, Any]]:
    """By kind and name."""
    paths = [path for path in sorted(FOLDER.glob("*.yaml")) if path not in SHAPES]
    found = [one for path in paths for one in documents(path)]
    by_name = {(one["kind"], one["metadata"]["name"]): one for one in found}
    assert len(by_name) == len(found)
    return by_name


def pod() -> dict[str, Any]:
    spec: dict[str, Any] = objects()["DaemonSet", "kvstore"]["spec"]["template"]["spec"]
    return spec


def container() -> dict[str, Any]:
    (one,) = pod()["containers"]
    return dict(one)


def environ(host: str) -> dict[str, str]:
    """As kubelet makes it on a machine of that address."""
    said: dict[str, str] = {}
    fields = {"status.hostIP": host, "spec.nodeName": "worker-1.example"}
    for one in container()["env"]:
        value = one["value"] if "value" in one else fields[one["valueFrom"]["fieldRef"]["fieldPath"]]
        for name, known in said.items():
            value = value.replace(f"$({name})", known)
        said[one["name"]] = value
    assert not any("$(" in value for value in said.values())
    return said


def test_kubernetes_takes_them() -> None:
    for one in objects().values():
        for version in (VERSION, kubernetes_validate.latest_version()):
            kubernetes_validate.validate(one, version, strict=True)
    assert {kind for kind, _ in objects()} == {
        *("Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Service", "StatefulSet"),
        *("DaemonSet", "PodDisruptionBudget"),
    }


def test_a_word_too_many_would_be_seen() -> None:
    one = json.loads(json.dumps(objects()["DaemonSet", "kvstore"]))
    one["spec"]["template"]["spec"]["hostPIDs"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostPIDs"):
        kubernetes_validate.validate(one, VERSION, strict=True)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl (of Kubernetes' own packages)")
def test_kubectl_puts_them_together(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "kubernetes", ignore=shutil.ignore_patterns("secrets"))
    certificates(tmp_path / "kubernetes/secrets", *HOSTS)
    shutil.copy(DEPLOY / "config/access.toml", tmp_path / "kubernetes/secrets")
    done = subprocess.run(
        ["kubectl", "kustomize", tmp_path / "kubernetes"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "all.yaml").write_text(done.stdout)
    made = {one["kind"]: one for one in documents(tmp_path / "all.yaml")}
    for one in made.values():
        kubernetes_validate.validate(one, VERSION, strict=True)
    volumes = {one["name"]: one for one in made["DaemonSet"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["secret"]["secret"]["secretName"] == made["Secret"]["metadata"]["name"]
    assert volumes["config"]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    image = made["DaemonSet"]["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == "kvstore:0.1.0"
    secrets, config = made["Secret"]["data"], looked_at(FOLDER / "node.toml", environ("10.0.0.1"))
    security, cluster = config.security, config.cluster
    files = (security.certificate, security.private_key, security.client_ca, security.access_file, cluster.secret_file)
    assert {path.name for path in files if path} <= secrets.keys()
    assert {
        path.name for path in (cluster.etcd_ca, cluster.etcd_certificate, cluster.etcd_private_key) if path
    } <= secrets.keys()


def test_a_node_would_start() -> None:
    assert parsed(["kvstore", *container()["args"]])["path"] == Path("/etc/kvstore/node.toml")
    config = looked_at(FOLDER / "node.toml", environ("10.0.0.1"))
    assert config.node.name == "worker-1.example"
    ports = {one["name"]: one["containerPort"] for one in container()["ports"]}
    assert {name: port_of(address) for name, address in {
        "framed": config.node.address,
        "grpc": config.grpc.address,
        "transfer": config.transfer.address,
        "metrics": config.metrics.address,
    }.items()} == ports  # fmt: skip
    mounts = {one["mountPath"]: one["name"] for one in container()["volumeMounts"]}
    for path in (
        config.node.data_dir,
        config.memory.directory,
        config.node.socket.parent,
        config.security.access_file.parent,
    ):
        assert str(path) in mounts
    paths = {one["name"]: one["hostPath"]["path"] for one in pod()["volumes"] if "hostPath" in one}
    assert paths[mounts[str(config.memory.directory)]].startswith("/dev/shm/")
    assert paths[mounts[str(config.node.socket.parent)]] == str(config.node.socket.parent)
    assert config.memory.bytes == 64 * GIB and container()["resources"]["requests"]["memory"] == "72Gi"


def test_every_mount_is_a_volume() -> None:
    specs = [pod(), objects()["StatefulSet", "kvstore-etcd"]["spec"]["template"]["spec"]]
    claims = {
        one["metadata"]["name"] for one in objects()["StatefulSet", "kvstore-etcd"]["spec"]["volumeClaimTemplates"]
    }
    for spec in specs:
        known = {one["name"] for one in spec["volumes"]} | claims
        for one in [*spec.get("initContainers", []), *spec["containers"]]:
            assert {mount["name"] for mount in one["volumeMounts"]} <= known
            assert one["securityContext"]["capabilities"]["drop"] == ["ALL"]
            assert one["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_is_a_command_of_ours(probe: str) -> None:
    config = looked_at(FOLDER / "node.toml", environ("10.0.0.1"))
    command = container()[probe]["exec"]["command"]
    said = parsed(command)
    assert said["address"] == f"unix:{config.node.socket}" and command[3] == "status"
    assert said["nodes"] == ("self",), "a node is not taken down because others do not answer"


def test_a_stop_has_the_time_that_it_takes() -> None:
    stop = container()["lifecycle"]["preStop"]["exec"]["command"]
    assert stop[0] == "timeout" and int(stop[1]) + STOP_MAX_S < pod()["terminationGracePeriodSeconds"]


def test_services_choose_pods_and_name_their_ports() -> None:
    for (kind, name), one in objects().items():
        if kind != "Service":
            continue
        owner = objects()[
            "StatefulSet" if "etcd" in name else "DaemonSet", one["spec"]["selector"]["app.kubernetes.io/name"]
        ]
        template = owner["spec"]["template"]
        assert one["spec"]["selector"].items() <= template["metadata"]["labels"].items()
        known = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= known
    budget = objects()["PodDisruptionBudget", "kvstore"]["spec"]
    labels = objects()["DaemonSet", "kvstore"]["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"] == labels and isinstance(budget["minAvailable"], int)


def test_etcd_answers_where_the_nodes_look() -> None:
    members = looked_at(FOLDER / "node.toml").cluster.members
    assert members.startswith("etcds://kvstore-etcd.kvstore.svc:2379/")
    (etcd,) = objects()["StatefulSet", "kvstore-etcd"]["spec"]["template"]["spec"]["containers"]
    assert "--listen-client-urls=https://0.0.0.0:2379" in etcd["command"] and "--client-cert-auth" in etcd["command"]


# ---- leaving.py -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[dict[str, str]]:
    """One that says of two machines whether they are cordoned, to who shows the account's token."""
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("a-token\n")
    authority = Authority(tmp_path, "authority")
    pair = authority.sign("kubernetes", server=True)
    shutil.copy(authority.path, account / "ca.crt")

    asked: list[str] = []

    class Api(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = {"/api/v1/nodes/cordoned": {"unschedulable": True}, "/api/v1/nodes/open": {}}
            if self.path.endswith("/late") and asked.count(self.path):  # answered when it is asked again
                known[self.path] = {}
            if self.path.endswith("/closing"):  # cordoned while the node starts
                known[self.path] = {"unschedulable": bool(asked.count(self.path))}
            asked.append(self.path)
            good = self.headers["Authorization"] == "Bearer a-token" and self.path in known
            self.send_response(200 if good else 403)
            self.end_headers()
            self.wfile.write(json.dumps({"spec": known.get(self.path)}).encode())

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.private_key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    admin = tmp_path / "bin/store-admin"
    admin.parent.mkdir()
    admin.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\n')
    admin.chmod(admin.stat().st_mode | stat.S_IXUSR)
    yield {
        "PATH": f"{admin.parent}:{os.environ['PATH']}",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(server.server_port),
        "KVSTORE_NODE_SOCKET": "/run/kvstore/kvstore.sock",
    }
    server.shutdown()
    thread.join()
    server.server_close()


DRAIN = "--address unix:/run/kvstore/kvstore.sock drain"


@pytest.mark.parametrize(
    ("moment", "machine", "asked"),
    [
        ("stop", "cordoned", [DRAIN]),
        ("stop", "open", []),
        ("stop", "unknown", []),
        ("start", "open", ["--address unix:/run/kvstore/kvstore.sock status --node self", f"{DRAIN} --cancel"]),
        ("start", "late", ["--address unix:/run/kvstore/kvstore.sock status --node self", f"{DRAIN} --cancel"]),
        ("start", "closing", ["--address unix:/run/kvstore/kvstore.sock status --node self"]),
        ("start", "cordoned", []),
    ],
)
def test_only_who_leaves_hands_on(
    kubernetes: dict[str, str], tmp_path: Path, moment: str, machine: str, asked: list[str]
) -> None:
    script = tmp_path / "leaving.py"
    text = (FOLDER / "leaving.py").read_text()
    assert "/var/run/secrets/kubernetes.io/serviceaccount" in text
    script.write_text(text.replace("/var/run/secrets/kubernetes.io/serviceaccount", str(tmp_path / "account")))
    said = {**kubernetes, "NODE_NAME": machine}
    command = [sys.executable, script, moment]
    done = subprocess.run(command, env=said, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    told = tmp_path / "asked"
    assert (told.read_text().splitlines() if told.exists() else []) == asked
    assert bool(done.stderr) == (machine == "unknown")


def test_what_it_asks_is_what_there_is() -> None:
    """The account may read machines and no more; and draining is a command of ours."""
    (rule,) = objects()["ClusterRole", "kvstore-nodes"]["rules"]
    assert rule == {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}
    assert parsed(["store-admin", *DRAIN.split()])["cancel"] is False
    assert parsed(["store-admin", *DRAIN.split(), "--cancel"])["cancel"] is True
    for moment in ("postStart", "preStop"):
        assert "/etc/kvstore/leaving.py" in " ".join(container()["lifecycle"][moment]["exec"]["command"])
    (config,) = documents(FOLDER / "kustomization.yaml")[0]["configMapGenerator"]
    assert "leaving.py" in config["files"]
