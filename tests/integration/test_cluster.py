"""Real nodes that find each other, by a list and by etcd: one is killed, one stands still, one is refused."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvstore import native
from kvstore.admin import rows
from kvstore.admin.connection import Connection
from kvstore.cli import EXIT_NOT_JOINED, EXIT_SETTINGS
from kvstore.wire import admin as admin_messages
from kvstore.wire import peers, services, store
from tests.certificates import Authority, Pair
from tests.etcd_server import EtcdServer, needs_etcd
from tests.integration.nodes import NodeProcess, eventually
from tests.integration.patience import DEAD_S
from tests.ports import free_ports
from tests.tokens import mint_token

Row = dict[str, Any]
GONE = "memory.keep=false"  # of one that never says where its memory lies


def admin(node: NodeProcess, *words: str) -> str:
    command = [sys.executable, "-m", "kvstore.admin", "--address", f"unix:{node.socket}.grpc", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen(node: NodeProcess) -> dict[str, Row]:
    """What a node says of the others, by name. As store-admin asks, without a process for each question."""
    connection = Connection(f"unix:{node.socket}.grpc")
    try:
        told = rows.nodes(connection.admin().Nodes(admin_messages.NodesRequest(), timeout=10))
    finally:
        connection.close()
    return {str(row["name"] or row["address"]): row for row in told if not row["self"]}


def states(node: NodeProcess) -> dict[str, str]:
    return {name: row["state"] for name, row in seen(node).items()}


def metric(node: NodeProcess, name: str) -> float:
    url = next(one for one in node.facts["addresses"] if one.endswith("/metrics"))
    with urllib.request.urlopen(url, timeout=5) as answer:
        (line,) = [one for one in answer.read().decode().splitlines() if one.startswith(name + " ")]
    return float(line.split()[1])


class Cluster:
    """Nodes n0, n1, ... with one secret, each with a port of its own."""

    def __init__(self, folder: Path, count: int, members: str = "", *sets: str, memory: str = "4MiB") -> None:
        self.folder, self._sets, self._memory = folder, sets, memory
        self.secret = folder / "secret"
        self.secret.write_bytes(b"of this cluster!" * 2)
        self.secret.chmod(0o600)
        self.ports = free_ports(count)
        self.members = members or ",".join(self.at(i) for i in range(count))
        self.nodes = [self.node(i) for i in range(count)]

    def at(self, i: int) -> str:
        return f"127.0.0.1:{self.ports[i]}"

    def node(self, i: int, *sets: str, address: str = "", home: str = "") -> NodeProcess:
        folder = self.folder / (home or f"h{i}")
        folder.mkdir(exist_ok=True)
        said = (f"cluster.members={self.members}", f"cluster.secret_file={self.secret}", f"node.name=n{i}-{id(self)}")
        at = address or self.at(i)
        return NodeProcess(folder, *said, *self._sets, *sets, memory=self._memory, address=at, metrics="127.0.0.1:0")

    def name(self, i: int) -> str:
        return f"n{i}-{id(self)}"

    def start(self) -> Cluster:
        for node in self.nodes:
            node.process = node.spawn()
        for node in self.nodes:  # all at once: most of a start is Python's
            node.finish_start()
        self.meet()
        return self

    def meet(self) -> None:
        for i, node in enumerate(self.nodes):
            others = {self.name(j): "alive" for j in range(len(self.nodes)) if j != i}
            eventually(lambda node=node, others=others: states(node) == others)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def refusal(node: NodeProcess, *sets: str, code: int = EXIT_SETTINGS) -> str:
    """Of one that does not start, with these settings, too."""
    flags = [part for one in sets for part in ("--set", one)]
    process = subprocess.Popen([*node.command(), *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=40)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == code and not out, (process.returncode, out, err)
    return err


@contextlib.contextmanager
def running(cluster: Cluster) -> Iterator[Cluster]:
    try:
        yield cluster.start()
    finally:
        cluster.close()


def told_within(node: NodeProcess, name: str, state: str, within_s: float) -> float:
    """Seconds until the node says so."""
    began = time.monotonic()
    while states(node).get(name) != state:
        assert time.monotonic() - began < within_s, seen(node)
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(Cluster(tmp_path_factory.mktemp("three"), 3)) as cluster:
        yield cluster


def test_each_sees_all_and_says_what_they_are(three: Cluster) -> None:
    first, second = seen(three.nodes[0]), seen(three.nodes[1])
    row = first[three.name(2)]
    assert row == {**second[three.name(2)], "for_s": row["for_s"], "rtt_ms": row["rtt_ms"]}
    assert (row["address"], row["state"], row["problem"]) == (three.at(2), "alive", None)
    assert len(bytes.fromhex(row["id"])) == 16 and row["version"] and 0 < row["rtt_ms"] < 2000
    told = {row["name"]: row for row in json.loads(admin(three.nodes[0], "nodes", "--json"))}
    assert told.keys() == {three.name(i) for i in range(3)} and told[three.name(0)]["self"]
    table = admin(three.nodes[0], "nodes")
    assert three.name(1)[:10] in table and "discovery: static" in table
    eventually(lambda: metric(three.nodes[0], 'kvstore_cluster_nodes{state="alive"}') == 3)
    assert metric(three.nodes[0], "kvstore_cluster_pings_total") > 2


def test_a_node_that_waits_for_others_is_not_ready_yet(tmp_path: Path) -> None:
    """One of its list takes connections, and is mute. Whoever restarts nodes one after the other waits for this one;
    and a drain that saw nothing, since nothing is open yet, would be told as one that has ended.
    """
    (port,) = free_ports(1)
    operators = tmp_path / "kv.sock.grpc"
    ready = health_pb2.HealthCheckRequest()
    with socket.create_server(("127.0.0.1", 0)) as mute, contextlib.ExitStack() as exits:
        members = f"127.0.0.1:{port},127.0.0.1:{mute.getsockname()[1]}"
        node = NodeProcess(tmp_path, f"cluster.members={members}", address=f"127.0.0.1:{port}")
        exits.callback(node.close)
        node.process = node.spawn()
        eventually(operators.is_socket)
        channel = exits.enter_context(grpc.insecure_channel(f"unix:{operators}"))
        stub, health = services.AdminStub(channel), health_pb2_grpc.HealthStub(channel)
        for call in (
            lambda: stub.Status(admin_messages.StatusRequest(), timeout=10),
            lambda: next(stub.Drain(admin_messages.DrainRequest(), timeout=10)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                call()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "this node is still starting" in caught.value.details()
        assert health.Check(ready, timeout=10).status == health_pb2.HealthCheckResponse.NOT_SERVING
        node.finish_start()
        assert stub.Status(admin_messages.StatusRequest(), timeout=10).node.node
        assert health.Check(ready, timeout=10).status == health_pb2.HealthCheckResponse.SERVING


def test_a_node_that_is_killed_is_dead_within_three_seconds_and_comes_back(three: Cluster) -> None:
    failed = metric(three.nodes[0], "kvstore_cluster_pings_failed_total")
    three.nodes[2].kill()
    for node in three.nodes[:2]:
        told_within(node, three.name(2), "dead", DEAD_S)
    row = seen(three.nodes[0])[three.name(2)]
    assert "Connection refused" in row["problem"]
    eventually(lambda: metric(three.nodes[0], 'kvstore_cluster_nodes{state="dead"}') == 1)
    assert metric(three.nodes[0], "kvstore_cluster_pings_failed_total") >= failed + 3
    assert states(three.nodes[0])[three.name(1)] != "dead"  # one that is late with a ping is suspected
    three.nodes[2].start()
    three.meet()


def test_a_node_that_stands_still_is_dead_and_knows_that_it_did(three: Cluster) -> None:
    three.nodes[1].signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        told_within(three.nodes[0], three.name(1), "dead", DEAD_S)
        assert time.monotonic() - began > 1  # a pause is none
        assert seen(three.nodes[0])[three.name(1)]["problem"]
    finally:
        three.nodes[1].signal(signal.SIGCONT)
    three.meet()  # and it did not take the others for dead
    three.nodes[1].stop()
    _, stood, since = three.nodes[1].said.partition("this node stood still")
    assert stood and "is dead" not in since
    three.nodes[1].start()
    three.meet()


def test_another_secret_or_setting_is_refused_with_both_values(three: Cluster, tmp_path: Path) -> None:
    (port,) = free_ports(1)
    at = f"127.0.0.1:{port}"
    error = refusal(three.node(7, "cluster.family_blocks=9", GONE, address=at, home="other"))
    assert "cluster.family_blocks: '9' here, '4' at n" in error
    other = tmp_path / "other"
    other.write_bytes(b"x" * 32)
    other.chmod(0o600)
    error = refusal(three.node(7, f"cluster.secret_file={other}", GONE, address=at, home="other"))
    assert "cluster.secret_file (its id): '" in error and "nodes of one cluster must agree" in error
    assert not {"n7", at} & set(states(three.nodes[0]))
    three.nodes[0].stop()
    assert "a node is refused: cluster.family_blocks: '4' here, '9' at n7" in three.nodes[0].said
    assert three.nodes[0].said.count("a node is refused") == 2
    three.nodes[0].start()
    three.meet()


def test_a_copied_data_directory_is_refused_with_both_addresses(three: Cluster) -> None:
    (port,) = free_ports(1)
    twin = three.folder / "twin"
    (twin / "data").mkdir(parents=True)
    (twin / "data" / "node-id").write_text((three.folder / "h1" / "data" / "node-id").read_text())
    error = refusal(three.node(8, GONE, address=f"127.0.0.1:{port}", home="twin"))
    assert "two nodes have it" in error and three.at(1) in error and f"127.0.0.1:{port}" in error
    for node in three.nodes[:2]:  # the one that is copied, and one that knows it
        node.stop()
        refused = [line for line in node.said.splitlines() if "a node is refused: node id" in line]
        assert len(refused) == 1 and three.at(1) in refused[0] and f"127.0.0.1:{port}" in refused[0]
        node.start()
    three.meet()


def session(node: NodeProcess, token: str = "") -> native.Session:
    host, _, port = str(node.facts["address"]).rpartition(":")
    return native.Session(token=token.encode(), host=host, port=int(port))


def test_whoever_has_not_shown_the_secret_is_told_nothing_of_nodes(three: Cluster) -> None:
    at = session(three.nodes[0])
    try:
        ping = at.call(store.METHOD_PEER_PING, b"", 5.0)
        assert ping.status == native.Status.DENIED and "only nodes of this cluster" in ping.reason
        hello = peers.PeerHelloRequest(node=b"", proof=bytes(32)).SerializeToString()
        assert "comes after a challenge" in at.call(store.METHOD_PEER_HELLO, hello, 5.0).reason
        for nonce in (b"", bytes(31), bytes(33)):
            request = peers.PeerChallengeRequest(nonce=nonce).SerializeToString()
            assert at.call(store.METHOD_PEER_CHALLENGE, request, 5.0).status == native.Status.BAD_INPUT
        request = peers.PeerChallengeRequest(nonce=bytes(32)).SerializeToString()
        told = peers.PeerChallengeResponse.FromString(at.call(store.METHOD_PEER_CHALLENGE, request, 5.0).body)
        hello = peers.PeerHelloRequest(node=told.node, settings=told.settings, proof=told.proof)  # its own, sent back
        answer = peers.PeerHelloResponse.FromString(
            at.call(store.METHOD_PEER_HELLO, hello.SerializeToString(), 5.0).body
        )
        assert "has not shown that it has the cluster's secret" in answer.refusal
        assert at.call(store.METHOD_PEER_PING, b"", 5.0).status == native.Status.DENIED
        assert "junk" not in at.call(store.METHOD_PEER_HELLO, b"\xff" * 9, 5.0).reason
    finally:
        at.close()


def test_a_tenants_and_an_operators_token_are_no_nodes(tmp_path: Path) -> None:
    token, entry = mint_token("an operator", ["*"], ["admin"])
    access = tmp_path / "access.toml"
    access.write_text(entry)
    access.chmod(0o600)
    with running(Cluster(tmp_path, 2, "", f"security.access_file={access}")) as cluster:
        at = session(cluster.nodes[0], token)
        assert at.call(store.METHOD_INFO, b"", 5.0).status == native.Status.OK
        assert at.call(store.METHOD_PEER_PING, b"", 5.0).status == native.Status.DENIED
        at.close()
        with pytest.raises(PermissionError):
            session(cluster.nodes[0])


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"), "ours")


def sealed(authority: Authority, pair: Pair) -> Sequence[str]:
    return (
        f"security.certificate={pair.certificate}",
        f"security.private_key={pair.private_key}",
        f"security.client_ca={authority.path}",
    )


def test_nodes_speak_mutual_tls_where_they_have_certificates(tmp_path: Path, authority: Authority) -> None:
    ours = sealed(authority, authority.sign("node", server=True, client=True))
    with running(Cluster(tmp_path, 2, "", *ours)) as cluster:
        stranger = Authority(tmp_path, "strange")
        false = sealed(stranger, stranger.sign("false", server=True, client=True))
        (port,) = free_ports(1)
        alone = cluster.node(5, *false, address=f"127.0.0.1:{port}")
        try:  # it believes nobody, and nobody it: a list does not end for that
            alone.start()
            told = seen(alone)
            assert {row["state"] for row in told.values()} <= {"suspect", "dead"}
            eventually(lambda: all("certificate" in str(row["problem"]) for row in seen(alone).values()))
        finally:
            alone.close()


def test_other_machines_are_spoken_to_over_mutual_tls_only(tmp_path: Path) -> None:
    error = refusal(Cluster(tmp_path, 1, "192.0.2.1:7400", GONE).nodes[0])
    assert "192.0.2.1:7400: of another machine: nodes speak mutual TLS there" in error


def test_one_node_alone_is_a_cluster_of_one(tmp_path: Path) -> None:
    with NodeProcess(tmp_path, memory="4MiB") as node:
        (row,) = json.loads(admin(node, "nodes", "--json"))
        assert (row["state"], row["self"]) == ("alive", True)
        assert "discovery: standalone" in admin(node, "nodes")


@needs_etcd
def test_nodes_that_meet_in_etcd_outlive_it(tmp_path: Path) -> None:
    with EtcdServer(tmp_path) as server:
        members = f"etcd://{server.endpoint}/test/cluster"
        cluster = Cluster(tmp_path, 3, members, "cluster.etcd_ttl_s=2")
        with running(cluster):
            server.kill()
            cluster.nodes[2].kill()  # dead by pings, whatever etcd says
            for node in cluster.nodes[:2]:
                told_within(node, cluster.name(2), "dead", DEAD_S)
            assert "not joined within cluster.join_ms" in refusal(
                cluster.nodes[2], "cluster.join_ms=1500", code=EXIT_NOT_JOINED
            )
            assert states(cluster.nodes[0])[cluster.name(1)] != "dead"
            assert "not to be reached for" in admin(cluster.nodes[0], "nodes")
            server.start()
            cluster.nodes[2].start()
            cluster.meet()
            cluster.nodes[2].stop()  # in order: it is listed no more, and soon not shown
            eventually(lambda: states(cluster.nodes[0]) == {cluster.name(1): "alive"})
            for node in cluster.nodes[:2]:
                node.stop()
                assert f"{cluster.name(2)} (" in node.said
                dead = [line for line in node.said.splitlines() if " is dead" in line]
                assert all(cluster.name(2) in line for line in dead[:2]), node.said
